"""Filters of labels: each takes a label map and what a network says of its image, HxW and KxHxW.

Dropped pixels become void. FreeMask: Yang et al., NeurIPS 2023 (pixels whose loss exceeds 1.25
times the mean of their class). Vote: after MatchMask, CVPR 2026; the exact rule is ours. Transport:
after the label assignment of SENSE, ICML 2026, by Sinkhorn's algorithm (Cuturi, NeurIPS 2013).
"""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from generation.quality import fidelity
from generation.quality.fidelity import Counts, from_row, total
from pipeline.labels import NUM_CLASSES, VOID
from pipeline.score_rows import Row

ITERATIONS = 50
CELLS = 20_000  # pixels from which the potentials of the classes are found


def mean_losses(
    rows: Sequence[Row], segmenter: str, min_pixels: int, *, conditions: Iterable[str] = ()
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Return the mean loss and the recall (0 to 1) of each class, K numbers by condition.

    A class with fewer than `min_pixels` pixels in a condition has the values of all conditions. One
    without any pixel has an infinite loss, so that no limit drops it, and the recall NaN.
    `conditions` are returned too if no row has them.
    """
    groups: dict[str, list[Counts]] = {condition: [] for condition in conditions}
    for row in rows:
        groups.setdefault(row["condition"], []).append(from_row(row["fidelity"][segmenter]))
    whole = total(one for part in groups.values() for one in part)
    losses, recalls = {}, {}
    for condition, part in groups.items():
        counts = total(part)
        few = counts.areas[2] < min_pixels
        loss = np.where(few, whole.loss, counts.loss)
        right, labelled = np.where(few, whole.areas[[0, 2]], counts.areas[[0, 2]])
        is_known, pixels = labelled > 0, np.maximum(labelled, 1)
        losses[condition] = np.where(is_known, loss / pixels, np.inf)
        recalls[condition] = np.where(is_known, right / pixels, np.nan)
    return losses, recalls


def relative_score(row: Row, segmenter: str, recalls: Mapping[str, np.ndarray]) -> float:
    """Return the pixel accuracy of an image, divided by that expected for it.

    The expected accuracy follows from the mean recalls of its classes in its condition. Pixels of
    classes whose recall is not known do not count; without others the score is 1.
    """
    counts, recall = from_row(row["fidelity"][segmenter]), recalls[row["condition"]]
    is_known = ~np.isnan(recall)
    right, labelled = counts.areas[[0, 2]][:, is_known]
    expected = (recall[is_known] * labelled).sum()
    return float(right.sum() / expected) if expected else 1.0


def drop_hard(label: np.ndarray, costs: np.ndarray, limits: np.ndarray) -> np.ndarray:
    """FreeMask: drop pixels whose loss exceeds the limit of their class (K nats)."""
    padded = np.append(limits, np.full(256 - len(limits), np.inf))
    return _dropped(label, fidelity.label_loss(costs, label) > padded[label])


def drop_band(label: np.ndarray, costs: np.ndarray, width_px: int) -> np.ndarray:
    """Drop pixels near a boundary where the network sees another class than the label."""
    wrong = costs.argmin(0) != label
    return _dropped(label, fidelity.boundary_band(label, width_px) & wrong)


def drop_outvoted(
    label: np.ndarray, predictions: Sequence[np.ndarray], share: float
) -> list[np.ndarray]:
    """Vote: return the label of each image of one label map, HxW each.

    A pixel is dropped where this image shows another class, while at least `share` of all images
    show the label's. What no image shows is hard for the network, not wrong, and stays. A map with
    a single image stays as it is.
    """
    right = np.stack([predicted == label for predicted in predictions])
    seen = right.mean(0) >= share
    alone = len(predictions) == 1
    return [_dropped(label, ~one & seen & (not alone)) for one in right]


def transport(
    label: np.ndarray, costs: np.ndarray, *, stay: float, temperature: float
) -> np.ndarray:
    """Assign each pixel a class of the label map so that the areas of the classes stay.

    The cost of a class is the network's, less `stay` nats for the class that the label names;
    entropic optimal transport at `temperature` nats. Void stays void. One potential of each class
    makes the areas right; it is found on evenly spread pixels and used on all of them.
    """
    valid = label != VOID
    classes = np.unique(label[valid])
    if len(classes) < 2:
        return label
    own = label[valid][:, None] == classes
    cost = costs[classes][:, valid].T.astype(np.float64) - stay * own
    step = -(-len(cost) // CELLS)
    score = _potentials(cost[::step], own[::step].mean(0), temperature) - cost
    found = label.copy()
    found[valid] = classes[score.argmax(1)]
    return found


def _potentials(cost: np.ndarray, shares: np.ndarray, temperature: float) -> np.ndarray:
    """Return the K potentials in nats that give classes their `shares` of the pixels."""
    scaled = np.exp(-(cost - cost.min(1, keepdims=True)) / temperature)
    weights = np.ones(len(shares))
    for _ in range(ITERATIONS):
        rows = 1 / (scaled @ weights)
        weights = shares / np.maximum((scaled * rows[:, None]).mean(0), 1e-300)
        weights /= weights.max() or 1
        weights = np.maximum(weights, 1e-300)
    return temperature * np.log(weights)


def _dropped(label: np.ndarray, mask: np.ndarray) -> np.ndarray:
    return np.where(mask & (label != VOID), VOID, label).astype(np.uint8)


def changes(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """Return 3xK pixels of each class of the label before: all, dropped, given another class."""
    gone, other = after == VOID, (after != VOID) & (after != before)
    return np.stack(
        [
            np.bincount(before[mask], minlength=256)[:NUM_CLASSES]
            for mask in (np.ones_like(gone), gone, other)
        ]
    )
