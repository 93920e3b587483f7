"""Captions of rendered pictures, from a small vocabulary."""

from collections.abc import Sequence

import numpy as np

from pipeline.captions import join_class_names
from pipeline.labels import CLASS_NAMES
from pipeline.pocket.look import PLACES, Look

MAX_CLASSES = 4


def caption(scene_classes: Sequence[int], look: Look, place: str, *, seed: int = 0) -> str:
    """Return a caption that lists at most four of the class ids present, chosen by the seed.

    `place` is a key of PLACES; void (255) is left out.
    """
    rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence((seed, 4))))
    present = sorted({int(c) for c in scene_classes if int(c) < len(CLASS_NAMES)})
    rare_first = np.array([1.0 if c in (0, 1, 2, 10) else 2.0 for c in present])
    count = min(len(present), int(rng.integers(3, MAX_CLASSES + 1)))
    picked: list[int] = []
    if count:
        chosen = rng.choice(len(present), count, replace=False, p=rare_first / rare_first.sum())
        picked = [present[i] for i in sorted(chosen.tolist())]
    things = join_class_names(picked, ", ", " and ") or "houses"
    return (
        f"a city street scene with {things}, {look.weather_phrase} {look.time_phrase}, "
        f"{PLACES[place].phrase}"
    )
