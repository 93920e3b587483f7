"""What is measured between images: copies, variety of one label map, distances to other sets."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from generation.quality import distances, pixels
from pipeline.dataset import Sample
from pipeline.score_rows import Row

MOST_GROUPS = 100  # of near-duplicates that are listed
MOST_IDS = 10  # of a group that are listed


def find_duplicates(rows: Sequence[Row], most_bits: int) -> dict[str, Any]:
    """Return how many images have a near-duplicate, in how many groups, and the largest groups."""
    groups = pixels.near_duplicates([row["hash"] for row in rows], most_bits)
    return {
        "images": sum(map(len, groups)),
        "groups": len(groups),
        "largest": [
            {"images": len(group), "ids": [rows[i]["id"] for i in group[:MOST_IDS]]}
            for group in groups[:MOST_GROUPS]
        ],
    }


def label_groups(samples: Sequence[Sample]) -> list[list[int]]:
    """Return the positions of samples with one and the same label map, where there are several."""
    groups: dict[str, list[int]] = {}
    for position, sample in enumerate(samples):
        if digest := sample.row.get("label_sha256"):
            groups.setdefault(str(digest), []).append(position)
    return [group for group in groups.values() if len(group) > 1]


def diversity(groups: Sequence[Sequence[int]], features: np.ndarray) -> dict[str, Any] | None:
    """Return mean and deviation over label maps of how far their images are apart.

    The distance is 1 - cosine of features NxD from which the mean of the set is taken; images of
    different label maps have about 1. None without a label map of several images.
    """
    if not groups:
        return None
    centred = features - features.mean(0)
    unit = centred / np.maximum(np.linalg.norm(centred, axis=1, keepdims=True), 1e-12)
    means = []
    for group in groups:
        cosines = unit[list(group)] @ unit[list(group)].T
        size = len(group)
        means.append(1 - (cosines.sum() - np.trace(cosines)) / (size * (size - 1)))
    return {
        "mean": round(float(np.mean(means)), 4),
        "deviation": round(float(np.std(means)), 4),
        "label_maps": len(groups),
    }


def measure(
    samples: Sequence[Sample],
    rows: Sequence[Row],
    features: Mapping[str, np.ndarray],
    reference: Mapping[str, np.ndarray],
    most_bits: int,
) -> dict[str, Any]:
    """Return duplicates, and diversity and distances by the name of the feature network."""
    groups = label_groups(samples)
    found: dict[str, Any] = {"duplicates": find_duplicates(rows, most_bits)}
    if features:
        found["diversity"] = {name: diversity(groups, part) for name, part in features.items()}
    if reference:
        found["distances"] = {
            name: distances.compare(reference[name], part)
            if min(len(part), len(reference[name])) >= distances.LEAST
            else None
            for name, part in features.items()
        }
    return found
