"""Features of a frozen latent diffusion model: one clean pass, named taps, early exit.

Plain torch and diffusers. A picture is encoded to the mean of its scaled latent and goes through
the U-Net once, without noise, at a small timestep; forward hooks keep the outputs of the tapped
modules and leave the pass as soon as the last of them is there. Features do not depend on the
prediction type, because no noise is estimated. VPD (one pass at t=1), PTDiffSeg (frozen).
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn import functional

from pipeline import models
from pipeline.errors import UserError
from pipeline.text import Conditioning, PromptEncoder


class _AllTapsSeen(Exception):
    """Ends the U-Net's forward pass early."""


class DiffusionExtractor(torch.nn.Module):
    """Maps pictures Bx3xHxW in [-1, 1] to one feature map per tap, without gradients.

    `context` is the fixed prompt (batch 1). The frozen models are not
    submodules: they move with `.to()`, but stay in eval mode and out of `parameters()` and
    `state_dict()`, so they are neither trained, synchronised nor stored.
    """

    def __init__(
        self,
        unet: Any,
        vae: Any,
        context: Conditioning,
        *,
        taps: Sequence[str] = ("up_blocks.0", "up_blocks.1", "up_blocks.2"),
        timestep: int = 1,
        early_exit: bool = True,
    ) -> None:
        super().__init__()
        known = dict(unet.named_modules())
        wrong = [name for name in taps if name not in known or not name]
        if wrong or not taps or len(set(taps)) != len(taps):
            blocks = ", ".join(f"up_blocks.{i}" for i in range(len(unet.up_blocks)))
            raise UserError(f"taps {list(taps)}: name distinct U-Net modules, for example {blocks}")
        self.taps, self.timestep, self.early_exit = tuple(taps), timestep, early_exit
        unet.requires_grad_(False).eval()
        vae.requires_grad_(False).eval()
        vae.decoder = None
        vae.post_quant_conv = None
        self._frozen = (unet, vae)  # a tuple: not registered as submodules
        self.register_buffer("states", context.states.detach().clone(), persistent=False)
        self.register_buffer("pooled", context.pooled, persistent=False)  # None but for SDXL
        self.multiple = models.latent_factor(vae) * 2 ** (len(unet.config.block_out_channels) - 1)

    def _apply(self, fn: Any, recurse: bool = True) -> "DiffusionExtractor":
        for model in self._frozen:
            model._apply(fn)
        return super()._apply(fn, recurse)

    @property
    def unet(self) -> Any:
        """The frozen U-Net."""
        return self._frozen[0]

    @torch.no_grad()
    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        """Return the feature maps BxCxhxw in the order of `taps`.

        Sizes that are no multiple of the model's total stride are padded by repeating the edge,
        and the maps are cropped to the share of the picture, rounded up.
        """
        height, width = images.shape[-2:]
        pad_y, pad_x = -height % self.multiple, -width % self.multiple
        padded = functional.pad(images, (0, pad_x, 0, pad_y), mode="replicate")
        unet, vae = self._frozen
        latents = models.encode_latents(vae, padded)
        features = self._tapped_pass(unet, latents, padded.shape[-2:])
        maps = []
        for name in self.taps:
            feature = features[name]
            rows = -(-height * feature.shape[-2] // padded.shape[-2])
            columns = -(-width * feature.shape[-1] // padded.shape[-1])
            maps.append(feature[..., :rows, :columns])
        return maps

    def _tapped_pass(
        self, unet: Any, latents: torch.Tensor, size_px: tuple[int, int]
    ) -> dict[str, torch.Tensor]:
        features: dict[str, torch.Tensor] = {}
        missing = set(self.taps)

        def keep(name: str) -> Any:
            def hook(_module: Any, _inputs: Any, output: Any) -> None:
                features[name] = output[0] if isinstance(output, tuple) else output
                missing.discard(name)
                if self.early_exit and not missing:
                    raise _AllTapsSeen

            return hook

        handles = [unet.get_submodule(n).register_forward_hook(keep(n)) for n in self.taps]
        try:
            context = Conditioning(self.states, self.pooled)
            repeated = context.map(lambda states: states.expand(len(latents), *states.shape[1:]))
            unet(latents, self.timestep, **repeated.arguments(size_px))
        except _AllTapsSeen:
            pass
        finally:
            for handle in handles:
                handle.remove()
        return features

    def tap_channels(self) -> list[int]:
        """Return the channel count of each tap, found by one pass over a smallest picture."""
        parameter = next(self.unet.parameters())
        side = 2 * self.multiple
        image = torch.zeros(1, 3, side, side, device=parameter.device, dtype=parameter.dtype)
        return [feature.shape[1] for feature in self(image)]


def load_extractor(base: str, *, unet: str = "", prompt: str = "", **options: Any) -> Any:
    """Load the frozen parts of `base` (and another U-Net's folder, if named) as an extractor."""
    base = models.find_base(base)
    context = PromptEncoder(base).encode([prompt])
    vae = models.load_component(base, "vae")
    if unet:
        network = models.load_component(str(models.find_folder(unet)), "unet", subfolder=None)
    else:
        network = models.load_component(base, "unet")
    return DiffusionExtractor(network, vae, context, **options)
