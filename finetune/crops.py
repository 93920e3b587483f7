"""Training crops: rescale an image, cut a crop, centre it on a rare class, jitter its colours.

The samplers give one training item per call. All of their randomness comes from the generator they
are called with.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import cv2
import numpy as np

from finetune.captions import Captions
from finetune.settings import Crop
from finetune.style_images import Style, StyleImages, fill_style
from pipeline.dataset import Sample, read_pair
from pipeline.images import read_image
from pipeline.rare_classes import ClassIndex, RareClassSampling, index_classes
from pipeline.resizing import resize_area


class TrainingItem(NamedTuple):
    """One crop to train on."""

    image: Any
    """HxWx3 uint8, or the moments 2xCxhxw float16 of its latent where crops are cached"""
    label: Any
    """train ids HxW uint8, None without labels"""
    caption: str


@dataclass(frozen=True)
class UnlabelledCrops:
    """Samples crops for a training with one prompt, of each style, and without labels."""

    samples: list[Sample]
    crop: Crop
    prompt: str
    color_jitter: float
    styles: StyleImages | None = None

    def __call__(self, rng: np.random.Generator) -> TrainingItem:
        """Return a random crop of a random image, in a random style if there are styles."""
        sample = self.samples[int(rng.integers(len(self.samples)))]
        style = self.styles(rng) if self.styles else None
        image = sample_image_crop(rng, sample, self.crop, style)
        prompt = fill_style(self.prompt, style.text) if style else self.prompt
        return TrainingItem(jitter_some(rng, image, self.color_jitter), None, prompt)


@dataclass(frozen=True)
class ImageCrops:
    """Samples crops without captions, a share of them with moderately shifted colours."""

    samples: list[Sample]
    crop: Crop
    color_jitter: float

    def __call__(self, rng: np.random.Generator) -> np.ndarray:
        """Return a random crop of a random image, HxWx3 uint8."""
        sample = self.samples[int(rng.integers(len(self.samples)))]
        image = sample_image_crop(rng, sample, self.crop)
        return jitter_colors(rng, image) if rng.random() < self.color_jitter else image


@dataclass(frozen=True)
class LabelledCrops:
    """Samples crops with their labels and with captions that name classes and style of the crop."""

    samples: list[Sample]
    crop: Crop
    caption: Captions
    color_jitter: float
    rare_classes: RareClassSampling
    styles: StyleImages | None = None

    @cached_property
    def index(self) -> ClassIndex | None:
        """The files of each class, None if files are sampled uniformly.

        Raises `UserError` if no file holds enough pixels of any class.
        """
        if not self.rare_classes.enabled:
            return None
        return index_classes(self.samples, self.rare_classes)

    def __call__(self, rng: np.random.Generator) -> TrainingItem:
        """Return a random crop, centred on a rare class if these are sampled more often."""
        style = self.styles(rng) if self.styles else None
        image, label = sample_labelled_crop(rng, self.samples, self.crop, self.index, style)
        image = jitter_some(rng, image, self.color_jitter)
        return TrainingItem(image, label, self.caption(label, rng, style.text if style else ""))


def fit_scale(image_px: tuple[int, int], scale: float, crop: Crop) -> float:
    """Return `scale`, or the smallest scale at which the image holds a whole crop."""
    need = max(crop.size_px[0] / image_px[0], crop.size_px[1] / image_px[1])
    return max(scale, need)


def scaled_size(image_px: tuple[int, int], scale: float, crop: Crop) -> tuple[int, int]:
    """Return the rescaled (height, width), never smaller than the crop."""
    scale = fit_scale(image_px, scale, crop)
    return (
        max(crop.size_px[0], round(image_px[0] * scale)),
        max(crop.size_px[1], round(image_px[1] * scale)),
    )


def corner(
    rng: np.random.Generator, size_px: tuple[int, int], crop: Crop, center: tuple[int, int] | None
) -> tuple[int, int]:
    """Return the (top, left) of a crop: around `center`, clamped to the image, or uniform."""
    room = (size_px[0] - crop.size_px[0], size_px[1] - crop.size_px[1])
    if center is None:
        return int(rng.integers(room[0] + 1)), int(rng.integers(room[1] + 1))
    return tuple(  # type: ignore[return-value]
        int(np.clip(c - s // 2, 0, r)) for c, s, r in zip(center, crop.size_px, room, strict=True)
    )


def cut(array: np.ndarray, top_left: tuple[int, int], crop: Crop) -> np.ndarray:
    """Return the crop at `top_left`."""
    top, left = top_left
    return array[top : top + crop.size_px[0], left : left + crop.size_px[1]]


def sample_image_crop(
    rng: np.random.Generator, sample: Sample, crop: Crop, style: Style | None = None
) -> np.ndarray:
    """Return a random crop of an image, HxWx3 uint8, in the colours of a style if one is given."""
    image = read_image(sample.image)
    size = scaled_size(image.shape[:2], float(rng.choice(crop.scales)), crop)
    image = resize_area(image, size)
    if style is not None:
        image = style.recolor(image)  # before the crop: colours depend on the height in the scene
    patch = cut(image, corner(rng, size, crop, None), crop)
    return patch[:, ::-1] if crop.flip and rng.random() < 0.5 else patch


def sample_labelled_crop(
    rng: np.random.Generator,
    samples: list[Sample],
    crop: Crop,
    index: ClassIndex | None,
    style: Style | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Return image HxWx3 and label HxW of a crop, centred on a rare class if `index` is given.

    The image is in the colours of `style` if one is given.
    """
    if index is None:
        sample, wanted = samples[int(rng.integers(len(samples)))], None
    else:
        wanted, number = index.sample(rng)
        sample = samples[number]
    image, label = read_pair(sample)
    size = scaled_size(label.shape, float(rng.choice(crop.scales)), crop)
    image, label = resize_area(image, size), resize_area(label, size, nearest=True)
    if style is not None:
        image = style.recolor(image)
    center = None
    if wanted is not None:
        pixels = np.flatnonzero(label == wanted)
        if pixels.size:  # a tiny object can vanish when the image is shrunk
            row, column = divmod(int(rng.choice(pixels)), label.shape[1])
            center = (row, column)
    top_left = corner(rng, size, crop, center)
    image, label = cut(image, top_left, crop), cut(label, top_left, crop)
    if crop.flip and rng.random() < 0.5:
        image, label = image[:, ::-1], label[:, ::-1]
    return image, label


def jitter_colors(
    rng: np.random.Generator, image: np.ndarray, *, hue_degrees: float = 30
) -> np.ndarray:
    """Shift hue, scale saturation and change the brightness curve of an HxWx3 image at random."""
    hsv = cv2.cvtColor(image.astype(np.float32) / 255, cv2.COLOR_RGB2HSV)  # 0..360, 0..1, 0..1
    hsv[..., 0] = (hsv[..., 0] + rng.uniform(-hue_degrees, hue_degrees)) % 360
    hsv[..., 1] = np.clip(hsv[..., 1] * rng.uniform(0.5, 1.6), 0, 1)
    hsv[..., 2] = np.clip(hsv[..., 2] ** rng.uniform(0.7, 1.4) * rng.uniform(0.8, 1.2), 0, 1)
    return (cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB) * 255).round().astype(np.uint8)


def jitter_some(rng: np.random.Generator, image: np.ndarray, share: float) -> np.ndarray:
    """Jitter a share (0..1) of HxWx3 images to any hue; a share of 0 uses no random number."""
    if share and rng.random() < share:
        return jitter_colors(rng, image, hue_degrees=180)
    return image
