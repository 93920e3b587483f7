"""ImageNet feature distance of DAFormer (Hoyer et al., CVPR 2022, section 3.3).

The deepest features of the backbone stay near those of its initial weights where a label shows
thing classes, which ImageNet knows.
"""

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional

from pipeline.errors import UserError
from pipeline.labels import NUM_CLASSES, VOID

THINGS = (6, 7, 11, 12, 13, 14, 15, 16, 17, 18)
"""Traffic light, traffic sign, person to bicycle."""


@dataclass(frozen=True)
class FeatureDistance:
    """Settings of the distance; the defaults are DAFormer's."""

    weight: float = 0.005
    """of the distance in the loss"""
    min_share: float = 0.75
    """of a feature's pixels that must show one thing class"""
    classes: tuple[int, ...] = THINGS
    """train ids whose features are held"""

    def __post_init__(self) -> None:
        if not 0 < self.weight < math.inf or not 0 < self.min_share <= 1:
            raise UserError("feature_distance: weight must be above 0, min_share above 0 up to 1")
        if wrong := [k for k in self.classes if k not in range(NUM_CLASSES)]:
            raise UserError(f"feature_distance.classes {wrong}: must be train ids, 0 to 18")


def thing_mask(
    label: torch.Tensor, size: Sequence[int], classes: Sequence[int], min_share: float
) -> torch.Tensor:
    """Return Bxhxw bool: where one of `classes` has at least `min_share` of the pixels.

    `label` is BxHxW train ids, 255 for void; `size` is (h, w) of the features.
    """
    known = label.masked_fill(label == VOID, NUM_CLASSES).long()
    shares = functional.adaptive_avg_pool2d(
        functional.one_hot(known, NUM_CLASSES + 1).permute(0, 3, 1, 2).float(), tuple(size)
    )
    return shares[:, list(classes)].amax(1) >= min_share


def masked_distance(
    features: torch.Tensor, reference: torch.Tensor, mask: torch.Tensor
) -> torch.Tensor:
    """Return the mean over `mask` (Bxhxw) of the Euclidean distance of features BxCxhxw.

    0, with a gradient of zeros, where the mask is empty.
    """
    if not mask.any():
        return features.sum() * 0.0
    difference = (features - reference).permute(0, 2, 3, 1)[mask]
    return torch.linalg.vector_norm(difference, dim=1).mean()


class Reference:
    """A frozen copy of a backbone with the weights it has now; no part of any state dict."""

    def __init__(self, backbone: torch.nn.Module) -> None:
        self.backbone = copy.deepcopy(backbone).requires_grad_(False)
        self.backbone.eval()

    @torch.no_grad()
    def features(self, images: torch.Tensor) -> torch.Tensor:
        """Return the deepest map BxCxhxw of normalised images."""
        self.backbone.to(images.device)
        return self.backbone(images)[-1]
