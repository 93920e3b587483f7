"""Generation on a Ray cluster: one actor per GPU, or per process on a CPU, over the same plan.

The driver reads the inputs, gives samples to actors and commits what comes back; behind an address
the actors commit whole tar shards themselves. What a lost actor was making is given to another one;
the bytes are the same.
"""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from generation import tar_output, worker
from generation.inputs import Inputs, check_loadable, row_provenance
from generation.output import RunFolder
from generation.plan import PlanItem
from generation.progress import Progress
from generation.settings import Config
from generation.specs import SpecReader
from generation.writer import Numbered, WriterThread
from pipeline import files
from pipeline.claims import Claims
from pipeline.dataset_writer import EncodedSample, encode_sample
from pipeline.errors import UserError
from pipeline.ray_cluster import Actor, Demand, Job, run_jobs
from pipeline.stopping import StopRequest
from pipeline.tar_set import Shard, TarSet

CHUNK = 8  # samples that an actor is given at once, where the driver commits them
DRIVER = "ray-000"  # the claim of the driver of a folder


class Collector:
    """Encodes samples in the thread of the writer, beside the generation of the next ones."""

    process_index = 0

    def __init__(self) -> None:
        self.samples: list[EncodedSample] = []

    def write_all(self, samples: Sequence[Numbered]) -> None:
        """Encode samples and keep them."""
        self.samples += [encode_sample(*sample) for sample in samples]


class Generator(Actor):
    """The actor: the networks of a run on one device."""

    def __init__(self, config: Config, specs: SpecReader, provenance: dict[str, Any]) -> None:
        self.config = config
        self.maker = worker.load_maker(config, specs, provenance)

    def make(self, items: Sequence[PlanItem]) -> list[EncodedSample]:
        """Return the samples of plan items, failed ones with the reason in their row."""
        self.maker.forget_attempts()
        collector, size = Collector(), self.config.image_batch
        by_index = {item.index: item for item in items}
        groups = (list(by_index)[first : first + size] for first in range(0, len(items), size))
        with WriterThread(collector, lambda batch: None) as saver:
            worker.generate_groups(
                groups,
                lambda indices: self.maker.make([by_index[index] for index in indices]),
                saver,
                StopRequest(),
                size,
            )
        return collector.samples

    def make_shard(self, tar_set: TarSet, shard: Shard, items: Sequence[PlanItem]) -> int:
        """Generate and commit a tar shard; return how many of its samples failed."""
        samples = self.make(items)
        return len(shard.wanted) - tar_set.commit(shard, samples)


def fill_folder(config: Config, inputs: Inputs, folder: RunFolder, claims: Claims) -> int:
    """Generate what is missing in a folder on the cluster; the driver commits it.

    Returns 0, or the code of a stop signal. The driver hands out all samples at once and claims
    none, so it must be alone.
    """
    folder.process_index = claims.take_number("metadata")
    claims.take_over(DRIVER)
    if others := claims.others("metadata"):
        raise UserError(
            f"{config.output}: process {others[0].get('pid')} on {others[0].get('host')} is "
            "filling it, and a run with --ray shares no samples with others; wait for its end, or "
            "stop it"
        )
    missing = inputs.rows.missing()
    size = max(CHUNK, config.image_batch)
    chunks = [missing[first : first + size] for first in range(0, len(missing), size)]
    jobs = [Job(chunk[0], len(chunk), (inputs.items(chunk),)) for chunk in chunks]
    provenance = row_provenance(folder.identity)

    progress = Progress(inputs.rows, claims, show=True)

    def commit(job: Job, samples: list[EncodedSample]) -> None:
        files.despite_transient_errors(lambda: folder.write_encoded(samples))
        progress.update()

    try:
        return _run(config, inputs, provenance, "make", jobs, commit)
    finally:
        progress.update(last=True)


def require_no_driver(output: Path, claims: Claims) -> None:
    """Raise `UserError` while a run with --ray fills the folder; it would make the same samples."""
    if drivers := claims.others(DRIVER.rpartition("-")[0]):
        raise UserError(
            f"{output}: process {drivers[0].get('pid')} on {drivers[0].get('host')} is filling it "
            "with --ray, which shares no samples with others; wait for its end, or stop it"
        )


def fill_tar_set(config: Config, inputs: Inputs) -> int:
    """Generate the tar shards that are missing behind an address; the actors commit them."""
    tar_set = tar_output.open_tar_set(config, inputs)
    shards = tar_set.unfinished(config.n)
    if not shards:
        print(f"{config.output_address}: complete; nothing to do")
        return 0
    check_loadable(config)
    todo, failed = sum(len(shard.missing) for shard in shards), [0]
    jobs = []
    for shard in shards:
        items = inputs.items(shard.missing)
        jobs.append(Job(shard.number, len(items), (tar_set, shard, items)))
    provenance = row_provenance(tar_set.identity)
    made = [config.n - todo]

    def commit(job: Job, num_failed: int) -> None:
        made[0] += job.num_samples - num_failed
        failed[0] += num_failed
        print(f"streetforge: {made[0]}/{config.n} samples", file=sys.stderr, flush=True)

    stop_code = _run(config, inputs, provenance, "make_shard", jobs, commit)
    return tar_output.tell(config, made[0] + todo - config.n, failed[0], stop_code)


def _run(
    config: Config,
    inputs: Inputs,
    provenance: dict[str, Any],
    method: str,
    jobs: Sequence[Job],
    commit: Callable[[Job, Any], None],
) -> int:
    arguments = config, inputs.specs, provenance
    return run_jobs(demand_of(config), Generator, arguments, method, jobs, commit)


def demand_of(config: Config) -> Demand:
    """Return what the actors of a generation run need."""
    return Demand(config.ray, config.ray_workers, config.cpu_threads)
