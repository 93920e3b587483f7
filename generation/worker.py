"""The loop of one process: it claims missing samples and makes them until none is left.

Processes do not know of each other and do not wait for each other; they meet in the claims and in
the rows of the output folder. So one may be started, stopped, or killed at any time.
"""

import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from generation.label_maps import LabelMap, LabelMapFolder
from generation.plan import Crop, PlanItem, describe, noise_seed
from generation.progress import Progress
from generation.settings import Config
from generation.writer import FinishedSample, PendingSample, Writer, WriterThread
from pipeline.claims import Claims
from pipeline.metadata import MetadataIndex
from pipeline.rows import sample_id
from pipeline.stopping import StopRequest

if TYPE_CHECKING:
    from generation.sampler.sampler import Sampler

ATTEMPTS = 3  # an image that is not finite or constant is drawn anew twice
MAX_CLAIMS = 8  # samples claimed at once, while many are missing
GRACE_S = 8.0  # a sample that takes longer than this after a stop signal is dropped


class SampleMaker:
    """Makes single samples from plan items."""

    def __init__(
        self,
        sampler: "Sampler",
        config: Config,
        source: LabelMapFolder,
        label_maps: list[LabelMap],
        facts: dict[str, Any],
    ) -> None:
        self.sampler, self.config = sampler, config
        self.source, self.label_maps, self.facts = source, label_maps, facts
        self.attempts: Counter[int] = Counter()
        self._last = 0.0  # when the group before was finished

    def prepare(self, item: PlanItem) -> tuple[np.ndarray, dict[str, Any], np.ndarray | None]:
        """Return label crop and row of a sample before it is drawn, and its source if needed."""
        label_map = self.label_maps[item.label_map]
        label, row = describe(item, self.source.read(label_map.name), label_map, self.config)
        row |= self.facts
        row["prompt_cut"] = self.sampler.networks.text.truncates(row["prompt"])
        if not self.config.needs_source_images:
            return label, row, None
        picture = self.source.read_source_image(item.label_map, (label_map.height, label_map.width))
        return label, row, Crop(*row["crop"]).of(picture)

    def make(self, items: Sequence[PlanItem]) -> list[PendingSample]:
        """Start to draw samples together.

        One that comes out unusable must be made again, up to ATTEMPTS times; then its row says why
        in `error`.
        """
        from generation.sampler.sampler import Request

        started, requests, prepared = time.perf_counter(), [], []
        for item in items:
            label, row, source = self.prepare(item)
            attempt = self.attempts[item.index]
            row |= {"attempt": attempt, "seed": noise_seed(self.config.seed, item.index, attempt)}
            requests.append(Request(label, row["prompt"], row["seed"], source))
            prepared.append((item.index, label, row))
        drawings = self.sampler.start(requests)

        def finish(place: int) -> FinishedSample | None:
            picture, (index, label, row) = drawings[place].picture(), prepared[place]
            now = time.perf_counter()
            row["seconds"] = round((now - max(started, self._last)) / len(items), 3)
            if place == len(items) - 1:
                self._last = now
            if picture.image is None:
                self.attempts[index] += 1
                if self.attempts[index] < ATTEMPTS:
                    return None
                row["error"] = f"{picture.problem} in {ATTEMPTS} attempts"
            row |= {"tiles": picture.tiles, "tiles_total": picture.tiles_total}
            row |= {"evaluations": picture.evaluations}
            row["drawn_at"] = datetime.now(UTC).isoformat(timespec="seconds")
            return FinishedSample(index, picture.image, label, row)

        return [
            PendingSample(item.index, partial(finish, place)) for place, item in enumerate(items)
        ]


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


def work_until_done(
    make: Callable[[list[int]], Sequence[FinishedSample | PendingSample]],
    writer: Writer,
    rows: MetadataIndex,
    claims: Claims,
    *,
    group: int = 1,
    show_progress: bool,
) -> int:
    """Make and write what is missing and not claimed; return 0, or the code of a stop signal.

    `make` is given up to `group` samples at a time.
    """
    progress = Progress(rows, claims, show=show_progress)

    def saved(batch: Sequence[FinishedSample]) -> None:
        for drawn in batch:
            claims.release(sample_id(drawn.index))
        progress.update()

    writer.process_index = claims.take_number("metadata")
    try:
        with StopRequest(GRACE_S).listening() as stop, WriterThread(writer, saved) as saver:
            groups = iter(WorkQueue(rows, claims, group))
            while not stop.signal_number:
                indices = next(groups, []) or saver.take_again(group)
                if not indices:
                    break
                for sample in make(indices):
                    saver.put(sample)
    except SystemExit:  # after a stop signal, from the middle of a sample; the others are written
        pass
    finally:
        progress.update(last=True)
    return stop.exit_code
