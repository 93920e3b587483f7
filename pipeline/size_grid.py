"""The size grid of a base model: which heights and widths its networks take.

Each level but the first of the autoencoder and of the U-Net halves its input. A side of an image
that is no multiple of all these halvings leaves maps of unequal sizes where the U-Net joins them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import UserError
from pipeline.model_files import read_config


@dataclass(frozen=True)
class SizeGrid:
    """The grid of an autoencoder and a U-Net, in pixels of the image."""

    vae_scale_factor: int
    """side of a pixel of the latent, as in diffusers"""
    size_multiple: int
    """side of a pixel of the U-Net's deepest level; what the U-Net sees has multiples of it"""

    def padding(self, size_px: Sequence[int]) -> tuple[int, int]:
        """Return by how much a height and a width fall short of the next multiples."""
        height, width = size_px
        return -height % self.size_multiple, -width % self.size_multiple


STABLE_DIFFUSION = SizeGrid(vae_scale_factor=8, size_multiple=64)
"""Of 1.5 and 2.1; for a base model whose files are not on this disk yet."""


def size_grid(num_vae_levels: int, num_unet_levels: int) -> SizeGrid:
    """Return the grid of networks with these numbers of resolutions."""
    vae_scale_factor = 2 ** (num_vae_levels - 1)
    return SizeGrid(vae_scale_factor, vae_scale_factor * 2 ** (num_unet_levels - 1))


def read_size_grid(vae_folder: Path, unet_folder: Path) -> SizeGrid:
    """Return the grid of networks by their config files alone."""
    folders = {"vae": vae_folder, "unet": unet_folder}
    return size_grid(*(len(read_config(f, p)["block_out_channels"]) for p, f in folders.items()))


def size_grid_of(vae: Any, unet: Any) -> SizeGrid:
    """Return the grid of loaded networks."""
    return size_grid(*(len(network.config.block_out_channels) for network in (vae, unet)))


def vae_scale_factor(vae: Any) -> int:
    """Return how many image pixels a pixel of a loaded autoencoder's latent spans per axis."""
    return size_grid(len(vae.config.block_out_channels), 1).vae_scale_factor


def require_multiple(setting: str, size_px: Sequence[int], multiple: int, why: str) -> None:
    """Raise `UserError` unless a height and a width are multiples of `multiple`, due to `why`."""
    if any(side % multiple for side in size_px):
        raise UserError(
            f"{setting} {' '.join(map(str, size_px))}: height and width must be multiples of "
            f"{multiple} {why}"
        )
