"""Scores of a network on a target, from the counts of its images."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pipeline.iou import percent, score_of
from segtrain.evaluation import bootstrap
from segtrain.evaluation.counts import Counts
from segtrain.evaluation.rows import Row

NONE = "none"  # condition of images that name none


@dataclass
class Images:
    """The images of one target under one network: sums by condition, and the areas of each."""

    totals: dict[str, Counts] = field(default_factory=dict)
    numbers: dict[str, int] = field(default_factory=dict)
    """images by condition"""
    ids: list[str] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)
    """digests of the labels"""
    conditions: list[str] = field(default_factory=list)
    """of the images"""
    image_areas: list[np.ndarray] = field(default_factory=list)
    """3xK of each image"""

    def add(self, row: Row) -> None:
        """Add the counts of an image."""
        start = self.totals.get(row.condition)
        self.totals[row.condition] = row.counts if start is None else start + row.counts
        self.numbers[row.condition] = self.numbers.get(row.condition, 0) + 1
        self.ids.append(row.id)
        self.labels.append(row.label)
        self.conditions.append(row.condition)
        self.image_areas.append(row.counts.areas)

    @property
    def areas(self) -> np.ndarray:
        """Nx3xK int64."""
        return np.stack(self.image_areas)

    def total(self) -> Counts:
        """Return the counts of all images."""
        first, *rest = self.totals.values()
        return sum(rest, first)


def collect(rows: Iterable[Row]) -> dict[str, dict[str, Images]]:
    """Sort rows by network and target; an image that comes twice is an error of the caller."""
    found: dict[str, dict[str, Images]] = {}
    for row in rows:
        found.setdefault(row.network, {}).setdefault(row.target, Images()).add(row)
    return found


def target_score(images: Images, names: Sequence[str], draws: np.ndarray) -> dict[str, Any]:
    """Return the scores on a target in percent, and on each of its conditions if it has several.

    `interval` is the confidence interval of `miou` from its `draws` (see
    `segtrain.evaluation.bootstrap`).
    """
    score = counts_score(images.total(), len(images.ids), names)
    score["interval"] = bootstrap.interval(draws)
    if len(images.totals) > 1:
        score["conditions"] = {
            condition or NONE: counts_score(counts, images.numbers[condition], names)
            for condition, counts in sorted(images.totals.items())
        }
    return score


def counts_score(counts: Counts, number: int, names: Sequence[str]) -> dict[str, Any]:
    """Return the scores of summed counts in percent: IoU, boundary IoU and small objects."""
    score = score_of(counts.areas, number, names)
    boundary = score_of(counts.boundary, number, names)
    return {
        **score,
        "boundary": {"miou": boundary["miou"], "iou": boundary["iou"]},
        "small_objects": small_objects_score(counts, names),
    }


def small_objects_score(counts: Counts, names: Sequence[str]) -> dict[str, Any]:
    """Return recall (share of objects found) and IoU of small objects, in percent.

    The IoU of a class is over the pixels of its small objects and the pixels where it is predicted
    and not labelled; its larger objects are ignored.
    """
    found, number, right, pixels = counts.objects
    both, predicted, _ = counts.areas
    false = predicted - both
    recall, iou = {}, {}
    for index, name in enumerate(names):
        recall[name] = percent(found[index], number[index])
        union = pixels[index] + false[index]
        iou[name] = percent(right[index], union) if number[index] else None
    counted = [value for value in iou.values() if value is not None]
    return {
        "number": int(number.sum()),
        "recall": percent(found.sum(), number.sum()),
        "miou": float(np.mean(counted)) if counted else None,
        "recall_by_class": recall,
        "iou": iou,
    }


def calibration_score(counts: Counts) -> dict[str, Any] | None:
    """Return the expected calibration error in percent and its bins; None without confidences.

    The error is the mean over pixels of |accuracy - mean confidence| of their bin.
    """
    pixels, confidence, right = counts.calibration
    if not pixels.sum():
        return None
    error = np.abs(right - confidence).sum() / pixels.sum()
    return {
        "ece": float(100 * error),
        "pixels": [int(value) for value in pixels],
        "confidence": [percent(c, n) for c, n in zip(confidence, pixels, strict=True)],
        "accuracy": [percent(r, n) for r, n in zip(right, pixels, strict=True)],
    }


def network_score(
    targets: dict[str, Images], classes: Mapping[str, Sequence[str]]
) -> dict[str, Any]:
    """Return what a score file says of one network: each target, their mean and its interval."""
    draws = {
        name: bootstrap.resampled_mious(images.areas, name) for name, images in targets.items()
    }
    scores = {
        name: target_score(images, classes[name], draws[name]) for name, images in targets.items()
    }
    counted = {name: draws[name] for name in scores if scores[name]["miou"] is not None}
    return {
        "targets": scores,
        "mean_miou": mean_miou(scores),
        "mean_interval": bootstrap.interval(bootstrap.mean_draws(counted)) if counted else None,
        "calibration": {
            name: calibration_score(images.total()) for name, images in targets.items()
        },
    }


def mean_miou(targets: dict[str, Any]) -> float | None:
    """Return the mean mIoU over target folders; each counts once, conditions do not count."""
    values = [score["miou"] for score in targets.values() if score["miou"] is not None]
    return sum(values) / len(values) if values else None
