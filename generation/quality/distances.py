"""Distances between two sets of features: is a set of images like another one?

Frechet distance: Heusel et al., NeurIPS 2017. Kernel distance (KID): Binkowski et al., ICLR 2018,
section 3. Gaussian MMD: Jayasumana et al., CVPR 2024 (CMMD). Precision and recall: Kynkaanniemi et
al., NeurIPS 2019. Sets of features are NxD float64.
"""

from typing import Any

import numpy as np

NEIGHBOURS = 3  # k of precision and recall; the paper's value
SUBSETS, SUBSET_SIZE = 50, 100
MMD_WIDTH, MMD_SCALE = 10.0, 1000.0  # of CMMD, for features of length 1 times sqrt(D)
MMD_MOST = 5000  # images of each set in the Gaussian MMD, whose cost is quadratic
COVERED_MOST = 5000  # images of each set in precision and recall
LEAST = NEIGHBOURS + 1
"""The smallest set that has distances."""


def frechet_distance(a: np.ndarray, b: np.ndarray) -> float:
    """Return |mean difference|^2 + trace(A + B - 2 (A B)^(1/2)) of two sets of features."""
    from scipy import linalg

    cov_a, cov_b = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    root = linalg.sqrtm(cov_a @ cov_b)
    shift = np.square(a.mean(0) - b.mean(0)).sum()
    return float(shift + np.trace(cov_a + cov_b - 2 * np.real(root)))


def kernel_distance(a: np.ndarray, b: np.ndarray) -> tuple[float, float]:
    """Return mean and deviation over subsets of the unbiased MMD^2, kernel (x.y / D + 1)^3."""
    rng = np.random.default_rng(0)
    size = min(SUBSET_SIZE, len(a), len(b))
    values = []
    for _ in range(SUBSETS):
        x, y = (part[rng.choice(len(part), size, replace=False)] for part in (a, b))
        xx, yy, xy = (_cubic(*pair) for pair in ((x, x), (y, y), (x, y)))
        within = sum((k.sum() - np.trace(k)) / (size * (size - 1)) for k in (xx, yy))
        values.append(within - 2 * xy.mean())
    return float(np.mean(values)), float(np.std(values))


def _cubic(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return (a @ b.T / a.shape[1] + 1) ** 3


def gaussian_distance(a: np.ndarray, b: np.ndarray) -> float:
    """Return 1000 times the MMD^2 with kernel exp(-|x - y|^2 / (2 * 10^2)), as CMMD has it.

    The mean over all pairs, so two equal sets have 0. Features are scaled to a length of sqrt(D),
    which lets one width fit features of every network.
    """
    a, b = (_to_length(_thinned(part, MMD_MOST)) for part in (a, b))

    def mean_kernel(x: np.ndarray, y: np.ndarray) -> float:
        return float(np.exp(-np.square(pairwise(x, y)) / (2 * MMD_WIDTH**2)).mean())

    return MMD_SCALE * (mean_kernel(a, a) + mean_kernel(b, b) - 2 * mean_kernel(a, b))


def _to_length(features: np.ndarray) -> np.ndarray:
    lengths = np.linalg.norm(features, axis=1, keepdims=True)
    return features / np.maximum(lengths, 1e-12) * np.sqrt(features.shape[1])


def _thinned(features: np.ndarray, most: int) -> np.ndarray:
    """Return at most `most` rows, evenly spread."""
    if len(features) <= most:
        return features
    return features[np.linspace(0, len(features) - 1, most).astype(int)]


def covered(points: np.ndarray, support: np.ndarray) -> float:
    """Return the share of `points` within a ball of `support`, as wide as its k-th neighbour."""
    points, support = _thinned(points, COVERED_MOST), _thinned(support, COVERED_MOST)
    radii = np.sort(pairwise(support, support), axis=1)[:, NEIGHBOURS]
    return float((pairwise(points, support) <= radii).any(axis=1).mean())


def pairwise(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the Euclidean distances of every row of `a` from every row of `b`, NxM."""
    squares = np.square(a).sum(1)[:, None] + np.square(b).sum(1) - 2 * a @ b.T
    return np.sqrt(np.maximum(squares, 0))


def compare(reference: np.ndarray, images: np.ndarray) -> dict[str, Any]:
    """Return all distances of features `images` from features `reference`; see `LEAST`."""
    kernel, deviation = kernel_distance(reference, images)
    return {
        "n": [len(reference), len(images)],
        "frechet": round(frechet_distance(reference, images), 4),
        "kernel": round(kernel, 6),
        "kernel_deviation": round(deviation, 6),
        "gaussian": round(gaussian_distance(reference, images), 4),
        "precision": round(covered(images, reference), 3),
        "recall": round(covered(reference, images), 3),
    }
