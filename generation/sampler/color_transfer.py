"""Details from the source image, colours from the generated one.

A small diffusion model knows better what a foggy street looks like than what a car looks like.
Where the label map comes with its image, that image has every edge in its place. Each class of
it gets the mean and the contrast that the class has in the generated image, in a window around
each pixel (Reinhard et al., Color Transfer between Images, 2001, "Statistics and color
correction"; local and per region as in Tai et al., Local Color Transfer via Probabilistic
Segmentation, CVPR 2005).
"""

import cv2
import numpy as np

from pipeline.lab_colors import from_lab, to_lab


def transfer_details(
    generated: np.ndarray, source: np.ndarray, label: np.ndarray, window_px: float
) -> np.ndarray:
    """Return HxWx3 uint8: the details of `source` in the local colours of `generated`.

    Both are HxWx3 uint8 RGB, `label` HxW of any ids (void counts as a class). `window_px`: standard
    deviation of the Gaussian window. Contrast is only ever lowered: what is flat in the source
    stays flat. Statistics are taken in CIE L*a*b*, whose channels are nearly independent.
    """
    wanted, given = to_lab(generated), to_lab(source)
    result = np.empty_like(given)
    for class_id in np.unique(label):
        rows, columns = (np.flatnonzero((label == class_id).any(axis)) for axis in (1, 0))
        box = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
        shown = label[box] == class_id
        inside = shown.astype(np.float32)[..., None]
        weight = np.maximum(_blur(inside, window_px), 1e-6)[..., None]
        mean, contrast = _statistics(given[box], inside, weight, window_px)
        new_mean, new_contrast = _statistics(wanted[box], inside, weight, window_px)
        scale = np.minimum(new_contrast / np.maximum(contrast, 1e-3), 1)
        result[box][shown] = (new_mean + scale * (given[box] - mean))[shown]
    return from_lab(result)


def _blur(values: np.ndarray, window_px: float) -> np.ndarray:
    """Blur by a Gaussian, zero outside; wide ones at a lower resolution, which costs less."""
    height, width = values.shape[:2]
    shrink = max(1, int(window_px / 6))
    size = (max(1, width // shrink), max(1, height // shrink))
    small = cv2.resize(values, size, interpolation=cv2.INTER_AREA)
    blurred = cv2.GaussianBlur(small, (0, 0), window_px / shrink, borderType=cv2.BORDER_CONSTANT)
    return cv2.resize(blurred, (width, height), interpolation=cv2.INTER_LINEAR)


def _statistics(
    values: np.ndarray, inside: np.ndarray, weight: np.ndarray, window_px: float
) -> tuple[np.ndarray, np.ndarray]:
    """Return local mean and standard deviation HxWx3 of the pixels where `inside` HxWx1 is 1.

    `weight`: `inside` blurred, HxWx1.
    """
    mean = _blur(values * inside, window_px) / weight
    square = _blur(values**2 * inside, window_px) / weight
    return mean, np.sqrt(np.maximum(square - mean**2, 0))
