"""HRDA: a context view at half resolution and detail crops (Hoyer et al., ECCV 2022, section 3).

The context view sees the whole image, scaled by one half; the detail view sees a crop at full
resolution. Backbone and head are shared. A learned attention, from the context, chooses between the
two predictions for each pixel and class. At test overlapping detail crops cover the image.
"""

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from mmengine.structures import PixelData
from mmseg.models.utils import resize
from mmseg.registry import MODELS
from mmseg.utils import add_prefix
from torch.nn import functional

from pipeline.errors import UserError
from segtrain.generalization.segmentor import Losses, Pass, Segmentor, View, stack_labels

SCALE = 2
MULTIPLE = 16
"""Corners and sizes in pixels, so that logits of stride 4 or 8 of both views align."""


@dataclass(frozen=True)
class Detail:
    """Settings of the detail view."""

    crop_size: tuple[int, int]
    """height and width in pixels, multiples of 16"""
    loss_weight: float = 0.1
    """of the loss of the detail crop alone; the fused prediction has the rest"""

    def __post_init__(self) -> None:
        sides = self.crop_size
        if len(sides) != 2 or any(type(n) is not int or n < 16 or n % MULTIPLE for n in sides):
            raise UserError(f"detail.crop_size {sides}: must be two multiples of {MULTIPLE} pixels")
        if not 0 <= self.loss_weight < 1:
            raise UserError(f"detail.loss_weight {self.loss_weight}: must be within 0..1, below 1")


