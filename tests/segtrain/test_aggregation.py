"""Aggregation: streamed equals concatenated, shapes, weights; the fusion pyramid."""

import pytest
import torch
from torch.nn import functional

from pipeline.errors import UserError
from segtrain.diffusion.aggregation import Aggregation, Bottleneck, FusionPyramid

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


@pytest.mark.parametrize("kind", ["direct", "mixing", "gated", "lstm", "taps"])
def test_each_stride_may_have_a_width_of_its_own(kind: str) -> None:
    aggregation, features = Aggregation(SHAPES, 2, kind, [16, 8]), _features(2)
    collector = aggregation.open()
    for key in sorted(features):
        collector(*key, features[key])
    maps = collector.finish()
    assert [m.shape[1] for m in maps] == list(aggregation.out_channels)
    assert {m.shape[1] for m in maps if m.shape[-1] == 16} == {16}
    assert {m.shape[1] for m in maps if m.shape[-1] == 8} == {8}
    with pytest.raises(UserError, match="one for each of 2 strides"):
        Aggregation(SHAPES, 2, kind, [16])


@pytest.mark.parametrize("kind", ["direct", "mixing", "gated", "lstm", "concat", "taps"])
def test_maps_have_the_declared_channels_whatever_the_order(kind: str) -> None:
    torch.manual_seed(0)
    aggregation = Aggregation(SHAPES, 3, kind, 16, averaged=(3, 4))
    found = []
    for order in (1, -1):
        collector = aggregation.open()
        for key in sorted(_features(3))[::order]:
            collector(*key, _features(3)[key])
        found.append(collector.finish())
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


def test_lstm_steps_through_the_levels_in_their_order() -> None:
    torch.manual_seed(0)
    aggregation = Aggregation(SHAPES[:3], 3, "lstm", 16)
    features, collector = _features(3), aggregation.open()
    for key in [(2, 0), (0, 2), (1, 1), (0, 0), (0, 1), (2, 2), (1, 2), (2, 1), (1, 0)]:
        collector(*key, features[key])
    block, cell, state = aggregation.blocks[1], aggregation.cells[1], None  # stride 8: taps 0, 2
    for level in range(3):
        parts = [block.part(place, features[level, tap]) for place, tap in enumerate((0, 2))]
        state = cell(block.finish(*map(sum, zip(*parts, strict=True))), state)
    torch.testing.assert_close(collector.finish()[1], state[0])
    assert state[0].abs().max() < 1  # a product of a sigmoid and a tanh


def test_mixing_weights_every_level_and_tap_on_its_own() -> None:
    torch.manual_seed(0)
    aggregation = Aggregation(SHAPES[:3], 2, "mixing", 16).eval()
    features = _features(2)

    def finish() -> torch.Tensor:
        collector = aggregation.open()
        for level in range(2):
            for tap in range(3):
                collector(level, tap, features[level, tap])
        return collector.finish()[1]  # stride 8: taps 0 and 2

    blocks = aggregation.blocks
    outputs = [
        blocks[tap].finish(*blocks[tap].part(0, features[level, tap]))
        for level in range(2)
        for tap in (0, 2)
    ]
    torch.testing.assert_close(finish(), sum(outputs) / 4)
    with torch.no_grad():
        aggregation.mix[1][2] = 100.0  # level 1, tap 0
    torch.testing.assert_close(finish(), outputs[2])


def test_pyramid_adds_a_finer_level_and_fits_odd_sizes() -> None:
    pyramid = FusionPyramid([16, 32], [8, 16, 24])
    maps = pyramid((torch.randn(1, 16, 9, 13), torch.randn(1, 32, 5, 7)))
    assert [tuple(m.shape) for m in maps] == [(1, 8, 18, 26), (1, 16, 9, 13), (1, 24, 5, 7)]
    sum(m.sum() for m in maps).backward()
    assert all(p.grad is not None for p in pyramid.parameters())
