"""In-sampling correction: the first steps are led towards the label map by a segmentation head.

Classifier guidance (Dhariwal and Nichol, NeurIPS 2021, algorithm 2) with a head on the U-Net's own
features as the classifier (Readout Guidance, Luo et al., CVPR 2024). With x_t = alpha x0 + sigma
eps, alpha = sqrt(abar_t), sigma = sqrt(1 - abar_t):

    g    = grad_{x_t} CE(head(features(x_t, t, text, label map)), label map)
    G    = alpha g / rms(g)
    eps' = eps + scale sigma G

In theory the gradient of a classifier of x_t shrinks with alpha as the signal does, since x_t
depends on x0 by alpha alone; in practice its length differs from head to head. So it is brought to
the length alpha, and the same `scale` means the same for all models: it moves x0 by -scale sigma^2
g / rms(g), at most `scale` standard deviations of a latent on average (root mean square) over the
tile; single latent pixels move further. For the other prediction types that is

    v'   = v + scale sigma g / rms(g)           x0' = x0 - scale sigma^2 g / rms(g)

which is finite where a schedule without terminal signal has alpha = 0.

The gradient is taken tile by tile and normalised over the tile; the corrected predictions are fused
as all are. It passes the branch of the prompt alone, whose prediction follows the label map. It
passes the U-Net up to the last tap and, as features depend on x_t through them too, its encoder and
the ControlNets: the decoder alone does not see x_t. Without the ControlNets, a small part of the
cost, the direction differs most in the first step.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from generation.sampler.attention import deterministic_kernels
from generation.sampler.fusion import Level
from pipeline.segmentation_head import SegmentationHead, label_cross_entropy

Features = Callable[[torch.Tensor], list[torch.Tensor]]
"""Gives the outputs of the tapped up blocks for noisy tiles BxCxhxw."""


@dataclass(frozen=True)
class Correction:
    """How far, with which head and in which steps the predictions are corrected."""

    head: SegmentationHead
    scale: float
    num_steps: int
    """Steps before this one are corrected."""
    class_balance: float
    """See `label_cross_entropy`."""

    def is_used_in(self, step: int) -> bool:
        """Tell whether a denoising step is corrected."""
        return step < self.num_steps

    def gradient(
        self, tiles: torch.Tensor, features: Features, shares: torch.Tensor
    ) -> torch.Tensor:
        """Return the gradient of each tile's cross entropy, BxCxhxw float32.

        `tiles`: noisy tiles BxCxhxw. `shares`: class shares Bx19xhxw of their label maps. It is of
        the sum over latent pixels, as that of the mean would be lost in float16. The same arguments
        give the same bits, on CUDA as well.
        """
        with torch.enable_grad(), deterministic_kernels(tiles.device):
            tiles = tiles.detach().requires_grad_()
            logits = self.head(features(tiles), tiles.shape[-2:])
            losses = label_cross_entropy(logits, shares, self.class_balance)
            total = losses.sum() * shares[0, 0].numel()
            (gradient,) = torch.autograd.grad(total, tiles)
        return gradient.float()

    def correct(
        self, prediction: torch.Tensor, gradient: torch.Tensor, level: Level, prediction_type: str
    ) -> torch.Tensor:
        """Return the corrected predictions BxCxhxw at noise level (alpha, sigma).

        A tile without gradient (void alone) keeps its prediction, and so does one whose gradient is
        not finite.
        """
        unit = unit_gradient(gradient)
        alpha, sigma = level
        factors = {"epsilon": alpha * sigma, "v_prediction": sigma, "sample": -(sigma**2)}
        return prediction + self.scale * factors[prediction_type] * unit


def is_finite(gradient: torch.Tensor) -> torch.Tensor:
    """Tell of each tile whether its gradient BxCxhxw is finite, B; float16 may overflow."""
    return torch.isfinite(gradient).flatten(1).all(dim=1)


def unit_gradient(gradient: torch.Tensor) -> torch.Tensor:
    """Return g / rms(g) of each tile, BxCxhxw; 0 where g is 0 or not finite.

    g is first scaled to a largest value of about 1 by a power of two, which rounds nothing: the
    squares of float32 vanish below 1e-23 and overflow above 1e19.
    """
    usable = is_finite(gradient)[:, None, None, None]
    gradient = torch.where(usable, gradient, 0)
    exponent = torch.frexp(gradient.abs().amax(dim=(1, 2, 3), keepdim=True)).exponent
    gradient = torch.ldexp(gradient, -exponent.clamp(-126, 126))
    rms = gradient.square().mean(dim=(1, 2, 3), keepdim=True).sqrt()
    return torch.where(rms > 0, gradient / rms, 0)
