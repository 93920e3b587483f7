"""Resizing of images and label maps to a size given as (height, width)."""

import cv2
import numpy as np
from PIL import Image


def resize_nearest(array: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize an HxW uint8 or bool map to `size` (height, width) by nearest neighbour."""
    if array.shape == tuple(size):
        return array
    image = Image.fromarray(array.astype(np.uint8))
    resized = np.array(image.resize((size[1], size[0]), Image.Resampling.NEAREST))
    return resized.astype(array.dtype)


def pick_nearest(array: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize an HxW map to `size` (height, width): row i is row floor(i * in / out).

    The rule of `torch.nn.Upsample`, which takes the first pixel of a block where `resize_nearest`
    takes the one in the middle. DGInStyle reduces its mask so.
    """
    rows, columns = (
        np.arange(new) * old // new for new, old in zip(size, array.shape, strict=True)
    )
    return array[np.ix_(rows, columns)]


def resize_lanczos(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize an HxWx3 uint8 image to `size` (height, width) with Pillow's Lanczos filter."""
    if image.shape[:2] == tuple(size):
        return image
    resized = Image.fromarray(image).resize((size[1], size[0]), Image.Resampling.LANCZOS)
    return np.array(resized)


def resize_area(
    array: np.ndarray, size_px: tuple[int, int], *, nearest: bool = False
) -> np.ndarray:
    """Resize HxW(xC) uint8 to (height, width): area average down, linear interpolation up.

    `nearest` is for label maps: OpenCV's exact nearest neighbour.
    """
    if array.shape[:2] == tuple(size_px):
        return array
    shrink = size_px[0] < array.shape[0]
    mode = cv2.INTER_NEAREST_EXACT if nearest else cv2.INTER_AREA if shrink else cv2.INTER_LINEAR
    return cv2.resize(array, (size_px[1], size_px[0]), interpolation=mode)
