"""Moving averages of weights: the one update rule of all stages, and how averages start.

    average <- average + share * (weights - average)

With a fixed share of 1 - decay an average would hold on to the first weights for about 1 / (1 -
decay) updates. So the share is larger in the first updates, by one of the two functions below.
"""

from collections.abc import Iterable

import torch


@torch.no_grad()
def update_average(
    average: Iterable[torch.Tensor], weights: Iterable[torch.Tensor], share: float
) -> None:
    """Move the tensors of an average in place by `share` (0..1) of the way to `weights`."""
    torch._foreach_lerp_(list(average), [weight.detach() for weight in weights], share)


def ema_share(decay: float, step: int) -> float:
    """Return the share after update `step` (from 0), with the warm-up of diffusers' `EMAModel`."""
    return 1 - min(decay, (1 + step) / (10 + step))


def mean_then_ema_share(decay: float, num_averaged: int) -> float:
    """Return the share that makes the first averages the plain mean of all weights so far.

    `num_averaged` counts the weights that are in the average already, at least 1.
    """
    return max(1 - decay, 1 / (num_averaged + 1))
