"""Confidence intervals and paired tests by resampling images.

Images of a target are drawn with replacement, as many as it has; each draw gives an mIoU of the
summed areas, as the score itself is one. Targets are drawn independently of each other, networks
together: they are compared on the same draws. A class without a pixel in a draw is left out of that
draw's mean. Efron and Tibshirani, "An Introduction to the Bootstrap", 1993: percentile intervals.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from pipeline.seeding import numpy_generator

RESAMPLES = 1000
CONFIDENCE = 95.0  # percent
_TOGETHER = 250  # draws in memory at once


def mious(areas: np.ndarray) -> np.ndarray:
    """Return the mIoU in percent, B, of areas Bx3xK; not a number where no class has a pixel."""
    both, predicted, labelled = np.moveaxis(areas.astype(np.float64), 1, 0)
    union = predicted + labelled - both
    counted = union > 0
    iou = np.divide(both, union, out=np.zeros_like(both), where=counted)
    number = counted.sum(1)
    sums = 100 * iou.sum(1)
    return np.divide(sums, number, out=np.full(len(sums), np.nan), where=number > 0)


def resampled_mious(
    areas: np.ndarray, target: str, *, resamples: int = RESAMPLES, seed: int = 0
) -> np.ndarray:
    """Return the mIoU in percent of each draw, from the areas Nx3xK of N images of a target.

    Draws depend on `seed`, the name of the target and N alone, so they are the same for all
    networks.
    """
    number = len(areas)
    flat = areas.reshape(number, -1).astype(np.float64)  # whole numbers, exact below 2**53
    rng = numpy_generator(seed, f"bootstrap {target}", number)
    found = []
    for start in range(0, resamples, _TOGETHER):
        draws = min(_TOGETHER, resamples - start)
        times = rng.multinomial(number, np.full(number, 1 / number), size=draws)
        found.append(mious((times @ flat).reshape(draws, *areas.shape[1:])))
    return np.concatenate(found)


def interval(values: np.ndarray, confidence: float = CONFIDENCE) -> list[float] | None:
    """Return the percentile interval of draws; None where a draw has no score."""
    if not len(values) or np.isnan(values).any():
        return None
    tail = (100 - confidence) / 2
    low, high = np.percentile(values, [tail, 100 - tail])
    return [float(low), float(high)]


def mean_draws(draws: Mapping[str, np.ndarray]) -> np.ndarray:
    """Return the mean over targets of each draw."""
    return np.mean(list(draws.values()), axis=0)


def p_value(differences: np.ndarray) -> float | None:
    """Return the two-sided p of "no difference" from draws of a paired difference.

    None where a draw has no score.

    Twice the smaller share of draws at or beyond 0. One draw is added to both numbers, so that p is
    never 0 (Davison and Hinkley, "Bootstrap Methods and their Application", 1997, section 4.2).
    """
    if np.isnan(differences).any():
        return None
    beyond = min((differences <= 0).sum(), (differences >= 0).sum())
    return float(min(1.0, 2 * (beyond + 1) / (len(differences) + 1)))


def seed_spread(values: Sequence[float]) -> float | None:
    """Return the standard deviation over seeds (n - 1), None for one seed."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else None
