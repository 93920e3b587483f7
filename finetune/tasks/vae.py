"""The autoencoder, trained to reconstruct images."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

from finetune.autoencoder import (
    LossWeights,
    Perceptual,
    Reconstruct,
    adversarial_loss,
    balanced_loss,
    discriminator_loss,
)
from finetune.data import Batches
from finetune.denoised_latents import PartialDenoiser
from finetune.loop import Loss, Task
from finetune.losses import reconstruction_loss
from finetune.network_sizes import AutoencoderSizes
from finetune.start import Run
from pipeline.latents import images_to_tensor
from pipeline.seeding import numpy_generator
from pipeline.size_grid import vae_scale_factor

NUM_SCALED = 64  # crops that the scale of the latents is measured on


def build_autoencoder(sizes: AutoencoderSizes, sample_size: int) -> AutoencoderKL:
    """Build an autoencoder with random weights; `sample_size` is the height of crops in pixels."""
    levels = len(sizes.channels)
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=sizes.channels,
        layers_per_block=1,
        latent_channels=sizes.latent_channels,
        norm_num_groups=sizes.norm_groups,
        mid_block_add_attention=False,
        sample_size=sample_size,
    )


class AutoencoderTask(Task):
    """Trains an autoencoder, or with `decoder_only` its decoder.

    The discriminator is trained from the first update on; the adversarial loss trains the
    decoder from update `adversarial_start` on. With `denoiser` a decoder learns from latents that
    a diffusion model has changed.
    """

    model: Reconstruct

    def __init__(
        self,
        run: Run,
        vae: AutoencoderKL,
        batches: Batches,
        sample: Callable[[np.random.Generator], np.ndarray],
        weights: LossWeights,
        *,
        adversarial_start: int = 0,
        decoder_only: bool = False,
        denoiser: PartialDenoiser | None = None,
    ) -> None:
        self.denoiser = denoiser
        self.run, self.batches, self.sample, self.weights = run, batches, sample, weights
        self.adversarial_start = adversarial_start
        self.device, self.decoder_only = run.accelerator.device, decoder_only
        vae.encoder.requires_grad_(not decoder_only)
        vae.quant_conv.requires_grad_(not decoder_only)
        self.model = Reconstruct(
            vae,
            decoder_only=decoder_only,
            halve=weights.scale > 0,
            discriminate=weights.adversarial > 0,
        )
        self.latent_channels, self.factor = vae.config.latent_channels, vae_scale_factor(vae)
        self.perceptual = Perceptual().to(self.device) if weights.perceptual else None

    def loss(
        self, model: torch.nn.Module, batch: torch.Tensor, generator: torch.Generator, *, step: int
    ) -> Loss:
        """Return the loss of images Bx3xHxW in [-1, 1] and its parts."""
        image, weights = batch.to(self.device), self.weights
        sides = [side // self.factor for side in image.shape[-2:]]
        noise = torch.randn(
            len(image), self.latent_channels, *sides, generator=generator, device=self.device
        )
        change = partial(self.denoiser.apply, generator=generator) if self.denoiser else None
        output, half, moments = model(image, noise, change)
        pixel_weights = {"edge_weight": weights.edge, "color_weight": weights.color}
        loss, logged = balanced_loss(
            output,
            lambda x: reconstruction_loss(x, image, **pixel_weights),
            self._balanced_terms(image, step),
        )
        divergence = DiagonalGaussianDistribution(moments).kl().mean() / noise[0].numel()
        loss = loss + weights.kl * divergence
        if half is not None:
            # Latents that scale with the image have less noise-like detail, and a diffusion
            # model learns them sooner (Skorokhodov et al., ICML 2025, section 4)
            halved = F.avg_pool2d(image[: len(half)], 2)
            loss = loss + weights.scale * reconstruction_loss(half, halved, **pixel_weights)
        if self.model.discriminator:
            own_loss = discriminator_loss(self.model.discriminator, output, image)
            loss, logged["discriminator"] = loss + own_loss, own_loss.detach()
        psnr = -10 * torch.log10(((output.detach() - image) / 2).square().mean())
        return Loss(loss, {**logged, "psnr": psnr, "kl": divergence})

    def _balanced_terms(self, image: torch.Tensor, step: int) -> dict[str, Any]:
        """Return weight and loss of the terms whose gradients are balanced, by name."""
        terms: dict[str, Any] = {}
        if perceptual := self.perceptual:
            terms["perceptual"] = (self.weights.perceptual, lambda x: perceptual(x, image))
        discriminator = self.model.discriminator
        if discriminator and step >= self.adversarial_start:
            terms["adversarial"] = (
                self.weights.adversarial,
                lambda x: adversarial_loss(discriminator, x),
            )
        return terms

    def save(self, weights: Any, folder: Path) -> None:
        """Write folder/vae."""
        if not self.decoder_only:
            scaling_factor = self._measure_scaling_factor(weights.vae)
            weights.vae.register_to_config(scaling_factor=scaling_factor)
        weights.vae.save_pretrained(folder / "vae")

    @torch.no_grad()
    def _measure_scaling_factor(self, vae: AutoencoderKL) -> float:
        """Return the factor that gives latents unit variance (Rombach et al. 2022, appendix G)."""
        seed = self.run.seed
        crops = [self.sample(numpy_generator(seed, "latent scale", i)) for i in range(NUM_SCALED)]
        images = images_to_tensor(crops).to(self.device)
        means = torch.cat([vae.encode(part).latent_dist.mean for part in images.split(8)])
        return round(1 / float(means.std()), 5)
