"""Distances between sets of features against values worked out by hand."""

import numpy as np
import pytest

from generation.quality import distances as d


def test_frechet_distance_of_gaussians_has_its_closed_form():
    rng = np.random.default_rng(0)
    a = rng.normal(0, 1, (200_000, 2))
    b = rng.normal(0, 1, (200_000, 2)) * (2, 3) + (1, -2)
    # diagonal covariances: squared shift + sum of squared differences of deviations
    assert d.frechet_distance(a, b) == pytest.approx(1 + 4 + (2 - 1) ** 2 + (3 - 1) ** 2, rel=0.02)
    assert d.frechet_distance(a, a) == pytest.approx(0, abs=1e-6)


def test_kernel_distance_is_unbiased_and_sees_a_shift():
    rng = np.random.default_rng(1)
    a, b, far = rng.normal(0, 1, (900, 4)), rng.normal(0, 1, (900, 4)), rng.normal(1, 1, (900, 4))
    same, deviation = d.kernel_distance(a, b)
    assert abs(same) < 3 * deviation / np.sqrt(d.SUBSETS) + 0.01
    assert d.kernel_distance(a, far)[0] > 10 * abs(same)


def test_kernel_distance_is_the_double_sum(monkeypatch):
    monkeypatch.setattr(d, "SUBSETS", 1)
    x, y = np.array([[0.0], [1.0], [2.0]]), np.array([[1.0], [3.0], [5.0]])

    def kernel(a: float, b: float) -> float:
        return (a * b + 1) ** 3

    pairs = [(v[i, 0], v[j, 0]) for v in (x, y) for i in range(3) for j in range(3) if i != j]
    within = sum(kernel(*pair) for pair in pairs) / 6
    across = sum(kernel(p, q) for p in x[:, 0] for q in y[:, 0]) / 9
    assert d.kernel_distance(x, y)[0] == pytest.approx(within - 2 * across)


def test_precision_and_recall_of_a_set_that_covers_one_half():
    left, right = np.arange(0, 10.0)[:, None], np.arange(1000, 1010.0)[:, None]
    both = np.concatenate([left, right])
    assert d.covered(left, both) == 1.0  # precision: all lie where the reference lies
    assert d.covered(both, left) == 0.5  # recall: half of the reference is missed
