"""Brings features of many taps and noise levels to one map per stride, one feature at a time.

The first layer of an aggregation is linear in each feature, so a sum over features takes the place
of a layer over their concatenation, and a feature can be released at once. The result equals the
layer over the concatenation up to rounding.
"""

from collections.abc import Iterable, Sequence

import torch
from torch import nn

from pipeline.errors import UserError

Feature = tuple[int, int, torch.Tensor]
"""Level, tap and feature BxCxhxw."""


def group_norm(channels: int) -> nn.GroupNorm:
    """Return a group norm of at most 16 groups that divides `channels`."""
    return nn.GroupNorm(next(g for g in (16, 8, 4, 2, 1) if channels % g == 0), channels)


class Bottleneck(nn.Module):
    """Residual bottleneck over the channels of several features, which are given one by one.

    1x1, 3x3, 1x1 convolutions without bias, group norm and ReLU, projection shortcut; the direct
    aggregation of DIFF (Ji et al., ICASSP 2025).
    """

    def __init__(self, channels: Sequence[int], out: int) -> None:
        super().__init__()
        inner = max(out // 4, 1)
        self.reduce = nn.ModuleList(nn.Conv2d(c, inner, 1, bias=False) for c in channels)
        self.shortcut = nn.ModuleList(nn.Conv2d(c, out, 1, bias=False) for c in channels)
        self.norms = nn.ModuleList(group_norm(c) for c in (inner, inner, out, out))
        self.middle = nn.Conv2d(inner, inner, 3, padding=1, bias=False)
        self.expand = nn.Conv2d(inner, out, 1, bias=False)
        for number, parts in enumerate((self.reduce, self.shortcut)):
            fan_in = sum(channels)  # He et al. 2015, for the layer that the parts make up
            for part in parts:
                nn.init.normal_(part.weight, std=((2 - number) / fan_in) ** 0.5)

    def part(self, number: int, feature: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return what feature `number` adds to the sums of the first layer and the shortcut."""
        return self.reduce[number](feature), self.shortcut[number](feature)

    def finish(self, reduced: torch.Tensor, shortcut: torch.Tensor) -> torch.Tensor:
        """Return the block's output from the two sums."""
        first, second, third, side = self.norms
        hidden = second(self.middle(first(reduced).relu())).relu()
        return (third(self.expand(hidden)) + side(shortcut)).relu()


class Aggregation(nn.Module):
    """Maps the features of `levels` x taps to a few maps, finest first. One subclass per kind.

    `shapes`: (channels, stride in pixels) of each tap. `out_channels`: of all maps, or one number
    per stride, finest first; afterwards the attribute holds the channels of each returned map.
    `attention`: the taps that are attention maps.
    """

    def __init__(
        self,
        shapes: Sequence[tuple[int, int]],
        levels: int,
        out_channels: int | Sequence[int],
        attention: Iterable[int] = (),
    ) -> None:
        super().__init__()
        self.shapes, self.levels, self.attention = tuple(shapes), levels, set(attention)
        self.strides = sorted({stride for _, stride in shapes})
        self.groups = [
            [tap for tap, (_, s) in enumerate(shapes) if s == stride] for stride in self.strides
        ]
        if isinstance(out_channels, int):
            out_channels = [out_channels] * len(self.groups)
        self.out_channels = list(out_channels)
        if len(self.out_channels) != len(self.groups):
            raise UserError(
                f"out_channels {out_channels}: needs one for each of {len(self.groups)} strides"
            )

    def group_of(self, tap: int) -> int:
        """Return the index of the tap's stride, 0 for the finest."""
        return self.strides.index(self.shapes[tap][1])

    def forward(self, features: Iterable[Feature]) -> tuple[torch.Tensor, ...]:
        """Return the maps of one batch from its features in any order."""
        raise NotImplementedError


class SeparateAggregation(Aggregation):
    """One map for each feature, by a norm, a 1x1 convolution and a GELU of its own.

    The maps come level by level, in the order of the taps.
    """

    def __init__(
        self,
        shapes: Sequence[tuple[int, int]],
        levels: int,
        out_channels: int | Sequence[int],
        attention: Iterable[int] = (),
    ) -> None:
        super().__init__(shapes, levels, out_channels, attention)
        widths = [self.out_channels[self.group_of(tap)] for tap in range(len(shapes))]
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.GroupNorm(1, channels), nn.Conv2d(channels, width, 1), nn.GELU())
            for _ in range(levels)
            for (channels, _), width in zip(shapes, widths, strict=True)
        )
        self.out_channels = widths * levels

    def forward(self, features: Iterable[Feature]) -> tuple[torch.Tensor, ...]:
        """Return the maps of one batch from its features in any order."""
        maps = {
            (level, tap): self.blocks[level * len(self.shapes) + tap](feature)
            for level, tap, feature in features
        }
        return tuple(maps[key] for key in sorted(maps))


