"""A backbone for segmentation heads: frozen diffusion features and one small adapter per tap.

A plain torch module. The adapters bring every tap to one channel count, so that a recipe's neck
and head do not depend on the base model.
"""

from collections.abc import Sequence

import torch

from segtrain.extractor import load_extractor


class DiffusionBackbone(torch.nn.Module):
    """Maps pictures Bx3xHxW in [-1, 1] to `len(taps)` maps of `out_channels`, in tap order.

    `base` names the diffusion model (`pipeline.models`), `unet` another U-Net folder for it.
    Frozen weights come from there whenever the network is built and are never stored with it.
    """

    def __init__(
        self,
        base: str = "pocket",
        unet: str = "",
        prompt: str = "",
        timestep: int = 1,
        taps: Sequence[str] = ("up_blocks.2", "up_blocks.1", "up_blocks.0"),
        out_channels: int = 64,
        init_cfg: None = None,
    ) -> None:
        super().__init__()
        self.extractor = load_extractor(
            base, unet=unet, prompt=prompt, timestep=timestep, taps=tuple(taps)
        )
        self.adapters = torch.nn.ModuleList(
            torch.nn.Sequential(
                torch.nn.GroupNorm(1, channels),
                torch.nn.Conv2d(channels, out_channels, 1),
                torch.nn.GELU(),
            )
            for channels in self.extractor.tap_channels()
        )

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return the adapted feature maps, Bx`out_channels`xhxw each."""
        features = self.extractor(images)
        return tuple(a(f) for a, f in zip(self.adapters, features, strict=True))
