"""Multi-resolution latent fusion: large regions from the base pass, the rest from tiles.

The tiles' predictions are averaged and ONE solver step moves the whole canvas, so multistep
solvers are legal; for DDIM without noise this equals averaging the stepped tiles, since the step
is linear. Symbols: x_t = alpha x0 + sigma eps, alpha^2 + sigma^2 = 1; v = alpha eps - sigma x0.

`aligned`: inside the mask the prediction is replaced by the one whose x0 is the reference latent,
so the region stays on the straight path from its own noise to that latent, at exactly the noise
level of its surroundings, and is clean at the end.
`reference`: exactly DGInStyle: after each step the region is overwritten with the reference
latent plus fresh noise of timestep t-1 (which is noisier than the surroundings in all but the
last step).
"""

from dataclasses import dataclass
from typing import Any

import torch

Level = tuple[float, float]  # alpha, sigma


def noise_levels(scheduler: Any) -> list[Level]:
    """Return (alpha, sigma) at each timestep of a variance-preserving scheduler."""
    sigmas = getattr(scheduler, "sigmas", None)
    levels = []
    for index, timestep in enumerate(scheduler.timesteps):
        if sigmas is not None:  # DPM++ and UniPC keep sigma / alpha
            ratio = float(sigmas[index])
            alpha_squared = 1 / (1 + ratio**2)
        else:
            alpha_squared = float(scheduler.alphas_cumprod[int(timestep)])
        levels.append((alpha_squared**0.5, (1 - alpha_squared) ** 0.5))
    return levels


def prediction_for_x0(
    target: torch.Tensor, latents: torch.Tensor, level: Level, prediction_type: str
) -> torch.Tensor:
    """Return the model output whose implied x0 is `target`, at noisy `latents` of `level`."""
    alpha, sigma = level
    if prediction_type == "sample":
        return target
    noise = (latents - alpha * target) / sigma
    if prediction_type == "epsilon":
        return noise
    if prediction_type == "v_prediction":
        return alpha * noise - sigma * target
    raise ValueError(f"prediction type {prediction_type!r}")


@dataclass
class RegionConstraint:
    """Holds the masked region of one canvas on the reference latent.

    `mask`: 1x1xhxw bool, `target`: 1xCxhxw reference latent, `generator`: CPU source of the
    fresh noise of the `reference` preset.
    """

    mask: torch.Tensor
    target: torch.Tensor
    preset: str
    generator: torch.Generator

    def before_step(
        self, prediction: torch.Tensor, latents: torch.Tensor, level: Level, prediction_type: str
    ) -> torch.Tensor:
        """Return the prediction of the whole canvas that the solver shall use."""
        if self.preset != "aligned":
            return prediction
        held = prediction_for_x0(self.target, latents, level, prediction_type)
        return torch.where(self.mask, held, prediction)

    def after_step(self, latents: torch.Tensor, scheduler: Any, step: int) -> torch.Tensor:
        """Return the canvas after solver step `step`, pasted where the preset asks for it."""
        last = step == len(scheduler.timesteps) - 1
        if self.preset == "aligned":
            # Schedulers without a clean final level would leave a trace of noise.
            return torch.where(self.mask, self.target, latents) if last else latents
        # t-1 of the last timestep is 0 in DGInStyle's schedule; other spacings need the rule.
        timestep = 0 if last else max(int(scheduler.timesteps[step]) - 1, 0)
        alpha_squared = float(scheduler.alphas_cumprod[timestep])
        noise = torch.randn(self.target.shape, generator=self.generator).to(self.target.device)
        noisy = alpha_squared**0.5 * self.target + (1 - alpha_squared) ** 0.5 * noise
        return torch.where(self.mask, noisy, latents)