class ConcatAggregation(Aggregation):
    """One map per stride: its features concatenated, attention maps averaged (VPD).

    Zhao et al., ICCV 2023. Nothing is learned, and `out_channels` follows from the features.
    """

    def __init__(
        self,
        shapes: Sequence[tuple[int, int]],
        levels: int,
        out_channels: int | Sequence[int],
        attention: Iterable[int] = (),
    ) -> None:
        super().__init__(shapes, levels, out_channels, attention)
        self.out_channels = []
        for group in self.groups:
            plain = sum(shapes[tap][0] for tap in group if tap not in self.attention)
            averaged = [shapes[tap][0] for tap in group if tap in self.attention][:1]
            self.out_channels.append(levels * plain + sum(averaged))

    def forward(self, features: Iterable[Feature]) -> tuple[torch.Tensor, ...]:
        """Return the maps of one batch from its features in any order."""
        found = {(level, tap): feature for level, tap, feature in features}
        return tuple(self._concatenate(found, group) for group in range(len(self.groups)))

    def _concatenate(self, found: dict[tuple[int, int], torch.Tensor], group: int) -> torch.Tensor:
        keys = [key for key in sorted(found) if self.group_of(key[1]) == group]
        parts = [found[key] for key in keys if key[1] not in self.attention]
        maps = [found[key] for key in keys if key[1] in self.attention]
        if maps:
            parts.append(torch.stack(maps).mean(0))
        return torch.cat(parts, dim=1)


class DirectAggregation(Aggregation):
    """One map per stride: a `Bottleneck` over all of its features (DIFF)."""

    def __init__(
        self,
        shapes: Sequence[tuple[int, int]],
        levels: int,
        out_channels: int | Sequence[int],
        attention: Iterable[int] = (),
    ) -> None:
        super().__init__(shapes, levels, out_channels, attention)
        self.blocks = nn.ModuleList(
            Bottleneck([shapes[tap][0] for _ in range(levels) for tap in group], width)
            for group, width in zip(self.groups, self.out_channels, strict=True)
        )

    def forward(self, features: Iterable[Feature]) -> tuple[torch.Tensor, ...]:
        """Return the maps of one batch from its features in any order."""
        sums: dict[int, list[torch.Tensor]] = {}
        for level, tap, feature in features:
            group = self.group_of(tap)
            taps = self.groups[group]
            parts = self.blocks[group].part(level * len(taps) + taps.index(tap), feature)
            sums[group] = _add(sums[group], parts) if group in sums else list(parts)
            del feature, parts  # before the U-Net is evaluated again
        return tuple(block.finish(*sums[group]) for group, block in enumerate(self.blocks))


def _add(sums: list[torch.Tensor], values: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Return the sums with `values` added; without gradients in place, which needs no memory."""
    if torch.is_grad_enabled():
        return [a + b for a, b in zip(sums, values, strict=True)]
    for total, value in zip(sums, values, strict=True):
        total += value
    return sums


AGGREGATIONS: dict[str, type[Aggregation]] = {
    "taps": SeparateAggregation,
    "concat": ConcatAggregation,
    "direct": DirectAggregation,
}
"""By the names that recipes use."""


class FusionPyramid(nn.Module):
    """Top-down fusion of maps (finest first) into one level more, of half the finest stride.

    Each step: transposed convolution of stride 2, sum with the finer map, residual block with group
    norm; as the fusion network of DIFF. `dims`: channels of the outputs, finest first.
    """

    def __init__(self, channels: Sequence[int], dims: Sequence[int]) -> None:
        super().__init__()
        assert len(dims) == len(channels) + 1
        self.out_channels = list(dims)
        self.lateral = nn.ModuleList(
            nn.Sequential(group_norm(c), nn.Conv2d(c, d, 1))
            for c, d in zip(channels, dims[1:], strict=True)
        )
        self.up = nn.ModuleList(
            nn.ConvTranspose2d(dims[i + 1], dims[i], 4, stride=2, padding=1)
            for i in range(len(channels))
        )
        self.refine = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(d, d, 3, padding=1, bias=False),
                group_norm(d),
                nn.ReLU(),
                nn.Conv2d(d, d, 3, padding=1, bias=False),
                group_norm(d),
            )
            for d in dims[:-1]
        )

    def forward(self, maps: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        """Return the maps of the pyramid, finest first."""
        sides = [lateral(m) for lateral, m in zip(self.lateral, maps, strict=True)]
        outputs = [sides[-1]]
        for level in reversed(range(len(self.up))):
            hidden = self.up[level](outputs[0])
            if level > 0:
                side = sides[level - 1]
                hidden = hidden[..., : side.shape[-2], : side.shape[-1]] + side
            outputs.insert(0, (hidden + self.refine[level](hidden)).relu())
        return tuple(outputs)
