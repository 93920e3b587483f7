"""Small objects of a label map, and what a prediction finds of them.

An object is a connected component (8 neighbours) of one class. It is small if it has `LEAST_PX` to
`largest_px` pixels, and found if at least `FOUND_SHARE` of its pixels are predicted as its class.
"""

import cv2
import numpy as np

from pipeline.labels import NUM_CLASSES

FOUND_SHARE = 0.5
LEAST_PX = 4  # smaller components are crumbs of the label map, not objects
NUM_COUNTS = 4  # rows of what `small_objects` returns


def small_objects(
    label: np.ndarray,
    predicted: np.ndarray,
    largest_px: float,
    num_classes: int = NUM_CLASSES,
) -> np.ndarray:
    """Count the small objects of two maps HxW of ids; ids from `num_classes` on are no objects.

    Returns 4xK int64: objects found, all objects, their pixels predicted rightly, all their pixels.
    """
    counts = np.zeros((NUM_COUNTS, num_classes), np.int64)
    for class_id in np.unique(label):
        if class_id >= num_classes:
            continue
        mask = label == class_id
        number, parts = cv2.connectedComponents(mask.view(np.uint8), connectivity=8)
        parts = parts[mask]  # of each pixel of the class its component, from 1 on
        sizes = np.bincount(parts, minlength=number)
        right = np.bincount(parts[predicted[mask] == class_id], minlength=number)
        small = (sizes >= LEAST_PX) & (sizes <= largest_px)
        found = right[small] >= FOUND_SHARE * sizes[small]
        counts[:, class_id] = (found.sum(), small.sum(), right[small].sum(), sizes[small].sum())
    return counts