class Box(NamedTuple):
    """A crop in pixels."""

    top: int
    left: int
    height: int
    width: int

    def of(self, values: torch.Tensor, pixels: int = 1) -> torch.Tensor:
        """Return the crop of ...xHxW values with one value for `pixels` x `pixels`."""
        top, left, height, width = (side // pixels for side in self)
        return values[..., top : top + height, left : left + width]


class HRDASegmentor(Segmentor):
    """`Segmentor` on two resolutions.

    `detail`: settings of `Detail`; `attention_head`: a decode head whose logits, one for each class
    or one for all, become the attention. Images are padded to multiples of 16 by their edge.
    """

    def __init__(
        self, *, detail: dict[str, Any], attention_head: dict[str, Any], **options: Any
    ) -> None:
        super().__init__(**options)
        self.detail = Detail(**{**detail, "crop_size": tuple(detail["crop_size"])})
        self.attention_head = MODELS.build(attention_head)
        if self.with_auxiliary_head:
            raise UserError("HRDASegmentor: takes no auxiliary_head; drop it")

    def choose_region(self, inputs: torch.Tensor) -> Box:
        """Draw the detail crop of a batch from torch's global stream."""
        sizes = [min(c, s) for c, s in zip(self.detail.crop_size, _padded(inputs), strict=True)]
        most = [(s - c) // MULTIPLE for s, c in zip(_padded(inputs), sizes, strict=True)]
        top, left = (int(torch.randint(number + 1, ())) * MULTIPLE for number in most)
        return Box(top, left, *sizes)

    def supervise(self, inputs: torch.Tensor, data_samples: list[Any], region: Box) -> Pass:
        """Return the losses of the fused prediction and of the detail crop."""
        inputs, labels = _pad(inputs), _pad_labels(stack_labels(data_samples))
        context, small, attention, context_features = self._context(inputs)
        maps = self.extract_feat(region.of(inputs))
        detail = self.decode_head(maps)
        pixels = inputs.shape[-1] // (SCALE * small.shape[-1])
        logits = fuse(small, attention, detail, Box(*(side // pixels for side in region)))
        weight, cropped = self.detail.loss_weight, region.of(labels)
        losses = self._weighted(logits, labels, data_samples, 1 - weight, "decode")
        losses |= self._weighted(detail, cropped, data_samples, weight, "detail")
        views = [
            View(context, labels, context_features),
            View(region.of(inputs), cropped, maps[-1]),
        ]
        return Pass(losses, logits, views)

    def _context(self, inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return the context images, their logits, attention in 0..1, and the deepest map."""
        size = [side // SCALE for side in inputs.shape[-2:]]
        images = functional.interpolate(inputs, size=size, mode="bilinear", align_corners=False)
        maps = self.extract_feat(images)
        logits, attention = self.decode_head(maps), self.attention_head(maps).sigmoid()
        if attention.shape[-2:] != logits.shape[-2:]:
            attention = resize(attention, size=logits.shape[-2:], mode="bilinear")
        return images, logits, attention, maps[-1]

    def _weighted(
        self,
        logits: torch.Tensor,
        labels: torch.Tensor,
        data_samples: list[Any],
        weight: float,
        name: str,
    ) -> Losses:
        samples = [sample.clone() for sample in data_samples]
        for sample, label in zip(samples, labels, strict=True):
            del sample.gt_sem_seg
            sample.gt_sem_seg = PixelData(data=label[None])
        losses = self.decode_head.loss_by_feat(logits, samples)
        weighted = {k: v * weight if "loss" in k else v for k, v in losses.items()}
        return add_prefix(weighted, name)

    def encode_decode(self, inputs: torch.Tensor, batch_img_metas: list[Any]) -> torch.Tensor:
        """Return the logits BxKxHxW of images, with overlapping detail crops all over them."""
        height, width = inputs.shape[-2:]
        padded = _pad(inputs)
        _, small, attention, _ = self._context(padded)
        pixels = padded.shape[-1] // (SCALE * small.shape[-1])
        detail = self._slide(padded, pixels)
        whole = Box(0, 0, *detail.shape[-2:])
        logits = fuse(small, attention, detail, whole)
        logits = resize(logits, size=padded.shape[-2:], mode="bilinear", align_corners=False)
        return logits[..., :height, :width]

    def _slide(self, images: torch.Tensor, pixels: int) -> torch.Tensor:
        """Return the mean logits of detail crops, each half a crop from the next."""
        size = [side // pixels for side in images.shape[-2:]]
        total = images.new_zeros(len(images), self.out_channels, *size)
        count = images.new_zeros(1, 1, *size)
        for box in detail_boxes(images.shape[-2:], self.detail.crop_size):
            logits = self.decode_head(self.extract_feat(box.of(images)))
            box.of(total, pixels).add_(logits)
            box.of(count, pixels).add_(1)
        return total / count

    def _forward(self, inputs: torch.Tensor, data_samples: Any = None) -> torch.Tensor:
        """Return the fused logits, as at test."""
        return self.encode_decode(inputs, [])


def fuse(
    context: torch.Tensor, attention: torch.Tensor, detail: torch.Tensor, box: Box
) -> torch.Tensor:
    """Return up((1 - a) context) + up(a) detail, at twice the size of `context` BxKxhxw.

    The attention a, Bx1xhxw or BxKxhxw, counts inside `box` alone, where `detail` is; the box is in
    values of the result (equation 10 of the paper).
    """
    inside = torch.zeros_like(attention)
    box.of(inside, SCALE).fill_(1)
    attention = attention * inside
    size = [side * SCALE for side in context.shape[-2:]]
    below, right = size[0] - box.top - box.height, size[1] - box.left - box.width
    placed = functional.pad(detail, (box.left, right, box.top, below))
    up = {"size": size, "mode": "bilinear", "align_corners": False}
    return resize((1 - attention) * context, **up) + resize(attention, **up) * placed


def detail_boxes(size: tuple[int, int], crop_size: tuple[int, int]) -> list[Box]:
    """Return crops that cover an image of `size`, half a crop apart, the last at its edges."""
    starts = []
    for side, crop in zip(size, crop_size, strict=True):
        crop, step = min(side, crop), max(MULTIPLE, crop // 2 // MULTIPLE * MULTIPLE)
        count = math.ceil((side - crop) / step) + 1
        starts.append([(min(i * step, side - crop), crop) for i in range(count)])
    return [Box(top, left, h, w) for top, h in starts[0] for left, w in starts[1]]


def _padded(inputs: torch.Tensor) -> list[int]:
    return [side + -side % MULTIPLE for side in inputs.shape[-2:]]


def _pad(images: torch.Tensor) -> torch.Tensor:
    height, width = images.shape[-2:]
    return functional.pad(images, (0, -width % MULTIPLE, 0, -height % MULTIPLE), mode="replicate")


def _pad_labels(labels: torch.Tensor) -> torch.Tensor:
    height, width = labels.shape[-2:]
    return functional.pad(labels, (0, -width % MULTIPLE, 0, -height % MULTIPLE), value=255)
