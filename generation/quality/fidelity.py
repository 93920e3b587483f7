"""Does an image show what its label map says, by the eyes of a segmentation network?

All counts are whole numbers of pixels or objects, by class, so those of many images add up. Costs
are -log of the probability that the network gives each class, in nats, KxHxW float32.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from pipeline.images import MAX_PIXELS
from pipeline.iou import AREAS, areas_of, boundary_px, image_miou, percent
from pipeline.labels import NUM_CLASSES, VOID
from pipeline.small_objects import small_objects


@dataclass(frozen=True)
class Counts:
    """What was counted in one image, or in many."""

    areas: np.ndarray
    """3xK pixels: in both, predicted, labelled (see `pipeline.iou`)"""
    band: np.ndarray
    """the same near the boundaries of the label"""
    objects: np.ndarray
    """2xK small objects: found, all"""
    loss: np.ndarray
    """K sums of the cost of the label's class over its pixels, nats"""

    def to_row(self) -> dict[str, Any]:
        """Return the counts as JSON values, with the scores of the one image."""
        return {
            "miou": rounded(image_miou(self.areas)),
            "accuracy": rounded(percent(self.areas[0].sum(), self.areas[2].sum())),
            "band_accuracy": rounded(percent(self.band[0].sum(), self.band[2].sum())),
            "areas": self.areas.tolist(),
            "band": self.band.tolist(),
            "objects": self.objects.tolist(),
            "loss": [round(float(value), 3) for value in self.loss],
        }


def from_row(row: Mapping[str, Any]) -> Counts:
    """Return the counts of a row of `Counts.to_row`."""
    areas, band, objects = (
        np.array(row[name], dtype=np.int64) for name in ("areas", "band", "objects")
    )
    return Counts(areas, band, objects, np.array(row["loss"], dtype=np.float64))


def check_row(row: Any) -> None:
    """Raise `ValueError` unless a row is one of `Counts.to_row`, of all classes."""
    try:
        counts = from_row(row)
        score = row["miou"]
    except (KeyError, TypeError, OverflowError) as error:
        raise ValueError(f"the counts of a network lack sound values ({error})") from None
    shapes = [part.shape for part in (counts.areas, counts.band, counts.objects, counts.loss)]
    if shapes != [(AREAS, NUM_CLASSES), (AREAS, NUM_CLASSES), (2, NUM_CLASSES), (NUM_CLASSES,)]:
        raise ValueError(f"the counts of a network are not those of {NUM_CLASSES} classes")
    whole = (counts.areas, counts.band, counts.objects)
    if any(part.min() < 0 or part.max() > MAX_PIXELS for part in whole):
        raise ValueError("the counts of a network are not numbers of pixels")
    if not np.isfinite(counts.loss).all() or not isinstance(score, int | float | None):
        raise ValueError("the loss or mIoU of a network is not a number")


def total(counts: Iterable[Counts], num_classes: int = NUM_CLASSES) -> Counts:
    """Return the sum of the counts of many images."""
    areas = np.zeros((2, AREAS, num_classes), np.int64)
    objects, loss = np.zeros((2, num_classes), np.int64), np.zeros(num_classes)
    for one in counts:
        areas += np.stack([one.areas, one.band])
        objects, loss = objects + one.objects, loss + one.loss
    return Counts(areas[0], areas[1], objects, loss)


def rounded(value: float | None, digits: int = 2) -> float | None:
    """Return a value for a row or table."""
    return None if value is None else round(float(value), digits)


def boundary_band(label: np.ndarray, width_px: int) -> np.ndarray:
    """Return the mask HxW of pixels within `width_px` of a boundary between two ids of `label`.

    The two pixels on either side of a boundary are at distance 1; distances go in steps of rows,
    columns and diagonals.
    """
    edge = np.zeros(label.shape, np.uint8)
    across, down = label[:, 1:] != label[:, :-1], label[1:] != label[:-1]
    edge[:, 1:] |= across
    edge[:, :-1] |= across
    edge[1:] |= down
    edge[:-1] |= down
    side = 2 * width_px - 1
    return cv2.dilate(edge, np.ones((side, side), np.uint8)).astype(bool)


def label_loss(costs: np.ndarray, label: np.ndarray) -> np.ndarray:
    """Return the cost HxW of the class that the label names; 0 where it is void."""
    ids = np.where(label == VOID, 0, label).astype(np.intp)
    return np.where(label == VOID, 0, np.take_along_axis(costs, ids[None], 0)[0])


def measure(
    costs: np.ndarray, label: np.ndarray, *, band_share: float, small_share: float
) -> Counts:
    """Count agreement of costs KxHxW with the train ids HxW of a label; void does not count."""
    predicted = costs.argmin(0).astype(np.uint8)
    height, width = label.shape
    band = boundary_band(label, boundary_px(height, width, band_share))
    valid = label != VOID
    loss = label_loss(costs, label)
    return Counts(
        areas_of(predicted, label),
        areas_of(predicted, np.where(band, label, VOID).astype(np.uint8)),
        small_objects(label, predicted, small_share * label.size)[:2],  # found, all
        np.bincount(label[valid], loss[valid], minlength=256)[:NUM_CLASSES],
    )
