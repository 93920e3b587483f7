"""The loop of one process: it claims missing samples and makes them until none is left.

Processes do not know of each other and do not wait for each other; they meet in the claims and in
the rows of the output folder. So one may be started, stopped, or killed at any time.
"""

import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from generation.claims import Claims
from generation.layouts import Layout, LayoutSource
from generation.plan import PlanItem, noise_seed, place_crop
from generation.progress import Progress, Rows
from generation.prompts import join_classes, render_prompt
from generation.saving import Drawn, Saver
from generation.settings import Config
from pipeline.dataset import DatasetWriter, sample_id
from pipeline.errors import UserError
from pipeline.labels import CLASS_NAMES
from pipeline.seeding import numpy_generator
from pipeline.stopping import StopRequest

if TYPE_CHECKING:
    from generation.engine import Sampler

ATTEMPTS = 3  # a picture that is not finite or constant is drawn anew twice
MAX_CLAIMS = 8  # samples claimed at once, while many are missing
GRACE_S = 8.0  # a sample that takes longer than this after a stop signal is dropped


class Maker:
    """Makes single samples from plan items."""

    def __init__(
        self, sampler: "Sampler", config: Config, source: LayoutSource, layouts: list[Layout],
        facts: dict[str, Any],
    ) -> None:  # fmt: skip
        self.sampler, self.config = sampler, config
        self.source, self.layouts, self.facts = source, layouts, facts

    def prepare(self, item: PlanItem) -> tuple[np.ndarray, dict[str, Any]]:
        """Return the label crop and the row of a sample, before it is drawn."""
        layout = self.layouts[item.layout]
        label = self.source.read(layout.name)
        crop = place_crop(
            label, item, seed=self.config.seed, size=self.config.crop_px,
            min_share=self.config.rcs_min_share,
        )  # fmt: skip
        label = crop.of(label)
        grammar = self.config.prompt
        rng = numpy_generator(self.config.seed, "class words", item.index)
        prompt = render_prompt(
            grammar, join_classes(label, grammar, rng),
            condition=item.condition, time=item.time, place=item.place,
        )  # fmt: skip
        row = {
            "prompt": prompt,
            "condition": item.condition,
            "time": item.time,
            "place": item.place,
            "rare_class": None if item.rare_class is None else CLASS_NAMES[item.rare_class],
            "source_label": layout.name,
            "source_size": [layout.height, layout.width],
            "crop": [crop.top, crop.left, crop.height, crop.width],
            "fusion": self.config.fusion,
            **self.facts,
        }
        return label, row

    def make(self, item: PlanItem) -> Drawn:
        """Draw a sample, in up to ATTEMPTS attempts; a failed one's row says why in `error`."""
        label, row = self.prepare(item)
        row["prompt_cut"] = self.sampler.networks.text.truncates(row["prompt"])
        started = time.perf_counter()
        for attempt in range(ATTEMPTS):
            seed = noise_seed(self.config.seed, item.index, attempt)
            picture = self._draw(label, row["prompt"], seed)
            row |= {"seed": seed, "attempt": attempt, "tiles": picture.tiles}
            row |= {"tiles_total": picture.tiles_total, "evaluations": picture.evaluations}
            if picture.image is not None:
                break
        row["seconds"] = round(time.perf_counter() - started, 3)
        if picture.image is None:
            row["error"] = f"{picture.problem} in {ATTEMPTS} attempts"
        return Drawn(item.index, picture.image, label, row)

    def _draw(self, label: np.ndarray, prompt: str, seed: int) -> Any:
        """Draw once; when memory runs out go on with half the tiles per call."""
        while True:
            try:
                return self.sampler.draw(label, prompt, seed)
            except RuntimeError as error:
                if type(error).__name__ != "OutOfMemoryError":  # torch's; not imported here
                    raise
            batch = getattr(self.sampler, "tile_batch", 1)
            if batch <= 1:
                raise UserError(
                    f"--tile-batch {self.config.tile_batch}: the device ran out of memory even "
                    "with one tile at a time; use --precision bf16 or smaller --tile-px"
                )
            self.sampler.tile_batch = batch // 2
            print(
                f"streetforge: the device ran out of memory with {batch} tiles at a time; going on "
                f"with {batch // 2}",
                file=sys.stderr,
            )


class Dealer:
    """Gives out missing samples that no other process has claimed."""

    def __init__(self, rows: Rows, claims: Claims) -> None:
        self.rows, self.claims = rows, claims
        self._todo = deque(rows.missing())
        self._elsewhere: list[int] = []
        """What other processes held when it was their turn here."""

    def take(self) -> list[int]:
        """Claim the next few samples; an empty list if nothing is left to take."""
        while self._todo:
            taken = self._claim(min(max(len(self._todo) // 256, 1), MAX_CLAIMS))
            self.rows.update()  # what was finished until now may have been free again
            for index in [index for index in taken if self.rows.settled(index)]:
                self.claims.release(sample_id(index))
                taken.remove(index)
            if taken:
                return taken
        while self._elsewhere:  # its processes may have died
            index = self._elsewhere.pop()
            if self.rows.settled(index) or not self.claims.take_over(sample_id(index)):
                continue
            self.rows.update()
            if not self.rows.settled(index):
                return [index]
            self.claims.release(sample_id(index))
        return []

    def _claim(self, count: int) -> list[int]:
        taken: list[int] = []
        while self._todo and len(taken) < count:
            index = self._todo.popleft()
            if self.rows.settled(index):
                continue
            if self.claims.take(sample_id(index)):
                taken.append(index)
            else:
                self._elsewhere.append(index)
        return taken

    def __iter__(self) -> Iterator[int]:
        while taken := self.take():
            yield from taken


def run_share(
    make: Callable[[int], Drawn], writer: DatasetWriter, rows: Rows, claims: Claims, *,
    show_progress: bool,
) -> int:  # fmt: skip
    """Make and write what is missing and not claimed; return 0, or the code of a stop signal."""
    progress = Progress(rows, claims, show=show_progress)

    def saved(batch: Sequence[Drawn]) -> None:
        for drawn in batch:
            claims.release(sample_id(drawn.index))
        progress.update()

    writer.process_index = claims.take_number("metadata")
    try:
        with StopRequest(GRACE_S).listening() as stop, Saver(writer, saved) as saver:
            for index in Dealer(rows, claims):
                if stop.signal_number:
                    break
                saver.put(make(index))
    except SystemExit:  # after a stop signal, from the middle of a sample; the others are written
        pass
    finally:
        progress.update(last=True)
    return stop.exit_code
