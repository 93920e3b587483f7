"""What people look at of a sample: small copies, overlays, windows, the source image behind it."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

import cv2
import numpy as np
from PIL import Image

from pipeline import labels
from pipeline.dataset import Sample
from pipeline.errors import UserError
from pipeline.images import read_image
from pipeline.paths import Enclosure, check_relative

OVERLAY_SHARE = 0.5
JPEG_QUALITY = 85

T = TypeVar("T")


def spread(items: Sequence[T], count: int) -> list[T]:
    """Return at most `count` items at even distances, in their order."""
    if len(items) <= count:
        return list(items)
    return [items[index * len(items) // count] for index in range(count)]


def shrink(array: np.ndarray, longest_px: int) -> np.ndarray:
    """Return HxWx3 colours or HxW ids so that no side exceeds `longest_px`; none is enlarged.

    Colours are averaged. Ids are those of the nearest pixel.
    """
    height, width = array.shape[:2]
    scale = longest_px / max(height, width)
    if scale >= 1:
        return array
    size = max(1, round(width * scale)), max(1, round(height * scale))
    how = cv2.INTER_NEAREST if array.ndim == 2 else cv2.INTER_AREA
    return cv2.resize(np.ascontiguousarray(array), size, interpolation=how)


def overlay(image: np.ndarray, label: np.ndarray, share: float = OVERLAY_SHARE) -> np.ndarray:
    """Return the image HxWx3 uint8 under the colours of the label HxW; void stays as it is."""
    mixed = image * (1 - share) + labels.colorize(label) * share
    return np.where((label == labels.VOID)[..., None], image, mixed.round()).astype(np.uint8)


def outlined(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Return the image HxWx3 with a white line just outside of a mask HxW uint8 of 0 and 1."""
    ring = cv2.dilate(mask, np.ones((5, 5), np.uint8)) > mask
    return np.where(ring[..., None], np.uint8(255), image)


def encode_jpeg(array: np.ndarray, quality: int = JPEG_QUALITY) -> bytes:
    """Encode HxWx3 uint8 for viewers."""
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, format="JPEG", quality=quality)
    return buffer.getvalue()


def source_image(sample: Sample, source: Path) -> np.ndarray | None:
    """Return the image of the dataset folder `source` that a sample's label map belongs to.

    It is cut as the label map was. None: the rows do not say which one, or it is not there.
    """
    name = sample.row.get("source_label")
    try:
        check_relative(name)
        place = str(name).replace("labels/", "images/", 1)
        Enclosure(source).find(place)
    except (ValueError, UserError):
        return None
    image = read_image(source / place)
    crop = sample.row.get("crop")
    if crop is None:
        return image
    top, left, height, width = crop
    inside = 0 <= top < top + height <= image.shape[0] and 0 <= left < left + width
    if not inside or left + width > image.shape[1]:
        return None
    return image[top : top + height, left : left + width]


def fullest_window(mask: np.ndarray, side: int) -> tuple[int, int, int]:
    """Return (top, left, pixels) of the square window with most pixels of a mask HxW.

    `side` must not exceed the sides of the mask.
    """
    sums = np.pad(mask.cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    inside = sums[side:, side:] - sums[:-side, side:] - sums[side:, :-side] + sums[:-side, :-side]
    top, left = np.unravel_index(int(inside.argmax()), inside.shape)
    return int(top), int(left), int(inside.max())


def small_object_window(label: np.ndarray, side: int) -> tuple[int, int] | None:
    """Return (top, left) of the square window with most small-class pixels, None if too few."""
    side = min(side, *label.shape)
    top, left, pixels = fullest_window(np.isin(label, labels.SMALL_CLASSES), side)
    return None if pixels < side * side // 40 else (top, left)


def window_px(label: np.ndarray) -> int:
    """Return the side of a window for close-ups of a label HxW."""
    return min(max(40, min(label.shape) // 5), *label.shape)
