"""Intersection over union by class: the one rule for all that is scored against a label map.

The rule of the field, as cityscapesscripts and mmsegmentation's `IoUMetric` have it: pixels are
summed over all images of a set, void pixels of the label do not count, and a class without a pixel
in label and prediction has no IoU (null) and is left out of the mean. A class that is predicted
somewhere but is in no label has the IoU 0 and counts. Counts are whole numbers, so no pixel is lost
in large sets.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from pipeline import labels

AREAS = 3  # intersection, prediction, ground truth


def areas_of(
    prediction: np.ndarray, label: np.ndarray, num_classes: int = labels.NUM_CLASSES
) -> np.ndarray:
    """Return the pixels of each class in one image, 3xK int64: in both, predicted, labelled.

    Both are HxW ids. Pixels that are void in `label` do not count; ids of the prediction from
    `num_classes` on are of no class, so they are only missing where they stand.
    """
    valid = label != labels.VOID
    found, truth = prediction[valid], label[valid]
    return np.stack(
        [
            np.bincount(ids, minlength=256)[:num_classes]
            for ids in (truth[found == truth], found, truth)
        ]
    )


def image_miou(areas: np.ndarray) -> float | None:
    """Return the mean IoU in percent over the classes that the label of one image holds.

    Other than over a set, a class that is predicted but not in the label has no IoU of its own
    here: in one image a single stray pixel would cost as much as a whole class.
    """
    both, predicted, labelled = areas.astype(np.float64)
    held = labelled > 0
    if not held.any():
        return None
    return float(100 * (both[held] / (predicted + labelled - both)[held]).mean())


def boundary_px(height: int, width: int, share: float) -> int:
    """Return the width of boundaries: a share of the image's diagonal as in Boundary IoU, 1 px or
    more.
    """
    return max(1, round(share * float(np.hypot(height, width))))


def percent(part: float, whole: float) -> float | None:
    """Return a share in percent, None of nothing."""
    return float(100 * part / whole) if whole else None


def score_of(
    areas: np.ndarray, num_images: int, names: Sequence[str] = labels.CLASS_NAMES
) -> dict[str, Any]:
    """Turn summed areas 3xK into percentages: `miou`, `iou` by class, and what is left out of it.

    `num_classes` is the number of classes in the mean, `absent` names the others.
    """
    both, predicted, labelled = areas.astype(np.float64)
    union = predicted + labelled - both
    named = {
        name: float(100 * part / whole) if whole else None
        for name, part, whole in zip(names, both, union, strict=True)
    }
    counted = [value for value in named.values() if value is not None]
    return {
        "miou": sum(counted) / len(counted) if counted else None,
        "num_classes": len(counted),
        "iou": named,
        "absent": [name for name, value in named.items() if value is None],
        "images": num_images,
    }
