"""Brings features of many taps and noise levels to one map per stride, as they appear.

The first layers of all aggregations are linear in each feature, so a sum over features takes the
place of a layer over their concatenation, and a feature can be let go at once. Equal to the layer
over the concatenation up to rounding.
"""

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import nn

from pipeline.errors import UserError

Kind = Literal["taps", "concat", "direct", "mixing", "gated", "lstm"]


def group_norm(channels: int) -> nn.GroupNorm:
    """Return a group norm of at most 16 groups that divides `channels`."""
    return nn.GroupNorm(next(g for g in (16, 8, 4, 2, 1) if channels % g == 0), channels)


class Bottleneck(nn.Module):
    """Residual bottleneck over the channels of several features, which come one by one.

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


class ConvLSTM(nn.Module):
    """Convolutional LSTM (Shi et al., NeurIPS 2015, equation 3, no peepholes), one step a call."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gates = nn.Conv2d(2 * channels, 4 * channels, 3, padding=1)

    def forward(
        self, value: torch.Tensor, state: tuple[torch.Tensor, torch.Tensor] | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return hidden state and cell BxCxhxw after `value`; None is the state before all."""
        hidden, cell = state or (torch.zeros_like(value), torch.zeros_like(value))
        keep, forget, put_out, new = self.gates(torch.cat([value, hidden], 1)).chunk(4, 1)
        cell = forget.sigmoid() * cell + keep.sigmoid() * new.tanh()
        return put_out.sigmoid() * cell.tanh(), cell


class Aggregation(nn.Module):
    """Features of `levels` x taps to maps, finest first.

    `shapes`: (channels, stride) of each tap. "taps": a norm, 1x1 convolution and GELU for each
    feature, one map each. "concat": one map per stride, its features side by side, attention maps
    averaged (VPD). "direct": a `Bottleneck` per stride over all features. "mixing": a bottleneck
    per tap for all levels, mixed per stride by softmax weights (Diffusion Hyperfeatures, Luo et
    al., NeurIPS 2023). "gated": as mixing, but a sigmoid of each feature's mean weighs it. "lstm":
    per stride a bottleneck over the taps, the same for all levels, and a `ConvLSTM` over these.
    `out_channels`: of all maps, or one number per stride, finest first.
    """

    def __init__(
        self,
        shapes: Sequence[tuple[int, int]],
        levels: int,
        kind: Kind,
        out_channels: int | Sequence[int],
        averaged: Sequence[int] = (),
    ) -> None:
        super().__init__()
        if kind not in get_args(Kind):
            raise UserError(f"aggregation {kind}: expected {', '.join(get_args(Kind))}")
        self.kind, self.levels, self.shapes = kind, levels, tuple(shapes)
        self.averaged = set(averaged)
        self.strides = sorted({stride for _, stride in shapes})
        groups = [
            [tap for tap, (_, s) in enumerate(shapes) if s == stride] for stride in self.strides
        ]
        self.place = {}
        for group in groups:
            parts = [(level, tap) for level in range(levels) for tap in group]
            self.place |= {key: number for number, key in enumerate(parts)}
        one = isinstance(out_channels, int)
        self.out_channels = [out_channels] * len(groups) if one else list(out_channels)
        if len(self.out_channels) != len(groups):
            raise UserError(
                f"out_channels {out_channels}: needs one for each of {len(groups)} strides"
            )
        channels = [shape[0] for shape in shapes]
        widths = [self.out_channels[self.strides.index(stride)] for _, stride in shapes]
        if kind == "taps":
            self.blocks = nn.ModuleList(
                nn.Sequential(nn.GroupNorm(1, c), nn.Conv2d(c, width, 1), nn.GELU())
                for _ in range(levels)
                for c, width in zip(channels, widths, strict=True)
            )
            self.out_channels = widths * levels
        elif kind == "concat":
            plain = [[t for t in group if t not in self.averaged] for group in groups]
            maps = [[channels[t] for t in group if t in self.averaged][:1] for group in groups]
            self.out_channels = [
                levels * sum(channels[t] for t in group) + sum(extra)
                for group, extra in zip(plain, maps, strict=True)
            ]
        elif kind == "direct":
            self.blocks = nn.ModuleList(
                Bottleneck([channels[t] for _ in range(levels) for t in group], width)
                for group, width in zip(groups, self.out_channels, strict=True)
            )
        elif kind == "lstm":
            self.group_sizes = [len(group) for group in groups]
            self.blocks = nn.ModuleList(
                Bottleneck([channels[t] for t in group], width)
                for group, width in zip(groups, self.out_channels, strict=True)
            )
            self.cells = nn.ModuleList(ConvLSTM(width) for width in self.out_channels)
        else:
            self.blocks = nn.ModuleList(
                Bottleneck([c], width) for c, width in zip(channels, widths, strict=True)
            )
            if kind == "mixing":
                self.mix = nn.ParameterList(torch.zeros(levels * len(g)) for g in groups)
            else:
                self.gates = nn.ModuleList(
                    nn.Linear(width, 1) for _ in range(levels) for width in widths
                )

    def open(self) -> "Collector":
        """Return a collector for the features of one batch."""
        return Collector(self)


class Collector:
    """Takes features one by one; `finish` returns the maps."""

    def __init__(self, aggregation: Aggregation) -> None:
        self.of = aggregation
        self._sums: dict[int, list[torch.Tensor]] = {}
        self._maps: dict[tuple[int, int], torch.Tensor] = {}
        self._parts: dict[tuple[int, int], list[tuple[torch.Tensor, torch.Tensor]]] = {}
        self._states: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self._next = [0] * len(aggregation.strides)

    def __call__(self, level: int, tap: int, feature: torch.Tensor) -> None:
        """Take the feature of a level and tap."""
        of = self.of
        group = of.strides.index(of.shapes[tap][1])
        number = of.place[level, tap]
        if of.kind == "taps":
            self._maps[level, tap] = of.blocks[level * len(of.shapes) + tap](feature)
        elif of.kind == "concat":
            self._maps[level, tap] = feature
        elif of.kind == "direct":
            self._add(group, *of.blocks[group].part(number, feature))
        elif of.kind == "lstm":
            part = of.blocks[group].part(of.place[0, tap], feature)
            self._parts.setdefault((group, level), []).append(part)
            self._advance(group)
        else:
            block = of.blocks[tap]
            hidden = block.finish(*block.part(0, feature))
            if of.kind == "mixing":
                weight = of.mix[group].softmax(0)[number]
            else:
                gate = of.gates[level * len(of.shapes) + tap]
                weight = gate(hidden.mean((2, 3))).sigmoid()[..., None, None]
            self._add(group, weight * hidden)

    def _advance(self, group: int) -> None:
        """Step through the levels, in their order, as soon as all features of one are there."""
        of, level = self.of, self._next[group]
        parts = self._parts.get((group, level), [])
        if len(parts) < of.group_sizes[group]:
            return
        value = of.blocks[group].finish(*map(sum, zip(*parts, strict=True)))
        self._states[group] = of.cells[group](value, self._states.get(group))
        del self._parts[group, level]
        self._next[group] = level + 1
        self._advance(group)

    def _add(self, group: int, *values: torch.Tensor) -> None:
        have = self._sums.setdefault(group, list(values))
        if have[0] is values[0]:
            return
        if torch.is_grad_enabled():
            self._sums[group] = [a + b for a, b in zip(have, values, strict=True)]
        else:  # in place, without new memory for each sum; nothing else refers to these values
            for total, value in zip(have, values, strict=True):
                total += value

    def finish(self) -> tuple[torch.Tensor, ...]:
        """Return the maps, finest first; for "taps" level by level in the order of the taps."""
        of = self.of
        if of.kind == "taps":
            return tuple(self._maps[key] for key in sorted(self._maps))
        if of.kind == "concat":
            return tuple(self._concat(stride) for stride in of.strides)
        if of.kind == "lstm":
            return tuple(self._states[group][0] for group in range(len(of.strides)))
        sums = [self._sums[group] for group in range(len(of.strides))]
        if of.kind == "direct":
            return tuple(b.finish(*s) for b, s in zip(of.blocks, sums, strict=True))
        return tuple(s[0] for s in sums)

    def _concat(self, stride: int) -> torch.Tensor:
        of = self.of
        keys = [key for key in sorted(self._maps) if of.shapes[key[1]][1] == stride]
        parts = [self._maps[key] for key in keys if key[1] not in of.averaged]
        maps = [self._maps[key] for key in keys if key[1] in of.averaged]
        if maps:
            parts.append(torch.stack(maps).mean(0))
        return torch.cat(parts, dim=1)


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
