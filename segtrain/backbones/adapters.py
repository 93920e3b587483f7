"""Trainable parts added to a frozen vision transformer: Rein's tokens and low-rank adapters.

Both hook into the network, whose own modules and names stay as they are. A hook finds its adapter
in the attribute `adapter` of the module that it is called for, so the hooks of a deep copy use the
copied adapters. A tuple holds the adapter: it is registered elsewhere, under its own name.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional


class ReinTokens(nn.Module):
    """Learned tokens that refine the features of each layer (Wei et al., CVPR 2024, section 3).

    Tokens T of a layer are a product A B of `rank`. With S = softmax(f T^t / sqrt(C)) over the
    tokens, without the first, which takes what needs no change, f becomes f + scale * MLP(f + S
    MLP'(T)). Both linear maps are shared by all layers. Its link to the queries of Mask2Former is
    left out.
    """

    def __init__(self, channels: int, num_layers: int, *, num_tokens: int = 100, rank: int = 16):
        super().__init__()
        self.down = nn.Parameter(torch.empty(num_layers, num_tokens, rank))
        self.up = nn.Parameter(torch.empty(num_layers, rank, channels))
        self.scale = nn.Parameter(torch.full((num_layers,), 1e-3))
        self.token_map = nn.Linear(channels, channels)
        self.feature_map = nn.Linear(channels, channels)
        spread = math.sqrt(6 / (3 * 16 * 16 + channels))  # of a patch embedding, as in the paper
        for weight in (self.down, self.up):
            nn.init.uniform_(weight, -spread, spread)

    def forward(self, features: torch.Tensor, layer: int) -> torch.Tensor:
        """Return the refined patch features BxNxC of a layer."""
        tokens = self.down[layer] @ self.up[layer]
        shares = (features @ tokens.T / math.sqrt(tokens.shape[1])).softmax(-1)
        change = shares[..., 1:] @ self.token_map(tokens[1:])
        return features + self.scale[layer] * self.feature_map(features + change)


class LowRank(nn.Module):
    """A change of a linear map W by B A, zero at first (Hu et al., ICLR 2022)."""

    def __init__(self, linear: nn.Linear, rank: int) -> None:
        super().__init__()
        self.down = nn.Parameter(torch.empty(rank, linear.in_features))
        self.up = nn.Parameter(torch.zeros(linear.out_features, rank))
        nn.init.kaiming_uniform_(self.down, a=math.sqrt(5))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return what is added to the output of the linear map."""
        return functional.linear(functional.linear(inputs, self.down), self.up)


def hook_tokens(layers: Sequence[nn.Module], tokens: ReinTokens, num_prefix: int) -> None:
    """Refine the patch tokens of each layer's output; `num_prefix` tokens before them stay."""
    for number, layer in enumerate(layers):
        layer.adapter = (tokens, number, num_prefix)
        layer.register_forward_hook(_refine)


def _refine(layer: Any, _inputs: Any, output: Any) -> Any:
    tokens, number, num_prefix = layer.adapter
    states = output[0] if isinstance(output, tuple) else output
    refined = tokens(states[:, num_prefix:], number)
    states = torch.cat([states[:, :num_prefix], refined], dim=1)
    return (states, *output[1:]) if isinstance(output, tuple) else states


def hook_low_rank(linears: Sequence[nn.Linear], rank: int) -> nn.ModuleList:
    """Add a low-rank change to each linear map and return the changes, which are to be learned."""
    changes = nn.ModuleList(LowRank(linear, rank) for linear in linears)
    for linear, change in zip(linears, changes, strict=True):
        linear.adapter = (change,)
        linear.register_forward_hook(_add)
    return changes


def _add(linear: Any, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
    (change,) = linear.adapter
    return output + change(inputs[0])
