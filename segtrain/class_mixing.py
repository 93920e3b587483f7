"""Class mixing: half of the classes of one sample are pasted onto another.

DACS (Tranheden et al., WACV 2021) pastes labelled source images onto images of the target; here
both samples are labelled, one from the source, say, and one generated, so nothing is guessed.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.errors import UserError
from pipeline.labels import VOID


@dataclass(frozen=True)
class ClassMixing:
    """A recipe's `class_mixing`."""

    probability: float = 0.5
    """that classes of a sample of another set are pasted onto a sample"""

    def __post_init__(self) -> None:
        number = isinstance(self.probability, int | float)
        if not number or not 0 < self.probability <= 1:
            raise UserError(
                f"class_mixing.probability {self.probability!r}: must be above 0 and at most 1"
            )


def read_class_mixing(recipe: Any) -> ClassMixing | None:
    """Return the settings of a recipe, None if it mixes no classes."""
    options = recipe.get("class_mixing")
    if options is None:
        return None
    if not isinstance(options, dict) or set(options) - {"probability"}:
        raise UserError(f"class_mixing {options!r:.80}: must be dict(probability=...)")
    return ClassMixing(**options)


def paste_classes(sample: Any, other: Any, rng: np.random.Generator) -> None:
    """Paste half of the classes of a packed sample, rounded up, onto `sample` in place.

    Void is not pasted. Where the sizes differ, both meet at their upper left corners.
    """
    below, above = (one["data_samples"].gt_sem_seg.data for one in (sample, other))
    height, width = (min(a, b) for a, b in zip(below.shape[-2:], above.shape[-2:], strict=True))
    label = above[..., :height, :width]
    classes = [int(value) for value in label.unique() if value != VOID]
    count = (len(classes) + 1) // 2  # at least one, unless all pixels are void
    pasted = rng.choice(classes, count, replace=False).tolist() if classes else []
    mask = label[0] == VOID
    mask[:] = False
    for class_id in pasted:
        mask |= label[0] == class_id
    below[0, :height, :width][mask] = label[0][mask]
    sample["inputs"][:, :height, :width][:, mask] = other["inputs"][:, :height, :width][:, mask]
