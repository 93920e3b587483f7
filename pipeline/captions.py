"""The words that name the classes of a label map, in captions of trainings and in prompts.

A ControlNet is used as it was trained if prompts name classes in the way the captions did. So both
come from these two functions.
"""

from collections.abc import Sequence

import numpy as np

from pipeline.labels import CLASS_NAMES, NUM_CLASSES


def present_classes(
    label: np.ndarray, rng: np.random.Generator, *, max_classes: int = 0, min_share: float = 0.0
) -> list[int]:
    """Return the train ids that a label map HxW shows, in ascending order and without void.

    Classes with less than `min_share` (0..1) of the pixels are left out. If more than `max_classes`
    remain, that many are sampled with `rng`; 0 keeps all.
    """
    counts = np.bincount(label.ravel(), minlength=256)[:NUM_CLASSES]
    present = np.flatnonzero((counts > 0) & (counts >= min_share * label.size))
    if max_classes and present.size > max_classes:
        present = np.sort(rng.choice(present, max_classes, replace=False))
    return present.tolist()


def join_class_names(classes: Sequence[int], separator: str, last: str) -> str:
    """Join the names of train ids; `last` stands before the last name, `separator` elsewhere."""
    names = [CLASS_NAMES[i] for i in classes]
    if len(names) < 2:
        return "".join(names)
    return separator.join(names[:-1]) + last + names[-1]
