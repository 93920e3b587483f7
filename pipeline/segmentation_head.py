"""A small segmentation head on features of a denoising U-Net, and its loss.

The head predicts the label map at the resolution of the latent from what the decoder of the U-Net
computes for a noisy latent under a ControlNet. These features depend on the timestep already, so
the head has no timestep of its own. Heads of this kind read a diffusion model out (Baranchuk et
al., ICLR 2022) and guide it by their gradient (Readout Guidance, Luo et al., CVPR 2024).
`finetune/controlnet.py` trains it; `generation.sampler.correction` uses its gradient.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import nn

from pipeline.labels import CLASS_NAMES, NUM_CLASSES
from pipeline.latents import without_autocast

OF_THE_UNET = (  # settings of the U-Net that a head was trained on, compared when it is used
    "in_channels",
    "cross_attention_dim",
    "block_out_channels",
    "layers_per_block",
    "addition_embed_type",
    "projection_class_embeddings_input_dim",
)


class SegmentationHead(ModelMixin, ConfigMixin):
    """A 1x1 convolution per tapped up block, their sum at the latent's size, and a 1x1 convolution.

    `taps` are names of up blocks (`up_blocks.0`), in order, `tap_channels` the channels of their
    outputs. `class_names` are those of the output channels. The other settings are those of the
    U-Net, so that the head of another one is refused.
    """

    @register_to_config
    def __init__(
        self,
        taps: Sequence[str] = ("up_blocks.0",),
        tap_channels: Sequence[int] = (1280,),
        hidden_channels: int = 32,
        norm_num_groups: int = 32,
        class_names: Sequence[str] = CLASS_NAMES,
        in_channels: int = 4,
        cross_attention_dim: int = 1280,
        block_out_channels: Sequence[int] = (320, 640, 1280, 1280),
        layers_per_block: int = 2,
        addition_embed_type: str | None = None,
        projection_class_embeddings_input_dim: int | None = None,
    ) -> None:
        super().__init__()
        self.projections = nn.ModuleList(
            nn.Sequential(
                nn.GroupNorm(math.gcd(norm_num_groups, channels), channels),
                nn.SiLU(),
                nn.Conv2d(channels, hidden_channels, 1),
            )
            for channels in tap_channels
        )
        self.norm = nn.GroupNorm(math.gcd(norm_num_groups, hidden_channels), hidden_channels)
        self.act = nn.SiLU()
        self.conv_out = nn.Conv2d(hidden_channels, len(class_names), 1)

    @classmethod
    def from_unet(cls, unet: Any, hidden_channels: int = 32) -> "SegmentationHead":
        """Return a new head for a U-Net; it taps all up blocks but the last.

        The output of the last but one has the size of the latent already, and the last block is the
        costliest: without it a gradient needs neither its forward nor its backward pass.
        """
        widths = list(reversed(unet.config.block_out_channels))
        count = max(1, len(widths) - 1)
        return cls(
            taps=[f"up_blocks.{index}" for index in range(count)],
            tap_channels=widths[:count],
            hidden_channels=hidden_channels,
            norm_num_groups=unet.config.norm_num_groups,
            **{name: unet.config[name] for name in OF_THE_UNET},
        )

    def forward(self, features: Sequence[torch.Tensor], size: Sequence[int]) -> torch.Tensor:
        """Return the float32 logits BxCxhxw, `size` = (h, w), of the taps' features BxKxh'xw'.

        Features are enlarged by repetition, whose backward pass is deterministic on every device.
        The head computes in the precision of its weights, also under autocast: in float16 its
        gradients would overflow, as the loss scale follows those of the ControlNet, which are
        smaller.
        """
        weight = self.conv_out.weight
        with without_autocast(weight.device.type):
            hidden = sum(
                F.interpolate(projection(feature.to(weight.dtype)), tuple(size), mode="nearest")
                for projection, feature in zip(self.projections, features, strict=True)
            )
            return self.conv_out(self.act(self.norm(hidden))).float()


def label_shares(control: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """Return the share of each class in each latent pixel, Bx19xhxw, of a control Bx20xHxW.

    `size` is (h, w) of the latent. Void belongs to no class, so the shares of a latent pixel add up
    to less than 1 where it covers void. Shares keep objects that are thinner than a latent pixel.
    """
    factor = control.shape[-1] // size[-1]
    return F.avg_pool2d(control[:, :NUM_CLASSES], factor)


def label_cross_entropy(
    logits: torch.Tensor, shares: torch.Tensor, class_balance: float = 0.0
) -> torch.Tensor:
    """Return the cross entropy of each sample, B, of logits and class shares Bx19xhxw.

    It is the mean over all that is not void; 0 for a sample of void alone. A class of n pixels has
    the weight n^-class_balance within its sample: 0 counts pixels, 1 counts classes. Each sample
    has its own weights, so it does not depend on the others. Without gathering, so the backward
    pass is deterministic on every device.
    """
    counts, weights = class_weights(shares, class_balance)
    terms = weights * shares * F.log_softmax(logits, dim=1)
    total = (weights * counts).sum(dim=(1, 2, 3))
    return -terms.sum(dim=(1, 2, 3)) / total.clamp(min=1e-6)


def class_weights(shares: torch.Tensor, class_balance: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the latent pixels n of each class and its weight n^-class_balance, both BxCx1x1.

    The weight of a class that is not there is 0.
    """
    counts = shares.sum(dim=(2, 3), keepdim=True)
    return counts, torch.where(counts > 0, counts.clamp(min=1e-6) ** -class_balance, 0)


def area_weights(shares: torch.Tensor, class_balance: float) -> torch.Tensor:
    """Return the weight of each latent pixel, Bx1xhxw with mean 1, of class shares Bx19xhxw.

    A class of n pixels has the weight n^-class_balance within its sample, void the smallest of its
    sample. So small objects count more in a loss: 0 counts pixels, 1 counts classes.
    """
    _, weights = class_weights(shares, class_balance)
    smallest = torch.where(weights > 0, weights, torch.inf).amin(dim=1, keepdim=True)
    smallest = torch.where(torch.isfinite(smallest), smallest, 1)  # void alone
    void = 1 - shares.sum(dim=1, keepdim=True)
    area = (weights * shares).sum(dim=1, keepdim=True) + smallest * void
    return area / area.mean(dim=(1, 2, 3), keepdim=True)


def label_accuracy(logits: torch.Tensor, shares: torch.Tensor) -> torch.Tensor:
    """Return the share of the area, void left out, whose class has the largest logit."""
    found = F.one_hot(logits.argmax(1), shares.shape[1]).movedim(-1, 1)
    return (shares * found).sum() / shares.sum().clamp(min=1e-6)
