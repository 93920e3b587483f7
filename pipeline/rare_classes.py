"""Rare class sampling: a class is sampled, then a file that holds it.

DAFormer (Hoyer et al., CVPR 2022, eq. 10).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from pipeline import labels
from pipeline.dataset import Sample
from pipeline.errors import UserError
from pipeline.setting_checks import require_between, require_positive


@dataclass(frozen=True)
class RareClassSampling:
    """Sampling of files with rare classes more often."""

    enabled: bool = True
    """False samples files and crops uniformly"""
    temperature: float = 0.01
    """temperature of the softmax over 1 - class frequency; smaller samples rare classes more
    often"""
    min_pixels: int = 3000
    """a file contains a class if it has more pixels of the class than this"""

    def check(self, prefix: str = "rare-classes.") -> None:
        """Raise `UserError` for numbers that cannot work; `prefix` is the flag of the group."""
        require_positive(self, "temperature", prefix=prefix)
        require_between(self, 0, math.inf, "min_pixels", prefix=prefix)


def class_probabilities(pixels: np.ndarray, usable: np.ndarray, temperature: float) -> np.ndarray:
    """Return the probability of each class: softmax((1 - frequency) / T) over `usable` ones.

    `pixels`: pixels per class of the whole dataset. `usable`: bool per class, one at least.
    """
    frequency = pixels / max(pixels.sum(), 1)
    score = np.where(usable, (1 - frequency) / temperature, -np.inf)
    weight = np.exp(score - score.max())
    return weight / weight.sum()


@dataclass
class ClassIndex:
    """Which files hold which class. `probabilities` sums to 1 over the 19 classes."""

    probabilities: np.ndarray
    files_with_class: list[np.ndarray] = field(repr=False)

    def sample(self, rng: np.random.Generator) -> tuple[int, int]:
        """Sample a class and the number of a file that holds it."""
        wanted = int(rng.choice(labels.NUM_CLASSES, p=self.probabilities))
        return wanted, int(rng.choice(self.files_with_class[wanted]))


def index_classes(samples: Sequence[Sample], sampling: RareClassSampling) -> ClassIndex:
    """Count the class pixels of all labels and derive the class probabilities.

    Rows of prepared datasets carry the counts; their labels are not read again. Raises `UserError`
    for a temperature not above 0, and if no file holds any class.
    """
    if sampling.temperature <= 0:
        raise UserError(f"rare class sampling: temperature {sampling.temperature} must be above 0")
    counts = np.zeros((len(samples), labels.NUM_CLASSES), dtype=np.int64)
    for i, sample in enumerate(samples):
        counts[i] = sample.class_pixels
    holders = [np.flatnonzero(counts[:, c] > sampling.min_pixels) for c in range(counts.shape[1])]
    usable = np.array([len(h) > 0 for h in holders])
    if not usable.any():
        raise UserError(
            f"rare class sampling: no file has more than {sampling.min_pixels} pixels of any "
            "class; lower min_pixels"
        )
    return ClassIndex(class_probabilities(counts.sum(0), usable, sampling.temperature), holders)
