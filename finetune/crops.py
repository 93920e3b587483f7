"""Training crops: rescale, crop, rare class sampling, captions from the crop."""

from dataclasses import dataclass

import cv2
import numpy as np

from pipeline.dataset import Sample, read_image, read_pair
from pipeline.rare_classes import ClassIndex


@dataclass(frozen=True)
class Crop:
    """How training crops are cut out of pictures of any size."""

    size_px: tuple[int, int] = (512, 512)
    """height and width of a crop"""
    scales: tuple[float, ...] = (0.5, 0.75, 1.0, 1.25, 1.5, 2.0)
    """the picture is first rescaled by one of these, drawn uniformly"""
    flip: bool = False
    """mirror half of the crops"""


def fit_scale(image_px: tuple[int, int], scale: float, crop: Crop) -> float:
    """Return `scale`, or the smallest scale at which the picture holds a whole crop."""
    need = max(crop.size_px[0] / image_px[0], crop.size_px[1] / image_px[1])
    return max(scale, need)


def resize(array: np.ndarray, size_px: tuple[int, int], *, nearest: bool = False) -> np.ndarray:
    """Resize HxW(xC) uint8 to (height, width): area average down, linear up, or nearest."""
    if array.shape[:2] == tuple(size_px):
        return array
    shrink = size_px[0] < array.shape[0]
    mode = cv2.INTER_NEAREST_EXACT if nearest else cv2.INTER_AREA if shrink else cv2.INTER_LINEAR
    return cv2.resize(array, (size_px[1], size_px[0]), interpolation=mode)


def scaled_size(image_px: tuple[int, int], scale: float, crop: Crop) -> tuple[int, int]:
    """Return the rescaled (height, width), never smaller than the crop."""
    scale = fit_scale(image_px, scale, crop)
    return (
        max(crop.size_px[0], round(image_px[0] * scale)),
        max(crop.size_px[1], round(image_px[1] * scale)),
    )


def corner(
    rng: np.random.Generator, size_px: tuple[int, int], crop: Crop, centre: tuple[int, int] | None
) -> tuple[int, int]:
    """Return the (top, left) of a crop: around `centre`, clamped to the picture, or uniform."""
    room = (size_px[0] - crop.size_px[0], size_px[1] - crop.size_px[1])
    if centre is None:
        return int(rng.integers(room[0] + 1)), int(rng.integers(room[1] + 1))
    return tuple(  # type: ignore[return-value]
        int(np.clip(c - s // 2, 0, r)) for c, s, r in zip(centre, crop.size_px, room, strict=True)
    )


def cut(array: np.ndarray, top_left: tuple[int, int], crop: Crop) -> np.ndarray:
    """Return the crop at `top_left`."""
    top, left = top_left
    return array[top : top + crop.size_px[0], left : left + crop.size_px[1]]


def draw_image_crop(rng: np.random.Generator, sample: Sample, crop: Crop) -> np.ndarray:
    """Draw a crop of a picture, HxWx3 uint8."""
    image = read_image(sample.image)
    size = scaled_size(image.shape[:2], float(rng.choice(crop.scales)), crop)
    patch = cut(resize(image, size), corner(rng, size, crop, None), crop)
    return patch[:, ::-1] if crop.flip and rng.random() < 0.5 else patch


def jitter_colors(
    rng: np.random.Generator, image: np.ndarray, *, hue_degrees: float = 30
) -> np.ndarray:
    """Shift hue, scale saturation and bend brightness of an HxWx3 picture at random."""
    hsv = cv2.cvtColor(image.astype(np.float32) / 255, cv2.COLOR_RGB2HSV)  # 0..360, 0..1, 0..1
    hsv[..., 0] = (hsv[..., 0] + rng.uniform(-hue_degrees, hue_degrees)) % 360
    hsv[..., 1] = np.clip(hsv[..., 1] * rng.uniform(0.5, 1.6), 0, 1)
    hsv[..., 2] = np.clip(hsv[..., 2] ** rng.uniform(0.7, 1.4) * rng.uniform(0.8, 1.2), 0, 1)
    return (cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB) * 255).round().astype(np.uint8)


def recolor_some(rng: np.random.Generator, image: np.ndarray, share: float) -> np.ndarray:
    """Jitter a share (0..1) of HxWx3 pictures to any hue; a share of 0 draws nothing."""
    if share and rng.random() < share:
        return jitter_colors(rng, image, hue_degrees=180)
    return image


def draw_labelled_crop(
    rng: np.random.Generator, samples: list[Sample], crop: Crop, index: ClassIndex | None
) -> tuple[np.ndarray, np.ndarray]:
    """Draw (image HxWx3, label HxW) of one crop, centred on a rare class where `index` is given."""
    if index is None:
        sample, wanted = samples[int(rng.integers(len(samples)))], None
    else:
        wanted, number = index.draw(rng)
        sample = samples[number]
    image, label = read_pair(sample)
    size = scaled_size(label.shape, float(rng.choice(crop.scales)), crop)  # type: ignore[arg-type]
    image, label = resize(image, size), resize(label, size, nearest=True)
    centre = None
    if wanted is not None:
        pixels = np.flatnonzero(label == wanted)
        if pixels.size:  # a tiny object can vanish when the picture is shrunk
            row, column = divmod(int(rng.choice(pixels)), label.shape[1])
            centre = (row, column)
    place = corner(rng, size, crop, centre)
    image, label = cut(image, place, crop), cut(label, place, crop)
    if crop.flip and rng.random() < 0.5:
        image, label = image[:, ::-1], label[:, ::-1]
    return image, label
