"""From drawn crops to one step of diffusion training, the same for U-Net and ControlNet.

A drawn crop is (picture, label ids or None, caption); the picture is HxWx3 uint8, or the float16
moments of its latent where crops are cached (`finetune.cache`). Pictures and label ids travel to
the device as bytes and become floats and one-hot planes there.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from finetune.losses import diffusion_loss, min_snr_weights, noisy_latents
from pipeline import models
from pipeline.latents import images_to_tensor, latent_factor, sample_latents
from pipeline.prompt_encoder import PromptEncoder

WEIGHT_TYPES = {"no": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def frozen_type(precision: str, device: torch.device) -> torch.dtype:
    """Return the type of frozen weights: autocast's own, where norms take such weights.

    The CPU's group norm refuses bfloat16 weights for the float32 residuals of a ControlNet.
    """
    return torch.float32 if device.type == "cpu" else WEIGHT_TYPES[precision]


def collate(items: list[Any]) -> tuple[torch.Tensor, torch.Tensor | None, tuple[str, ...]]:
    """Stack drawn crops: BxHxWx3 pictures or Bx2xCxhxw moments, BxHxW ids or None, captions."""
    pictures, maps, captions = zip(*items, strict=True)
    return _stack(pictures), None if maps[0] is None else _stack(maps), captions


def _stack(parts: tuple[Any, ...]) -> torch.Tensor:
    if torch.is_tensor(parts[0]):
        return torch.stack(parts)
    return torch.from_numpy(np.stack(parts))


@dataclass
class Step:
    """What the networks get and must predict. `text`: keyword arguments for them."""

    noisy: torch.Tensor
    timesteps: torch.Tensor
    target: torch.Tensor
    text: dict[str, Any]


class FrozenBase:
    """The parts of a base model that no program trains: autoencoder, text encoders, schedule."""

    def __init__(self, base: str, device: torch.device, *, min_snr_gamma: float = 0.0) -> None:
        self.device, self.min_snr_gamma = device, min_snr_gamma
        self.vae = models.load_component(base, "vae").requires_grad_(False).to(device)
        self.text = PromptEncoder(base, device)
        self.scheduler = models.load_scheduler(base)

    def vae_precision(self) -> Any:
        """Return the autocast context for the autoencoder: float32 in place of float16 if it must.

        SDXL's overflows in float16, and its config says so (`force_upcast`).
        """
        kind = self.device.type
        dtype = torch.get_autocast_dtype(kind)
        overflows = dtype is torch.float16 and self.vae.config.force_upcast
        enabled = torch.is_autocast_enabled(kind) and not overflows
        return torch.autocast(kind, dtype=dtype, enabled=enabled)

    @torch.no_grad()
    def latents(self, pictures: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Draw scaled latents BxCxhxw, float32, from the posterior of pictures or moments."""
        pictures = pictures.to(self.device, non_blocking=True)
        if pictures.dtype == torch.uint8:
            with self.vae_precision():
                images = images_to_tensor(pictures)
                return sample_latents(self.vae, images, generator).float()
        return sample_moments(pictures, generator)

    def step(self, batch: Any, generator: torch.Generator) -> Step:
        """Add noise to a collated batch; everything drawn comes from `generator`."""
        pictures, _, captions = batch
        latents = self.latents(pictures, generator)
        noisy, target, timesteps = noisy_latents(self.scheduler, latents, generator)
        return Step(noisy, timesteps, target, self.text_arguments(captions, latents))

    def text_arguments(self, captions: Any, latents: torch.Tensor) -> dict[str, Any]:
        """Return the networks' keyword arguments for `captions` at the size of `latents`."""
        factor = latent_factor(self.vae)
        height, width = latents.shape[-2:]
        return self.text.encode(captions).arguments((height * factor, width * factor))

    def loss(self, prediction: torch.Tensor, step: Step) -> torch.Tensor:
        """Return the weighted mean squared error of a prediction."""
        weights = min_snr_weights(self.scheduler, step.timesteps, self.min_snr_gamma)
        return diffusion_loss(prediction, step.target, weights)


def sample_moments(moments: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Draw latents BxCxhxw, float32, from moments Bx2xCxhxw (mean and deviation)."""
    mean, std = moments.float().unbind(1)
    return mean + std * torch.randn(mean.shape, generator=generator, device=mean.device)


@torch.no_grad()
def encode_moments(vae: Any, images: list[np.ndarray]) -> torch.Tensor:
    """Return mean and deviation of the scaled latents of HxWx3 pictures: Bx2xCxhxw float16, CPU."""
    device = next(vae.parameters()).device
    posterior = vae.encode(images_to_tensor(images).to(device)).latent_dist
    mean = posterior.mean - (vae.config.shift_factor or 0)
    return (torch.stack([mean, posterior.std], dim=1) * vae.config.scaling_factor).half().cpu()


def predict(
    unet: Any,
    noisy: torch.Tensor,
    timesteps: torch.Tensor,
    text: dict[str, Any],
    controlnet: Any = None,
    control: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return the U-Net's prediction, steered by `control` Bx20xHxW where a ControlNet is given."""
    extra = {}
    if controlnet is not None:
        down, middle = controlnet(
            noisy, timesteps, controlnet_cond=control, return_dict=False, **text
        )
        extra = {"down_block_additional_residuals": down, "mid_block_additional_residual": middle}
    return unet(noisy, timesteps, **text, **extra).sample
