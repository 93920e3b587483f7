"""What is counted of one image: all that scores are computed from, so that images add up.

Boundary IoU: Cheng et al., "Boundary IoU: Improving Object-Centric Image Segmentation Evaluation",
CVPR 2021. Calibration: Guo et al., "On Calibration of Modern Neural Networks", ICML 2017.
"""

from dataclasses import dataclass

import cv2
import numpy as np

from pipeline.iou import AREAS, boundary_px
from pipeline.labels import VOID
from pipeline.small_objects import NUM_COUNTS, small_objects
from segtrain.protocol import Protocol

BOUNDARY_SHARE = 0.02  # of the diagonal: the boundary's width in the paper
SMALL_SHARE = 0.001  # of an image's pixels: the largest small object, as in generation/score.py
BINS = 15  # of confidence, from 0 to 1
CALIBRATION = 3  # of a bin: pixels, sum of confidences, pixels predicted rightly


@dataclass(frozen=True)
class Counts:
    """What was counted in one image, or in many, over K classes and "other"."""

    confusion: np.ndarray
    """(K+1)x(K+1) int64 pixels by class in the label (rows) and class predicted (columns)"""
    boundary: np.ndarray
    """3xK int64 pixels on boundaries: in both, predicted, labelled"""
    objects: np.ndarray
    """4xK int64 of small objects: found, all, their pixels predicted rightly, all their pixels"""
    calibration: np.ndarray
    """3xBINS float64: pixels, sum of confidences, pixels predicted rightly; 0 without confidence"""

    def __add__(self, other: "Counts") -> "Counts":
        """Return the counts of both."""
        return Counts(
            self.confusion + other.confusion,
            self.boundary + other.boundary,
            self.objects + other.objects,
            self.calibration + other.calibration,
        )

    @property
    def areas(self) -> np.ndarray:
        """3xK pixels of each class: in both, predicted, labelled (see `pipeline.iou`)."""
        pixels = self.confusion
        return np.stack([pixels.diagonal(), pixels.sum(0), pixels.sum(1)])[:, :-1]


def empty(num_classes: int) -> Counts:
    """Return the counts of no image."""
    return Counts(
        np.zeros((num_classes + 1, num_classes + 1), np.int64),
        np.zeros((AREAS, num_classes), np.int64),
        np.zeros((NUM_COUNTS, num_classes), np.int64),
        np.zeros((CALIBRATION, BINS)),
    )


def measure(
    predicted: np.ndarray,
    label: np.ndarray,
    confidence: np.ndarray | None = None,
    protocol: Protocol | None = None,
) -> Counts:
    """Count one image: train ids HxW predicted and labelled, confidences HxW of 0..1 if known.

    Pixels that are void in the label do not count. Where the protocol merges classes, confidences
    stay those of the class that was predicted.
    """
    protocol = protocol or Protocol()
    found, truth = protocol.merge(predicted), protocol.merge(label)
    num_classes = len(protocol.class_names)
    found = np.minimum(found, num_classes)  # what is no class is "other"
    return Counts(
        confusion_of(found, truth, num_classes),
        boundary_areas(found, truth, num_classes),
        small_objects(truth, found, SMALL_SHARE * label.size, num_classes),
        calibration_of(found, truth, confidence),
    )


def confusion_of(found: np.ndarray, truth: np.ndarray, num_classes: int) -> np.ndarray:
    """Return the confusion matrix (K+1)x(K+1) of two maps HxW of ids up to K; void is left out."""
    side = num_classes + 1
    valid = truth != VOID
    pairs = truth[valid].astype(np.int64) * side + found[valid]
    return np.bincount(pairs, minlength=side * side).reshape(side, side)


def boundary_areas(found: np.ndarray, truth: np.ndarray, num_classes: int) -> np.ndarray:
    """Return 3xK pixels of each class on boundaries: in both, predicted, labelled.

    The boundary of a class are its pixels within `BOUNDARY_SHARE` of the image's diagonal of a
    pixel of another class or of the image's edge. Void makes no boundary and does not count.
    """
    width = boundary_px(truth.shape[0], truth.shape[1], BOUNDARY_SHARE)
    void = truth == VOID
    on_truth = near_boundary(truth, width) & ~void
    on_found = near_boundary(np.where(void, VOID, found), width) & ~void
    both = on_truth & on_found & (found == truth)
    ids = (truth[both], found[on_found], truth[on_truth])
    return np.stack([np.bincount(each, minlength=256)[:num_classes] for each in ids])


def near_boundary(ids: np.ndarray, width_px: int) -> np.ndarray:
    """Return the mask HxW of pixels whose class ends within `width_px` (chessboard distance).

    The smallest and the largest id around a pixel differ there. This is the erosion of every
    class's mask at once. What lies outside of the image is of no class; void (255) is ignored.
    """
    outside, void = 254, ids == VOID
    smallest = cv2.copyMakeBorder(ids, 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=outside)
    largest = smallest.copy()
    smallest[1:-1, 1:-1][void] = 255  # never the smallest
    largest[1:-1, 1:-1] += 1
    largest[1:-1, 1:-1][void] = 0  # never the largest
    largest[[0, -1]] = largest[:, [0, -1]] = outside + 1
    side = 2 * width_px + 1
    window = np.ones((side, side), np.uint8)
    low = cv2.erode(smallest, window)[1:-1, 1:-1]
    high = cv2.dilate(largest, window)[1:-1, 1:-1]
    return high - 1 != low


def calibration_of(
    found: np.ndarray, truth: np.ndarray, confidence: np.ndarray | None
) -> np.ndarray:
    """Return 3xBINS: pixels, sum of confidences and right pixels, by equal steps of confidence."""
    if confidence is None:
        return np.zeros((CALIBRATION, BINS))
    valid = truth != VOID
    sure = confidence[valid].astype(np.float64)
    bins = np.minimum((sure * BINS).astype(np.intp), BINS - 1)
    right = (found == truth)[valid]
    weights = (None, sure, right.astype(np.float64))
    return np.stack([np.bincount(bins, each, minlength=BINS).astype(float) for each in weights])
