"""Generation on a Ray cluster: one actor per GPU, or per process on a CPU, over the same plan.

The driver reads the inputs, gives samples to actors and commits what comes back; behind an address
the actors commit whole tar shards themselves. Where actors run, whether they are started again
after a crash or on another node, and how many nodes there are is left to Ray: actors have unlimited
restarts, and those that do not fit wait for a late node, or make the autoscaler start one. What a
lost actor was making is given to another one; the bytes are the same.
"""

import socket
import sys
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from generation import tar_output, worker
from generation.inputs import Inputs, check_loadable, row_provenance
from generation.output import RunFolder
from generation.plan import PlanItem
from generation.settings import Config
from generation.specs import SpecReader
from generation.writer import Numbered, WriterThread
from pipeline.claims import Claims
from pipeline.dataset_writer import EncodedSample, encode_sample
from pipeline.errors import UserError
from pipeline.setting_checks import require_extra
from pipeline.stopping import StopRequest
from pipeline.tar_set import Shard, TarSet

CHUNK = 8  # samples that an actor is given at once, where the driver commits them
MOST_LOSSES = 5  # actors lost over one job, before it is taken for the cause
CONNECT_S = 20.0
GROWTH_S = 10.0  # the size of the cluster is looked at so often


class Collector:
    """Encodes samples in the thread of the writer, beside the generation of the next ones."""

    process_index = 0

    def __init__(self) -> None:
        self.samples: list[EncodedSample] = []

    def write_all(self, samples: Sequence[Numbered]) -> None:
        """Encode samples and keep them."""
        self.samples += [encode_sample(*sample) for sample in samples]


class Generator:
    """The actor: the networks of a run on one device."""

    def __init__(self, config: Config, specs: SpecReader, provenance: dict[str, Any]) -> None:
        self.config = config
        self.maker = worker.load_maker(config, specs, provenance)

    def ready(self) -> None:
        """Return when the networks are loaded."""

    def make(self, items: Sequence[PlanItem]) -> list[EncodedSample]:
        """Return the samples of plan items, failed ones with the reason in their row."""
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


@dataclass
class Job:
    """What one call of an actor makes: samples, or a tar shard."""

    key: int
    num_samples: int
    arguments: tuple[Any, ...]


