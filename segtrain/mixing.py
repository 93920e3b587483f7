"""Draws training samples from source and generated pictures at an explicit ratio.

Each drawn sample comes from the generated set with probability `share`, whatever the sizes of the
two sets, and is uniform within its set, or shows a rare class (`pipeline.rare_classes`). The
transforms of mmcv and mmsegmentation draw from the global streams of numpy and Python; these are
seeded from the sample's own generator for the time of one sample, so that a sample does not depend
on order, workers or processes.
"""

import contextlib
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.errors import UserError
from pipeline.rare_classes import ClassIndex

TRIES = 10


@dataclass(frozen=True)
class SelfTraining:
    """How unlabelled pictures are learned from."""

    target: Path | None = None
    """folder of unlabelled pictures; as many as labelled ones join each batch"""
    start: int = 0
    """updates on labelled pictures alone, before the average is worth asking"""
    ema_decay: float = 0.999
    """of the moving average of the trained weights"""
    confidence: float = 0.968
    """probability from which a pixel of the average's prediction counts as a label"""


def check_share(share: float, generated: Path | None) -> None:
    """Raise `UserError` unless the share of generated samples and the generated set agree."""
    if not 0 <= share <= 1:
        raise UserError(f"--generated-share {share}: must be within 0..1")
    if generated is None and share > 0:
        raise UserError(f"--generated-share {share} needs --generated DIR")
    if generated is not None and share == 0:
        raise UserError("--generated is given but --generated-share is 0; raise it or drop the set")


@contextlib.contextmanager
def seeded_globals(seed: int) -> Iterator[None]:
    """Seed the global streams of numpy and Python inside the block; restore them after it."""
    numpy_state, python_state = np.random.get_state(), random.getstate()
    np.random.seed(seed % 2**32)
    random.seed(seed)
    try:
        yield
    finally:
        np.random.set_state(numpy_state)
        random.setstate(python_state)


class MixedSamples:
    """Draws one transformed sample at a time: the `draw` of `pipeline.seeding.DrawnSamples`."""

    def __init__(
        self, source: Any, generated: Any | None, share: float, *,
        rare: dict[str, ClassIndex] | None = None, min_pixels: int = 0,
    ) -> None:  # fmt: skip
        """`rare`: the classes of "source" and "generated". A crop is drawn up to ten times until it
        has more than half of `min_pixels` of the class, as in DAFormer."""
        self.sets, self.share = {"source": source, "generated": generated}, share
        self.rare, self.min_pixels = rare or {}, min_pixels

    def __call__(self, rng: np.random.Generator) -> Any:
        """Return one sample as packed by the recipe's transforms."""
        name = "generated" if rng.random() < self.share else "source"
        dataset = self.sets[name]
        if name not in self.rare:
            return self._transformed(dataset, int(rng.integers(len(dataset))), rng)
        wanted, number = self.rare[name].draw(rng)
        for _ in range(TRIES):
            sample = self._transformed(dataset, number, rng)
            shown = int((sample["data_samples"].gt_sem_seg.data == wanted).sum())
            if shown > self.min_pixels / 2:
                break
        return sample

    def _transformed(self, dataset: Any, number: int, rng: np.random.Generator) -> Any:
        with seeded_globals(int(rng.integers(2**63))):
            return dataset.pipeline(dataset.get_data_info(number))
