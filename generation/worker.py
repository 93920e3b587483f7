"""The loop of one process: it claims missing samples and makes them until none is left.

Processes do not know of each other and do not wait for each other; they meet in the claims and in
the rows of the output folder. So one may be started, stopped, or killed at any time.
"""

from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from generation.plan import PlanItem
from generation.progress import Progress
from generation.samples import FinishedSample, SampleSpec
from generation.settings import Config
from generation.specs import SpecReader
from generation.writer import Pending, Writer, WriterThread
from pipeline.claims import Claims
from pipeline.metadata import MetadataIndex
from pipeline.rows import sample_id
from pipeline.stopping import StopRequest

if TYPE_CHECKING:
    from generation.sampler.pending import PendingSample
    from generation.sampler.sampler import Sampler

MAX_CLAIMS = 8  # samples claimed at once, while many are missing
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


class WorkQueue:
    """Gives out missing samples that no other process has claimed."""

    def __init__(self, rows: MetadataIndex, claims: Claims, group: int = 1) -> None:
        self.rows, self.claims, self.group = rows, claims, group
        self._todo = deque(rows.missing())
        self._elsewhere: list[int] = []
        """What other processes held when it was their turn here."""

    def take(self) -> list[int]:
        """Claim the next few samples; an empty list if nothing is left to take."""
        while self._todo:
            taken = self._claim(max(min(len(self._todo) // 256, MAX_CLAIMS), self.group))
            self.rows.update()  # what was finished until now may have been free again
            for index in [index for index in taken if self.rows.is_done(index)]:
                self.claims.release(sample_id(index))
                taken.remove(index)
            if taken:
                return taken
        while self._elsewhere:  # its processes may have died
            index = self._elsewhere.pop()
            if self.rows.is_done(index) or not self.claims.take_over(sample_id(index)):
                continue
            self.rows.update()
            if not self.rows.is_done(index):
                return [index]
            self.claims.release(sample_id(index))
        return []

    def _claim(self, count: int) -> list[int]:
        taken: list[int] = []
        while self._todo and len(taken) < count:
            index = self._todo.popleft()
            if self.rows.is_done(index):
                continue
            if self.claims.take(sample_id(index)):
                taken.append(index)
            else:
                self._elsewhere.append(index)
        return taken

    def __iter__(self) -> Iterator[list[int]]:
        while taken := self.take():
            for first in range(0, len(taken), self.group):
                yield taken[first : first + self.group]


def generate_groups(
    groups: Iterator[list[int]],
    make: Callable[[list[int]], Sequence[Pending]],
    saver: WriterThread,
    stop: StopRequest,
    group: int = 1,
) -> None:
    """Generate groups of samples, unusable ones again, until none is left or a stop signal.

    `make` is given up to `group` samples at a time.
    """
    while not stop.signal_number:
        indices = next(groups, []) or saver.take_again(group)
        if not indices:
            break
        for sample in make(indices):
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
            claims.release(sample_id(sample.spec.index))
        progress.update()

    # The metadata files of all parts have names of their own, so that their folders can be joined
    writer.process_index = claims.take_number("metadata", *rows.part)
    try:
        with StopRequest(GRACE_S).listening() as stop, WriterThread(writer, saved) as saver:
            generate_groups(iter(WorkQueue(rows, claims, group)), make, saver, stop, group)
    except SystemExit:  # after a stop signal, from the middle of a sample; the others are written
        pass
    finally:
        progress.update(last=True)
    return stop.exit_code
