"""The loop of one process: it claims missing samples and makes them until none is left.

Processes do not know of each other and do not wait for each other; they meet in the claims and in
the rows of the output folder. So one may be started, stopped, or killed at any time.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from generation.plan import PlanItem
from generation.progress import Progress
from generation.samples import FinishedSample, SampleSpec
from generation.settings import Config
from generation.specs import SpecReader
from generation.work_queue import WorkQueue
from generation.writer import Pending, Writer, WriterThread
from pipeline.claims import Claims
from pipeline.metadata_index import MetadataIndex
from pipeline.rows import sample_id
from pipeline.stopping import StopRequest

if TYPE_CHECKING:
    from generation.sampler.pending import PendingSample
    from generation.sampler.sampler import Sampler

GRACE_S = 8.0  # a sample that takes longer than this after a stop signal is dropped


class SampleMaker:
    """Generates samples of the plan; `provenance` goes into every row."""

    def __init__(
        self, sampler: "Sampler", specs: SpecReader, provenance: dict[str, Any] | None = None
    ) -> None:
        self.sampler, self.specs, self.provenance = sampler, specs, provenance or {}
        self._retries: Counter[int] = Counter()

    def make(self, items: Sequence[PlanItem]) -> list["PendingSample"]:
        """Start to generate samples together; one that is given again gets another seed."""
        return self.sampler.start([self._read(item) for item in items])

    def forget_attempts(self) -> None:
        """Give every sample its first seed again: an actor may be given the same job twice."""
        self._retries.clear()

    def _read(self, item: PlanItem) -> SampleSpec:
        spec = self.specs.read(item, self._retries[item.index])
        self._retries[item.index] += 1
        is_cut = self.sampler.networks.text.truncates(spec.prompt)
        return replace(spec, metadata=spec.metadata | self.provenance | {"prompt_cut": is_cut})


def load_maker(config: Config, specs: SpecReader, provenance: dict[str, Any]) -> SampleMaker:
    """Load the networks of a run onto the device of this process."""
    from generation.sampler.networks import load_networks, pick_device
    from generation.sampler.sampler import Sampler

    sampler = Sampler(load_networks(config, pick_device(config.cpu_threads)), config)
    return SampleMaker(sampler, specs, provenance)


def generate_groups(
    groups: Iterator[list[int]],
    make: Callable[[list[int]], Sequence[Pending]],
    saver: WriterThread,
    stop: StopRequest,
    group: int = 1,
) -> None:
    """Generate groups of samples, unusable ones again, until none is left or a stop signal.

    `make` is given up to `group` samples at a time. Unusable ones come before the next group: a tar
    shard that lacks one stays in memory.
    """
    while not stop.signal_number:
        indices = (
            saver.take_again(group, wait=False)
            or next(groups, [])
            or saver.take_again(group, wait=True)
        )
        if not indices:
            break
        with stop.limited():  # not what waits for the writer, whose samples are finished
            samples = make(indices)
        for sample in samples:
            saver.put(sample)


def work_until_done(
    make: Callable[[list[int]], Sequence[Pending]],
    writer: Writer,
    rows: MetadataIndex,
    claims: Claims,
    *,
    group: int = 1,
    show_progress: bool,
) -> int:
    """Make and write what is missing and not claimed; return 0, or the code of a stop signal."""
    progress = Progress(rows, claims, show=show_progress)

    def saved(batch: Sequence[FinishedSample]) -> None:
        for sample in batch:
            is_failed = sample.image is None  # no file tells others so
            (claims.keep if is_failed else claims.release)(sample_id(sample.spec.index))
        progress.update()

    # The metadata files of all parts have names of their own, so that their folders can be joined
    first, step = rows.part
    writer.process_index = claims.take_number("metadata", first, step)
    queue = WorkQueue(rows, claims, group, (writer.process_index - first) // step)
    try:
        with StopRequest(GRACE_S).listening() as stop, WriterThread(writer, saved) as saver:
            generate_groups(iter(queue), make, saver, stop, group)
    except SystemExit:  # after a stop signal, from the middle of a sample; the others are written
        pass
    finally:
        progress.update(last=True)
    return stop.exit_code
