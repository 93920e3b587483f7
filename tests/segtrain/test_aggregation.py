"""Aggregation: streamed equals concatenated, shapes, weights; the fusion pyramid."""

import pytest
import torch
from torch.nn import functional

from pipeline.errors import UserError
from segtrain.diffusion.aggregation import AGGREGATIONS, Bottleneck, FusionPyramid

SHAPES = [(12, 8), (8, 4), (6, 8), (19, 4), (19, 4)]  # channels and stride of five taps


def _features(levels: int) -> dict[tuple[int, int], torch.Tensor]:
    torch.manual_seed(0)
    return {
        (level, tap): torch.randn(2, c, 32 // s, 64 // s)
        for level in range(levels)
        for tap, (c, s) in enumerate(SHAPES)
    }


def test_streamed_bottleneck_equals_the_one_over_the_concatenation() -> None:
    torch.manual_seed(0)
    block = Bottleneck([12, 8, 6], 16)
    parts = [torch.randn(2, c, 5, 7, requires_grad=True) for c in (12, 8, 6)]
    sums = zip(*[block.part(i, p) for i, p in enumerate(parts)], strict=True)
    streamed = block.finish(*[sum(s) for s in sums])
    whole = torch.cat(parts, 1)
    layers = [
        functional.conv2d(whole, torch.cat([c.weight for c in convolutions], 1))
        for convolutions in (block.reduce, block.shortcut)
    ]
    torch.testing.assert_close(streamed, block.finish(*layers))
    assert all(g.abs().max() > 0 for g in torch.autograd.grad(streamed.sum(), parts))


@pytest.mark.parametrize("kind", ["direct", "taps"])
def test_each_stride_may_have_a_width_of_its_own(kind: str) -> None:
    aggregation, features = AGGREGATIONS[kind](SHAPES, 2, [16, 8]), _features(2)
    maps = aggregation((*key, features[key]) for key in sorted(features))
    assert [m.shape[1] for m in maps] == list(aggregation.out_channels)
    assert {m.shape[1] for m in maps if m.shape[-1] == 16} == {16}
    assert {m.shape[1] for m in maps if m.shape[-1] == 8} == {8}
    with pytest.raises(UserError, match="one for each of 2 strides"):
        AGGREGATIONS[kind](SHAPES, 2, [16])


@pytest.mark.parametrize("kind", ["direct", "concat", "taps"])
def test_maps_have_the_declared_channels_whatever_the_order(kind: str) -> None:
    torch.manual_seed(0)
    aggregation = AGGREGATIONS[kind](SHAPES, 3, 16, attention=(3, 4))
    found = []
    for order in (1, -1):
        features = _features(3)
        found.append(aggregation((*key, features[key]) for key in sorted(features)[::order]))
    maps = found[0]
    assert [m.shape[1] for m in maps] == list(aggregation.out_channels)
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    if kind != "taps":
        assert [tuple(m.shape[2:]) for m in maps] == [(8, 16), (4, 8)]
    if kind == "concat":
        assert aggregation.out_channels == [3 * 8 + 19, 3 * (12 + 6)]
        features = _features(3)
        mean = sum(features[level, tap] for level in range(3) for tap in (3, 4)) / 6
        torch.testing.assert_close(maps[0][:, 24:], mean)
    elif kind != "taps":
        sum(m.sum() for m in maps).backward()
        assert all(p.grad is not None for p in aggregation.parameters())


def test_pyramid_adds_a_finer_level_and_fits_odd_sizes() -> None:
    pyramid = FusionPyramid([16, 32], [8, 16, 24])
    maps = pyramid((torch.randn(1, 16, 9, 13), torch.randn(1, 32, 5, 7)))
    assert [tuple(m.shape) for m in maps] == [(1, 8, 18, 26), (1, 16, 9, 13), (1, 24, 5, 7)]
    sum(m.sum() for m in maps).backward()
    assert all(p.grad is not None for p in pyramid.parameters())
