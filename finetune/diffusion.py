"""From a batch of crops to one step of diffusion training, the same for U-Net and ControlNet.

Images and label ids travel to the device as bytes and become floats and one-hot planes there.
Where crops are cached, the moments of their latents take the place of images (`finetune.cache`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, ControlNetModel, UNet2DConditionModel

from finetune.crops import TrainingItem
from finetune.losses import diffusion_loss, min_snr_weights, noisy_latents
from pipeline import models
from pipeline.latents import images_to_tensor, sample_latents
from pipeline.prompt_encoder import PromptEncoder
from pipeline.size_grid import vae_scale_factor

ENCODED_PX = 1024 * 1024  # about 3 GB of the autoencoder's activations in float32
WEIGHT_TYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
Batch = tuple[torch.Tensor, torch.Tensor | None, Sequence[str]]
"""BxHxWx3 images or Bx2xCxhxw moments; BxHxW label ids or None; captions."""


def frozen_type(precision: str, device: torch.device) -> torch.dtype:
    """Return the type of frozen weights: autocast's own, where norms take such weights.

    The CPU's group norm refuses bfloat16 weights for the float32 residuals of a ControlNet.
    """
    return torch.float32 if device.type == "cpu" else WEIGHT_TYPES[precision]


def collate(items: list[TrainingItem]) -> Batch:
    """Stack training items to a batch."""
    images, maps, captions = zip(*items, strict=True)
    return _stack(images), None if maps[0] is None else _stack(maps), captions


def _stack(parts: tuple[Any, ...]) -> torch.Tensor:
    if torch.is_tensor(parts[0]):
        return torch.stack(parts)
    return torch.from_numpy(np.stack(parts))


@dataclass
class NoisyBatch:
    """Inputs and target of the networks for one batch."""

    latents: torch.Tensor
    """noisy latents BxCxhxw"""
    timesteps: torch.Tensor
    target: torch.Tensor
    """what they must predict, BxCxhxw"""
    text: dict[str, Any]
    """keyword arguments of the networks for the captions"""


class FrozenBase:
    """The parts of a base model that no program trains: autoencoder, text encoders, schedule."""

    def __init__(self, base: str, device: torch.device, *, min_snr_gamma: float = 0.0) -> None:
        self.device, self.min_snr_gamma = device, min_snr_gamma
        self.vae = models.load_component(base, "vae").requires_grad_(False).to(device)
        self.text = PromptEncoder(base, device)
        self.scheduler = models.load_scheduler(base)

    @torch.no_grad()
    def latents(self, images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Sample scaled latents BxCxhxw, float32, from the posterior of images or moments."""
        images = images.to(self.device, non_blocking=True)
        if images.dtype == torch.uint8:
            return sample_latents(self.vae, images_to_tensor(images), generator)
        return sample_moments(images, generator)

    def add_noise(self, batch: Batch, generator: torch.Generator) -> NoisyBatch:
        """Encode a batch and add noise at random timesteps, all of it from `generator`."""
        images, _, captions = batch
        latents = self.latents(images, generator)
        noisy, target, timesteps = noisy_latents(self.scheduler, latents, generator)
        return NoisyBatch(noisy, timesteps, target, self.text_arguments(captions, latents))

    def text_arguments(self, captions: Sequence[str], latents: torch.Tensor) -> dict[str, Any]:
        """Return the networks' keyword arguments for `captions` at the size of `latents`."""
        factor = vae_scale_factor(self.vae)
        height, width = latents.shape[-2:]
        return self.text.encode(captions).arguments((height * factor, width * factor))

    def loss(
        self, prediction: torch.Tensor, noisy: NoisyBatch, area: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Return the weighted mean squared error of a prediction; `area` Bx1xhxw weighs pixels."""
        weights = min_snr_weights(self.scheduler, noisy.timesteps, self.min_snr_gamma)
        return diffusion_loss(prediction, noisy.target, weights, area)


def sample_moments(moments: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Sample latents BxCxhxw, float32, from moments Bx2xCxhxw (mean and deviation)."""
    mean, std = moments.float().unbind(1)
    return mean + std * torch.randn(mean.shape, generator=generator, device=mean.device)


@torch.no_grad()
def encode_moments(vae: AutoencoderKL, images: list[np.ndarray]) -> torch.Tensor:
    """Return mean and deviation of the scaled latents of HxWx3 images: Bx2xCxhxw float16, CPU.

    At most `ENCODED_PX` pixels, or one image, are encoded at once: a batch needs no more memory.
    """
    device = next(vae.parameters()).device
    height, width = images[0].shape[:2]
    size = max(1, ENCODED_PX // (height * width))
    moments = []
    for start in range(0, len(images), size):
        part = images_to_tensor(images[start : start + size]).to(device)
        posterior = vae.encode(part).latent_dist
        mean = posterior.mean - (vae.config.shift_factor or 0)
        scaled = torch.stack([mean, posterior.std], dim=1) * vae.config.scaling_factor
        moments.append(scaled.half().cpu())
    return torch.cat(moments)


def predict(
    unet: UNet2DConditionModel,
    noisy: torch.Tensor,
    timesteps: torch.Tensor,
    text: dict[str, Any],
    controlnet: ControlNetModel | None = None,
    control: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return the U-Net's prediction, with the residuals of a ControlNet for `control` Bx20xHxW."""
    residuals = {}
    if controlnet is not None:
        down, middle = controlnet(
            noisy, timesteps, controlnet_cond=control, return_dict=False, **text
        )
        residuals = {
            "down_block_additional_residuals": down,
            "mid_block_additional_residual": middle,
        }
    return unet(noisy, timesteps, **text, **residuals).sample
