"""A vision transformer, trained to predict the edges in masked patches.

Masked feature prediction (Wei et al., CVPR 2022): the targets are histograms of edge orientations,
which depend little on light and colour. The paper finds them nearly as good as the features of a
DINO teacher. A fixed target needs no teacher network, no second view and no large batch, and cannot
collapse: it is what a few thousand updates on a CPU can learn.
"""

import math
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from transformers import Dinov2Config, Dinov2Model

from finetune.data import Batches
from finetune.loop import Loss, Task
from finetune.network_sizes import BackboneSizes
from finetune.start import Run

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601
NUM_ORIENTATIONS = 9
CELLS = 2  # histograms along each side of a patch
FLAT = 0.05  # length of a patch's histograms at which noise and edges weigh the same


def build_backbone(sizes: BackboneSizes) -> Dinov2Model:
    """Build a DINOv2 network with random weights."""
    config = Dinov2Config(
        hidden_size=sizes.width,
        num_hidden_layers=sizes.layers,
        num_attention_heads=sizes.heads,
        patch_size=sizes.patch_px,
        image_size=sizes.patch_px * sizes.grid,
    )
    return Dinov2Model(config)


class MaskedPrediction(torch.nn.Module):
    """Predicts the targets of all patches from images Bx3xHxW with masked patches, BxN."""

    def __init__(self, network: Dinov2Model) -> None:
        super().__init__()
        self.network = network
        self.head = torch.nn.Linear(network.config.hidden_size, CELLS**2 * NUM_ORIENTATIONS)

    def forward(self, images: torch.Tensor, masked: torch.Tensor) -> torch.Tensor:
        """Return predictions BxNxD; images are normalised by ImageNet's mean and deviation."""
        states = self.network(images, bool_masked_pos=masked).last_hidden_state
        return self.head(states[:, 1:])


class BackboneTask(Task):
    """Trains a backbone on the targets of masked patches."""

    model: MaskedPrediction

    def __init__(
        self,
        run: Run,
        network: Dinov2Model,
        batches: Batches,
        *,
        mask_share: float,
        mask_block: int,
    ) -> None:
        self.run, self.batches = run, batches
        self.model = MaskedPrediction(network)
        self.patch_px = network.config.patch_size
        self.mask_share, self.mask_block = mask_share, mask_block

    def loss(
        self, model: torch.nn.Module, batch: torch.Tensor, generator: torch.Generator, *, step: int
    ) -> Loss:
        """Return the squared error of the masked patches of images Bx3xHxW in [-1, 1]."""
        images = batch.to(self.run.accelerator.device)
        grid = (images.shape[-2] // self.patch_px, images.shape[-1] // self.patch_px)
        masked = block_mask(len(images), grid, self.mask_block, self.mask_share, generator)
        found = model(normalised(images), masked)[masked].float()
        wanted = patch_targets(images, self.patch_px)[masked]
        return Loss((found - wanted).square().sum(-1).mean())

    def save(self, weights: Any, folder: Path) -> None:
        """Write folder/backbone."""
        weights.network.save_pretrained(folder / "backbone")


def normalised(images: torch.Tensor) -> torch.Tensor:
    """Return images Bx3xHxW in [-1, 1] normalised by ImageNet's mean and deviation."""
    mean, std = (images.new_tensor(v).view(3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))
    return ((images + 1) / 2 - mean) / std


def block_mask(
    number: int, grid: tuple[int, int], block: int, share: float, generator: torch.Generator
) -> torch.Tensor:
    """Return masks BxN of the patches of a grid (rows, columns), `share` of its blocks masked."""
    rows, columns = (side // block for side in grid)
    count = min(max(1, round(share * rows * columns)), rows * columns)
    order = torch.rand(number, rows * columns, generator=generator, device=generator.device)
    blocks = torch.zeros_like(order, dtype=torch.bool)
    blocks.scatter_(1, order.argsort(1)[:, :count], True)
    mask = blocks.view(number, rows, columns).repeat_interleave(block, 1)
    return mask.repeat_interleave(block, 2).flatten(1)


def patch_targets(images: torch.Tensor, patch_px: int) -> torch.Tensor:
    """Return the edge orientations BxNx36 of the patches of images Bx3xHxW in [-1, 1].

    Each quarter of a patch has a histogram of unsigned gradient orientations, weighted by their
    magnitude (Dalal and Triggs, CVPR 2005). The four of a patch are divided by their length.
    """
    gray = (images * images.new_tensor(LUMA).view(3, 1, 1)).sum(1, keepdim=True)
    padded = F.pad(gray, (1, 1, 1, 1), mode="replicate")
    across = padded[:, :, 1:-1, 2:] - padded[:, :, 1:-1, :-2]
    down = padded[:, :, 2:, 1:-1] - padded[:, :, :-2, 1:-1]
    place = torch.atan2(down, across).remainder(math.pi) / math.pi * NUM_ORIENTATIONS
    centers = torch.arange(NUM_ORIENTATIONS, device=images.device).view(1, -1, 1, 1)
    distance = (place - centers).abs()
    distance = torch.minimum(distance, NUM_ORIENTATIONS - distance)  # orientations are circular
    weights = (1 - distance).clamp(min=0) * torch.hypot(across, down)
    cells = F.avg_pool2d(weights, patch_px // CELLS)
    edges = F.pixel_unshuffle(cells, CELLS).flatten(2).transpose(1, 2)
    return edges / (edges.norm(dim=-1, keepdim=True) + FLAT)
