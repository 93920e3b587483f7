"""Emphasis on uncertain pixels at class boundaries, after FLEX-Seg (Kim et al., AAAI 2026).

A generated image and its label disagree most along boundaries. There the cross-entropy is weighted
by the entropy of the prediction, so that pixels count as far as the network is undecided. This is
the paper's "uncertainty boundary emphasis" alone: its prototypes and its choice of hard samples are
not here, and width and weight are ours.
"""

import math
from dataclasses import dataclass

import torch
from torch.nn import functional

from pipeline.errors import UserError
from pipeline.labels import VOID


@dataclass(frozen=True)
class Boundary:
    """Settings of the emphasis."""

    weight: float = 1.0
    """of the boundary term beside the cross-entropy of all pixels"""
    radius_px: int = 5
    """a pixel is at a boundary if another class lies within so many pixels, also diagonally"""
    sets: tuple[str, ...] = ("generated",)
    """named sets whose images it applies to; () for all"""

    def __post_init__(self) -> None:
        if not 0 < self.weight < math.inf or self.radius_px not in range(1, 257):
            raise UserError("boundary: weight must be above 0, radius_px within 1..256")


def boundary_band(label: torch.Tensor, radius_px: int) -> torch.Tensor:
    """Return BxHxW bool: labelled pixels with another class within `radius_px`, void apart."""
    values = label.float().masked_fill(label == VOID, -1.0)
    lowest = label.float().masked_fill(label == VOID, float(VOID))
    window = 2 * radius_px + 1
    most = functional.max_pool2d(values[:, None], window, 1, radius_px)[:, 0]
    least = -functional.max_pool2d(-lowest[:, None], window, 1, radius_px)[:, 0]
    return (most != least) & (label != VOID)


def boundary_loss(logits: torch.Tensor, label: torch.Tensor, radius_px: int) -> torch.Tensor:
    """Return the mean over all pixels of band x normalised entropy x cross-entropy.

    `logits` BxKxHxW, `label` BxHxW. Void counts as a pixel without loss, as in the cross-entropy of
    mmsegmentation with `avg_non_ignore=False`. Added with weight w to that, it gives a pixel of the
    band the weight 1 + w H, with H in 0..1 the entropy of its prediction, held constant.
    """
    logs = logits.log_softmax(1)
    entropy = -(logs.exp() * logs).sum(1).detach() / math.log(logits.shape[1])
    losses = functional.nll_loss(logs, label, ignore_index=VOID, reduction="none")
    return (losses * boundary_band(label, radius_px) * entropy).mean()
