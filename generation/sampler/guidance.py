"""Classifier-free guidance (Ho and Salimans, 2022) in a part of the steps."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Guidance:
    """How far and when the prediction is moved away from that of the negative prompt."""

    scale: float
    """1 is no guidance."""
    interval: tuple[float, float]
    """Shares of the steps from which and up to which it is used (Kynkaanniemi et al., 2024)."""
    num_steps: int

    def is_used_in(self, step: int) -> bool:
        """Tell whether a denoising step evaluates the negative prompt too."""
        first, last = self.interval
        return self.scale != 1 and first <= step / self.num_steps < last

    def combine(self, negative: torch.Tensor, positive: torch.Tensor) -> torch.Tensor:
        """Return the prediction BxCxhxw of both branches."""
        return negative + self.scale * (positive - negative)
