"""Where tiles lie, how they are weighted, and which regions come from the base pass.

Lengths are in pixels of whatever grid the caller uses; the sampler passes latent pixels.
"""

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np

from pipeline.labels import NUM_CLASSES
from pipeline.resizing import pick_nearest, resize_nearest

Box = tuple[int, int]  # top, left


def starts(length: int, tile: int, stride: int) -> list[int]:
    """Return the tile starts on one axis; the last tile ends at the border, none is left out."""
    return sorted({*range(0, length - tile + 1, stride), length - tile})


def tile_boxes(
    canvas: tuple[int, int], tile: tuple[int, int], stride: tuple[int, int]
) -> list[Box]:
    """Return the (top, left) corners of all tiles on an HxW canvas, row by row."""
    rows = starts(canvas[0], tile[0], stride[0])
    columns = starts(canvas[1], tile[1], stride[1])
    return [(top, left) for top in rows for left in columns]


def tile_weights(tile: tuple[int, int], kind: str) -> np.ndarray:
    """Return the HxW float32 blending weights of a tile, all positive.

    `gaussian` falls to 1/e^2 at the middle of each edge.
    """
    if kind == "uniform":
        return np.ones(tile, dtype=np.float32)
    axes = [(2 * np.arange(n) + 1 - n) / n for n in tile]
    curves = [np.exp(-2 * axis**2) for axis in axes]
    return np.outer(*curves).astype(np.float32)


def large_components(
    label: np.ndarray, min_share: float, classes: Collection[int] = range(NUM_CLASSES)
) -> np.ndarray:
    """Return the HxW bool mask of 8-connected one-class regions above `min_share` of the map.

    Of `classes` alone, and never of void. DGInStyle, multi-resolution latent fusion.
    """
    from scipy import ndimage

    mask = np.zeros(label.shape, dtype=bool)
    for class_id in np.unique(label):
        if class_id not in classes:
            continue
        regions, _ = ndimage.label(label == class_id, structure=np.ones((3, 3)))
        large = np.bincount(regions.ravel()) > min_share * label.size
        large[0] = False
        mask |= large[regions]
    return mask


@dataclass(frozen=True)
class RegionRules:
    """Which regions the high-resolution pass keeps from the base pass, and which tiles it needs."""

    min_share: float
    """Share of the crop above which a region is kept, see `large_components`."""
    classes: Collection[int]
    """Train ids of the classes that are kept."""
    selection: str
    """Which tiles are evaluated, see `chosen_boxes`."""
    fusion: str
    """`reference` reduces the mask to latent pixels as DGInStyle does."""

    def held_mask(self, label: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        """Return the bool mask, of `size` in latent pixels, of what is kept from the base pass.

        `label`: HxW train ids of the whole canvas.
        """
        mask = large_components(label, self.min_share, self.classes)
        return (pick_nearest if self.fusion == "reference" else resize_nearest)(mask, size)


def chosen_boxes(
    boxes: list[Box], tile: tuple[int, int], mask: np.ndarray, selection: str
) -> list[Box]:
    """Return the tiles of the grid `boxes` to evaluate if `mask` is kept from the base pass.

    `selection` 'all': all; 'uncovered': those with a pixel outside `mask`; 'greedy': of these,
    always the one that adds most uncovered pixels, ties by position, until all are covered.
    """
    if selection == "all":
        return boxes
    if selection == "uncovered":
        return [box for box in boxes if not _window(mask, box, tile).all()]
    left, chosen = ~mask, []
    while left.any():
        best = max(boxes, key=lambda box: int(_window(left, box, tile).sum()))
        chosen.append(best)
        left[best[0] : best[0] + tile[0], best[1] : best[1] + tile[1]] = False
    return sorted(chosen)


def _window(array: np.ndarray, box: Box, tile: tuple[int, int]) -> np.ndarray:
    return array[box[0] : box[0] + tile[0], box[1] : box[1] + tile[1]]
