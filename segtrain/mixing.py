"""Draws training samples from named sets at explicit shares.

Each drawn sample comes from a set with the probability of its share, whatever the sizes of the
sets, and is uniform within its set, or shows a rare class (`pipeline.rare_classes`). The
transforms of mmcv and mmsegmentation draw from the global streams of numpy and Python; these are
seeded from the sample's own generator for the time of one sample, so that a sample does not depend
on order, workers or processes.
"""

import contextlib
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.rare_classes import ClassIndex
from segtrain.class_mixing import ClassMixing, paste_classes

TRIES = 10


@dataclass(frozen=True)
class SelfTraining:
    """Settings of the training on unlabelled images."""

    target: Path | None = None
    """folder of unlabelled images; each batch has as many of them as labelled ones"""
    start: int = 0
    """updates on labelled images only, before the EMA teacher assigns pseudo-labels"""
    ema_decay: float = 0.999
    """of the moving average of the trained weights"""
    confidence: float = 0.968
    """probability from which a pixel of the average's prediction counts as a label"""


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
    """Returns one transformed sample at a time, for `pipeline.seeding.SeededSamples`."""

    def __init__(
        self,
        datasets: Mapping[str, Any],
        shares: Mapping[str, float] | None = None,
        *,
        rare: Mapping[str, ClassIndex] | None = None,
        min_pixels: int = 0,
        class_mixing: ClassMixing | None = None,
    ) -> None:
        """`datasets` and `shares` by the names of the sets; the last set takes what the others
        leave. `rare`: the classes of the sets by name. A crop is drawn up to ten times until it has
        more than half of `min_pixels` of the class, as in DAFormer. With `class_mixing` some
        samples receive classes of a sample of another set, or of their own if it is the only one.
        """
        self.datasets = dict(datasets)
        self.names = list(self.datasets)
        shares = shares or {}
        self.bounds = np.cumsum([shares[name] for name in self.names[:-1]])
        self.rare, self.min_pixels = rare or {}, min_pixels
        self.class_mixing = class_mixing

    def __call__(self, rng: np.random.Generator) -> Any:
        """Return one sample as packed by the transforms of its set.

        Its `set` among the metadata is the set's name.
        """
        name = self.names[int(np.searchsorted(self.bounds, rng.random(), side="right"))]
        sample = self._draw_from(name, rng)
        sample["data_samples"].set_metainfo({"set": name})
        if self.class_mixing and rng.random() < self.class_mixing.probability:
            others = [other for other in self.names if other != name] or [name]
            paste_classes(sample, self._draw_from(str(rng.choice(others)), rng), rng)
        return sample

    def _draw_from(self, name: str, rng: np.random.Generator) -> Any:
        dataset = self.datasets[name]
        if name not in self.rare:
            return self._transformed(dataset, int(rng.integers(len(dataset))), rng)
        wanted, number = self.rare[name].sample(rng)
        for _ in range(TRIES):
            sample = self._transformed(dataset, number, rng)
            shown = int((sample["data_samples"].gt_sem_seg.data == wanted).sum())
            if shown > self.min_pixels / 2:
                break
        return sample

    def _transformed(self, dataset: Any, number: int, rng: np.random.Generator) -> Any:
        with seeded_globals(int(rng.integers(2**63))):
            return dataset.pipeline(dataset.get_data_info(number))
