"""Tiles cover any canvas; the mask holds large regions and never void."""

import numpy as np
import pytest

from generation import tiles


@pytest.mark.parametrize("stride", [(1, 1), (3, 5), (7, 8), (8, 8)])
@pytest.mark.parametrize("canvas", [(8, 8), (9, 20), (31, 17)])
def test_every_pixel_is_covered_at_any_stride(canvas, stride):
    seen = np.zeros(canvas, dtype=int)
    for top, left in tiles.tile_boxes(canvas, (8, 8), stride):
        assert top + 8 <= canvas[0] and left + 8 <= canvas[1]
        seen[top : top + 8, left : left + 8] += 1
    assert seen.min() >= 1


@pytest.mark.parametrize(("stride", "count"), [(8, 81), (16, 25), (32, 9), (64, 4)])
def test_counts_of_the_reference_grid(stride, count):
    assert len(tiles.tile_boxes((128, 128), (64, 64), (stride, stride))) == count


def test_mask_holds_large_eight_connected_regions_without_void():
    label = np.full((10, 10), 255, dtype=np.uint8)
    label[np.arange(6), np.arange(6)] = 3  # connected across corners alone
    label[9, 9] = 3
    mask = tiles.large_components(label, 0.05)
    assert mask.sum() == 6 and not mask[9, 9]
    assert not tiles.large_components(label, 0.06).any()
    assert not tiles.large_components(label, 0.05, [2, 4]).any()


def test_more_than_255_regions_are_kept_apart():
    label = np.full((64, 64), 255, dtype=np.uint8)
    label[::2, ::2] = 5
    assert not tiles.large_components(label, 2 / label.size).any()


def test_weights_are_positive_and_symmetric():
    weight = tiles.tile_weights((6, 9), "gaussian")
    assert weight.min() > 0 and np.allclose(weight, weight[::-1, ::-1])
    assert (tiles.tile_weights((6, 9), "uniform") == 1).all()


def test_only_wholly_covered_tiles_are_left_out():
    mask = np.zeros((8, 16), dtype=bool)
    mask[:, :9] = True
    boxes = tiles.tile_boxes((8, 16), (8, 8), (8, 4))
    assert tiles.chosen_boxes(boxes, (8, 8), mask, "uncovered") == [(0, 4), (0, 8)]
    assert tiles.chosen_boxes(boxes, (8, 8), mask, "greedy") == [(0, 8)]
