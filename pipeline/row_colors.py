"""Colour transfer by rows: an image takes on the colours that another has at the same height.

Street scenes share their layout from top to bottom: sky, buildings, road. So mean and deviation are
taken per row and not over the whole image, as Reinhard et al. do (Color Transfer between Images,
2001, "Statistics and color correction"). A night keeps its dark sky above lit streets.
"""

import cv2
import numpy as np

from pipeline.lab_colors import from_lab, to_lab

SMOOTHING = 0.08  # standard deviation of the window over rows, as a share of the image height
MOST_ROWS = 256  # larger images are sampled for their statistics
MIN_STD = 2.0  # in L*a*b*; noise of rows with one flat colour is not amplified beyond this
SCALES = 0.25, 2.0  # limits of the change in contrast


def transfer_row_colors(image: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Return `image` with the colours that `target` has at the same relative height.

    Both are HxWx3 uint8 sRGB of any size; so is the result, at the size of `image`. Each row gets
    mean and deviation of each channel in CIE L*a*b*.
    """
    rows = len(image)
    mean, deviation = _row_statistics(image, rows)
    new_mean, new_deviation = _row_statistics(target, rows)
    scale = np.clip(new_deviation / np.maximum(deviation, MIN_STD), *SCALES)
    return from_lab((to_lab(image) - mean) * scale + new_mean)


def _row_statistics(image: np.ndarray, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and standard deviation of each row, smoothed and resampled to `rows` x 1 x 3."""
    step = max(1, len(image) // MOST_ROWS)
    lab = to_lab(image[::step, ::step])
    moments = np.concatenate([lab.mean(1), (lab**2).mean(1)], axis=1)  # rows x 6
    sigma = SMOOTHING * len(lab)
    window = 2 * int(3 * sigma) + 1
    moments = cv2.GaussianBlur(
        moments, (1, window), sigmaX=1, sigmaY=sigma, borderType=cv2.BORDER_REPLICATE
    )
    moments = cv2.resize(moments, (6, rows), interpolation=cv2.INTER_LINEAR)
    mean, square = moments[:, None, :3], moments[:, None, 3:]
    return mean, np.sqrt(np.maximum(square - mean**2, 0))