class Cluster:
    """The actors of a run and the jobs that they have.

    Ray places and restarts actors. A job of a lost actor goes back into the queue, and not to the
    same actor: that may have to wait for a node which never comes.
    """

    def __init__(self, config: Config, inputs: Inputs, provenance: dict[str, Any]) -> None:
        import ray

        self.ray, self.config = ray, config
        self.actors: list[Any] = []
        self.calls: dict[Any, tuple[Any, Job | None]] = {}
        self.losses: Counter[int] = Counter()
        resources = ray.cluster_resources()
        self.kind = "GPU" if resources.get("GPU") else "CPU"
        needs = {"num_gpus": 1} if self.kind == "GPU" else {"num_cpus": config.cpu_threads}
        remote = ray.remote(max_restarts=-1, max_task_retries=0, **needs)(Generator)
        arguments = ray.put(config), ray.put(inputs.specs), provenance
        self.start = lambda: remote.remote(*arguments)
        self.share = 1 if self.kind == "GPU" else config.cpu_threads

    def grow(self, num_jobs: int) -> None:
        """Start the actors that the settings or the size of the cluster ask for."""
        size = int(self.ray.cluster_resources().get(self.kind, 0)) // self.share
        wanted = min(self.config.ray_workers or max(size, 1), num_jobs)
        while len(self.actors) < wanted:
            self.actors.append(self.start())
            self._await_ready(self.actors[-1])

    def _await_ready(self, actor: Any) -> None:
        self.calls[actor.ready.options(max_task_retries=-1).remote()] = (actor, None)

    def run(
        self,
        method: str,
        jobs: Sequence[Job],
        commit: Callable[[Job, Any], None],
        stop: StopRequest,
    ) -> None:
        """Have all jobs made and hand their results to `commit`, until a stop signal."""
        queue, idle, open_jobs = deque(jobs), deque[Any](), len(jobs)
        while open_jobs and not stop.signal_number:
            self.grow(open_jobs)
            while queue and idle:
                actor, next_job = idle.popleft(), queue.popleft()
                call = getattr(actor, method).remote(*next_job.arguments)
                self.calls[call] = (actor, next_job)
            done, _ = self.ray.wait(list(self.calls), timeout=GROWTH_S)
            for call in done:
                actor, job = self.calls.pop(call)
                try:
                    result = self.ray.get(call)
                except self.ray.exceptions.RayTaskError as error:
                    raise self._cause(error) from None
                except self.ray.exceptions.RayError as error:  # actor, worker or node is lost
                    if job is None:  # `ready` is repeated by Ray unless the actor cannot start
                        raise self._cannot_start(error) from None
                    queue.append(job)
                    self._note_loss(job, error)
                    self._await_ready(actor)
                    continue
                if job is not None:
                    commit(job, result)
                    open_jobs -= 1
                idle.append(actor)

    def close(self) -> None:
        """End all actors."""
        for actor in self.actors:
            self.ray.kill(actor)

    def _note_loss(self, job: Job, error: Exception) -> None:
        self.losses[job.key] += 1
        if self.losses[job.key] == MOST_LOSSES:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise UserError(
                f"--ray {self.config.ray}: {MOST_LOSSES} actors were lost over the same samples "
                f"({reason}); see Ray's logs, the memory of the nodes may not suffice; all "
                "finished samples are kept"
            )
        print("streetforge: an actor was lost; another one makes its samples", file=sys.stderr)

    def _cannot_start(self, error: Exception) -> UserError:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        return UserError(
            f"--ray {self.config.ray}: an actor cannot start ({lines[-1].strip()}); install this "
            "version on all nodes, with models and label maps at the same paths"
        )

    @staticmethod
    def _cause(error: Any) -> BaseException:
        """Return what an actor raised: an error of the user's as itself."""
        cause = getattr(error, "cause", None)
        return UserError(str(cause)) if isinstance(cause, UserError) else error


def connect(config: Config) -> Any:
    """Connect to the cluster, or start one of this machine for the address `local`."""
    require_extra(f"--ray {config.ray}", "ray", "ray")
    import ray

    try:
        host, _, port = config.ray.rpartition("/")[2].rpartition(":")
        if host and port.isdecimal():  # Ray itself tries for minutes
            socket.create_connection((host, int(port)), CONNECT_S).close()
        ray.init(address=config.ray, log_to_driver=False, logging_level="error")
    except (ValueError, OverflowError, RuntimeError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"--ray {config.ray}: no cluster answers ({reason}); use 'local', 'auto' on a node of "
            "the cluster, host:port or ray://host:port"
        ) from None
    return ray


def fill_folder(config: Config, inputs: Inputs, folder: RunFolder, claims: Claims) -> int:
    """Generate what is missing in a folder on the cluster; the driver commits it.

    Returns 0, or the code of a stop signal.
    """
    folder.process_index = claims.take_number("metadata")
    missing = inputs.rows.missing()
    size = max(CHUNK, config.image_batch)
    chunks = [missing[first : first + size] for first in range(0, len(missing), size)]
    jobs = [Job(chunk[0], len(chunk), (inputs.items(chunk),)) for chunk in chunks]
    provenance = row_provenance(folder.identity)

    def commit(job: Job, samples: list[EncodedSample]) -> None:
        folder.write_encoded(samples)
        inputs.rows.update()
        _tell(inputs.rows.done, len(inputs.rows.wanted))

    return _run(config, inputs, provenance, "make", jobs, commit)


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
        _tell(made[0], config.n)

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
    ray = connect(config)
    try:
        with StopRequest().listening() as stop:
            cluster = Cluster(config, inputs, provenance)
            try:
                cluster.run(method, jobs, commit, stop)
            finally:
                cluster.close()
        return stop.exit_code
    finally:
        ray.shutdown()


def _tell(done: int, wanted: int) -> None:
    print(f"streetforge: {done}/{wanted} samples", file=sys.stderr, flush=True)
