"""Training targets and losses, pure functions."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from diffusers import DDIMScheduler


def diffusion_target(
    scheduler: DDIMScheduler, latents: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor
) -> torch.Tensor:
    """Return what the network must predict, by the scheduler's own prediction type.

    epsilon: the noise (Ho et al. 2020); v_prediction: alpha * noise - sigma * latents (Salimans
    and Ho 2022); sample: the latents.
    """
    kind = scheduler.config.prediction_type
    if kind == "epsilon":
        return noise
    if kind == "v_prediction":
        return scheduler.get_velocity(latents, noise, timesteps)
    return latents


def min_snr_weights(
    scheduler: DDIMScheduler, timesteps: torch.Tensor, gamma: float
) -> torch.Tensor | None:
    """Return the weight of each sample's error by min-SNR-gamma, None if `gamma` is 0.

    Hang et al., ICCV 2023, section 3.4: min(SNR, gamma), divided by SNR for epsilon and by SNR + 1
    for v_prediction. With a schedule that ends at zero signal the last step then weighs nothing.
    """
    if gamma <= 0:
        return None
    alphas = scheduler.alphas_cumprod.to(timesteps.device)[timesteps]
    snr = alphas / (1 - alphas).clamp_min(1e-8)
    divisors = {"epsilon": snr.clamp_min(1e-8), "v_prediction": snr + 1}
    return snr.clamp_max(gamma) / divisors.get(scheduler.config.prediction_type, 1)


def diffusion_loss(
    prediction: torch.Tensor,
    target: torch.Tensor,
    weights: torch.Tensor | None = None,
    area: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return the mean squared error: each latent pixel times `area`, each sample times `weights`.

    Prediction and target are BxCxhxw, `area` is Bx1xhxw, `weights` B.
    """
    error = F.mse_loss(prediction.float(), target.float(), reduction="none")
    error = (error if area is None else error * area).mean(dim=(1, 2, 3))
    return (error if weights is None else error * weights).mean()


class LogitNormal(NamedTuple):
    """Distribution of t / num_steps: logit-normal (Esser et al., ICML 2024, equation 19).

    The last third of Stable Diffusion's schedule leaves almost no signal of a small latent;
    logit-normal timesteps are less often there. But the colours of a whole image are learned there,
    and a new text encoder learns what they depend on, so a share of the timesteps can be uniform.
    """

    location: float
    scale: float
    uniform_share: float = 0.0
    """share of the timesteps that are uniform, 0..1"""

    def sample(self, num_steps: int, batch: int, generator: torch.Generator) -> torch.Tensor:
        """Return `batch` timesteps in [0, num_steps), one per quantile of each of both parts.

        One sample of each of equal quantiles lowers the variance (Kingma et al., NeurIPS 2021,
        appendix I).
        """
        num_uniform, remainder = divmod(self.uniform_share * batch, 1)
        num_uniform = int(num_uniform)
        if remainder:  # rounded at random, so that the share also holds for small batches
            num_uniform += int(_quantiles(1, generator).item() < remainder)
        normal = torch.special.ndtri(_quantiles(batch - num_uniform, generator))
        fractions = torch.sigmoid(self.location + self.scale * normal)
        fractions = torch.cat([fractions, _quantiles(num_uniform, generator)])
        return (fractions * num_steps).long().clamp_max(num_steps - 1)


def _quantiles(count: int, generator: torch.Generator) -> torch.Tensor:
    """Return one random number in each of `count` equal parts of 0..1."""
    offsets = torch.rand(count, generator=generator, device=generator.device)
    ranks = torch.arange(count, device=generator.device)
    return ((ranks + offsets) / max(count, 1)).clamp(1e-6, 1 - 1e-6)


def noisy_latents(
    scheduler: DDIMScheduler,
    latents: torch.Tensor,
    generator: torch.Generator,
    logit_normal: LogitNormal | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Sample noise and timesteps; return (noisy latents, target, timesteps).

    Timesteps are uniform, or as `logit_normal` says.
    """
    noise = torch.randn(latents.shape, generator=generator, device=latents.device)
    num_steps, batch = scheduler.config.num_train_timesteps, latents.shape[0]
    if logit_normal:
        timesteps = logit_normal.sample(num_steps, batch, generator)
    else:
        timesteps = torch.randint(num_steps, (batch,), generator=generator, device=latents.device)
    noisy = scheduler.add_noise(latents, noise, timesteps)
    return noisy, diffusion_target(scheduler, latents, noise, timesteps), timesteps


def reconstruction_loss(
    output: torch.Tensor, image: torch.Tensor, *, edge_weight: float, color_weight: float
) -> torch.Tensor:
    """Return the mean absolute error of pixels, of finite differences and of hue.

    The differences give weight to thin structures (poles, signs): a blurred pole costs little in
    pixels but all of its two edges. The hue term compares the opponent colours red-green and
    yellow-blue of 2x2 means: they vary far less than brightness, and a latent trained without it
    was seen to drop the red-green axis. Both tensors Bx3xHxW in [-1, 1].
    """
    error = output - image
    across, down = error.diff(dim=3).abs().mean(), error.diff(dim=2).abs().mean()
    red, green, blue = F.avg_pool2d(error, 2).unbind(1)
    hue = (red - green).abs().mean() + ((red + green) / 2 - blue).abs().mean()
    return error.abs().mean() + edge_weight * (across + down) + color_weight * hue
