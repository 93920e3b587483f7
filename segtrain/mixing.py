"""Draws training samples from named sets at explicit shares.

Each sample comes from a set with the probability of its share, whatever the sizes of the
sets, and is uniform within its set, or shows a rare class (`pipeline.rare_classes`). The
transforms of mmcv and mmsegmentation use the global streams of numpy and Python; these are
seeded from the sample's own generator for the time of one sample, so that a sample does not depend
on order, workers or processes.
"""

import contextlib
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.rare_classes import ClassIndex, RareClassSampling
from pipeline.seeding import numpy_generator
from pipeline.setting_checks import require_between
from segtrain.class_mixing import ClassMixing, paste_classes

MAX_CROPS = 10  # of one image, in search of a rare class
LEAST_SHARE = 1e-9  # less is 0 with an error of rounding


@dataclass(frozen=True)
class RareClassCrops(RareClassSampling):
    """Sampling of files and crops with rare classes more often."""

    min_crop_ratio: float = 0.5
    """crops are sampled again (10 tries) until one has more pixels of the class than this times
    min_pixels; DAFormer takes 0.5, HRDA 2.0 for crops of four times the area"""

    def check(self, prefix: str = "rare-classes.") -> None:
        """Raise `UserError` for numbers that cannot work; `prefix` is the flag of the group."""
        super().check(prefix)
        require_between(self, 0, 1e6, "min_crop_ratio", prefix=prefix)


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
        min_crop_pixels: float = 0,
        class_mixing: ClassMixing | None = None,
    ) -> None:
        """`datasets` and `shares` by the names of the sets; the last set takes what the others
        leave. `rare`: the classes of the sets by name. A crop is sampled up to ten times until it
        has more than `min_crop_pixels` of the class, as in DAFormer. With `class_mixing` some
        samples receive classes of a sample of another set, chosen by the shares, or of their own if
        it is the only one.
        """
        self.datasets = dict(datasets)
        self.names = list(self.datasets)
        shares = shares or {}
        self.bounds = np.cumsum([shares[name] for name in self.names[:-1]])
        ends = [0.0, *self.bounds, 1.0]
        self.shares = dict(zip(self.names, np.diff(ends).tolist(), strict=True))
        self.rare, self.min_crop_pixels = rare or {}, min_crop_pixels
        self.class_mixing = class_mixing

    def __call__(self, rng: np.random.Generator) -> Any:
        """Return one sample as packed by the transforms of its set.

        Its `set` among the metadata is the set's name, `pasted` that of the set whose classes were
        pasted onto it.
        """
        name = self._draw_set(rng)
        sample = self._draw_from(name, rng)
        sample["data_samples"].set_metainfo({"set": name})
        if self.class_mixing and rng.random() < self.class_mixing.probability:
            other = self._draw_other(name, rng)
            paste_classes(sample, self._draw_from(other, rng), rng)
            sample["data_samples"].set_metainfo({"pasted": other})
        return sample

    def _draw_set(self, rng: np.random.Generator) -> str:
        return self.names[int(np.searchsorted(self.bounds, rng.random(), side="right"))]

    def _draw_other(self, name: str, rng: np.random.Generator) -> str:
        shares = {n: s for n, s in self.shares.items() if n != name and s >= LEAST_SHARE}
        if not shares:
            return name
        weights = np.array(list(shares.values()))
        return str(rng.choice(list(shares), p=weights / weights.sum()))

    def never_sampled(self, seed: int, n: int) -> set[str]:
        """Return the names of the sets from which none of the first `n` samples of a seed comes.

        The seed is that of `pipeline.seeding.SeededSamples`; no sample is read.
        """
        missing = set(self.names)
        for position in range(n):
            missing.discard(self._draw_set(numpy_generator(seed, "sample", position)))
            if not missing:
                break
        return missing

    def _draw_from(self, name: str, rng: np.random.Generator) -> Any:
        dataset = self.datasets[name]
        if name not in self.rare:
            return self._transformed(dataset, int(rng.integers(len(dataset))), rng)
        rare_class, number = self.rare[name].sample(rng)
        for _ in range(MAX_CROPS):
            sample = self._transformed(dataset, number, rng)
            num_pixels = int((sample["data_samples"].gt_sem_seg.data == rare_class).sum())
            if num_pixels > self.min_crop_pixels:
                break
        return sample

    def _transformed(self, dataset: Any, number: int, rng: np.random.Generator) -> Any:
        with seeded_globals(int(rng.integers(2**63))):
            return dataset.pipeline(dataset.get_data_info(number))
