"""What every sample will be: a pure function of (settings, seed, index), without torch.

A sample is settled in two parts. `make_plan` settles class, label map, condition, time and place
from the statistics of the label maps alone, so a plan of 50,000 samples costs a second.
`place_crop` settles the crop once the label map is read. Item i does not depend on n, on the number
of processes or on any other item.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np

from generation.prompts import Grammar, Name, quota_sequence
from pipeline.labels import NUM_CLASSES
from pipeline.rare_classes import RareClassSampling, class_probabilities
from pipeline.seeding import numpy_generator, seed_of

CROP_TRIES = 10
PLAN_VERSION = 2
"""Plans of another version are not continued. Those of version 1 depended on the order in which a
grammar names its conditions, times and places."""


@dataclass(frozen=True, slots=True)
class PlanItem:
    """Sample `index` before its label map is read."""

    index: int
    label_map: int
    """Position in the list of label maps."""
    rare_class: int | None
    """Train id the label map was chosen for; None without rare class sampling."""
    condition: str
    time: str
    place: str


@dataclass(frozen=True)
class Crop:
    """A window of a label map, in pixels."""

    top: int
    left: int
    height: int
    width: int

    def of(self, array: np.ndarray) -> np.ndarray:
        """Return the window of an HxW array as a contiguous copy."""
        return array[self.top : self.top + self.height, self.left : self.left + self.width].copy()


class Planner:
    """Makes plans from the class statistics of the label maps.

    `counts`: label maps x 19 pixels per class. Rare class sampling follows DAFormer, equation 10,
    as in DGInStyle; without it, or if no map serves any class, maps are sampled evenly.
    """

    def __init__(
        self,
        counts: np.ndarray,
        grammar: Grammar,
        *,
        seed: int,
        sampling: RareClassSampling,
    ) -> None:
        self.grammar, self.seed = grammar, seed
        self.num_label_maps = len(counts)
        self.serving: list[np.ndarray] = [
            np.flatnonzero(counts[:, c] > sampling.min_pixels) for c in range(NUM_CLASSES)
        ]
        usable = np.array([s.size > 0 for s in self.serving])
        self.probabilities: np.ndarray | None = None
        if sampling.enabled and usable.any():
            self.probabilities = class_probabilities(
                counts.sum(axis=0), usable, sampling.temperature
            )

    def make_plan(self, n: int) -> list[PlanItem]:
        """Return the first `n` items.

        Conditions come by quota, times and places by quota within their condition.
        """
        grammar = self.grammar
        condition_shares = {name: c.share for name, c in grammar.conditions.items()}
        conditions = self._deal(condition_shares, n, "conditions")
        scenes = {}
        for name in set(conditions):
            pairs = product(grammar.conditions[name].times.items(), grammar.places.items())
            shares = {(time, place): a * b for (time, a), (place, b) in pairs}
            scenes[name] = iter(self._deal(shares, conditions.count(name), f"scenes of {name}"))
        return [
            PlanItem(index, label_map, rare_class, condition, *next(scenes[condition]))
            for index, (label_map, rare_class, condition) in enumerate(
                zip(*self._sample_label_maps(n), conditions, strict=True)
            )
        ]

    def _deal(self, shares: Mapping[Name, float], n: int, purpose: str) -> list[Name]:
        order = numpy_generator(self.seed, purpose).permutation(len(shares))
        return quota_sequence(dict(sorted(shares.items())), n, order)

    def _sample_label_maps(self, n: int) -> tuple[list[int], list[int | None]]:
        """Return the label map and the rare class of the first `n` items.

        Item i takes numbers 2i and 2i+1 of one stream, so it does not depend on the others.
        """
        first, second = numpy_generator(self.seed, "plan").random((n, 2)).T
        if self.probabilities is None:
            return (second * self.num_label_maps).astype(int).tolist(), [None] * n
        edges = np.cumsum(self.probabilities)
        classes = np.searchsorted(edges / edges[-1], first, side="right")
        label_maps = np.empty(n, dtype=int)
        for class_id in np.unique(classes):
            chosen, serving = classes == class_id, self.serving[class_id]
            label_maps[chosen] = serving[(second[chosen] * serving.size).astype(int)]
        return label_maps.tolist(), classes.tolist()


def noise_seed(seed: int, index: int, attempt: int) -> int:
    """Return the seed of all noise of sample `index`; `attempt` counts retries from 0."""
    return seed_of(seed, "noise", index, attempt)


def place_crop(
    label: np.ndarray, item: PlanItem, *, seed: int, size: Sequence[int], min_share: float
) -> Crop:
    """Choose the window of `size` (height, width) for `item` in its HxW label map.

    With rare class sampling it is centred on a random pixel of the class, clamped to the map, and
    chosen again up to ten times until the class covers more than `min_share` of it; the last try
    stands. Otherwise it is uniform. A map of the crop's own size is taken whole.
    """
    height, width = size
    spare = label.shape[0] - height, label.shape[1] - width
    if spare == (0, 0):
        return Crop(0, 0, height, width)
    rng = numpy_generator(seed, "crop", item.index)
    if item.rare_class is None:
        return Crop(int(rng.integers(spare[0] + 1)), int(rng.integers(spare[1] + 1)), height, width)
    rows, columns = np.nonzero(label == item.rare_class)
    crop = Crop(0, 0, height, width)
    for _ in range(CROP_TRIES):
        pixel = int(rng.integers(rows.size))
        top = int(np.clip(rows[pixel] - height // 2, 0, spare[0]))
        left = int(np.clip(columns[pixel] - width // 2, 0, spare[1]))
        crop = Crop(top, left, height, width)
        if (crop.of(label) == item.rare_class).mean() > min_share:
            break
    return crop
