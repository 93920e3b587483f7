"""Attention processors that compute keys and values of the text once, and both branches at once."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel


def native_attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Return softmax(q k^T / sqrt(d)) v for BxLxHxD tensors by PyTorch's own kernels."""
    parts = (part.transpose(1, 2) for part in (query, key, value))
    return F.scaled_dot_product_attention(*parts).transpose(1, 2)


@contextlib.contextmanager
def deterministic_kernels(device: torch.device) -> Iterator[None]:
    """Compute gradients on CUDA by kernels that give the same bits each time; nothing elsewhere.

    The backward passes of the fused attention kernels and some convolutions of cuDNN add in the
    order in which threads end. The math kernel keeps the attention weights, BxHxLxL, in memory.
    `torch.use_deterministic_algorithms` would also refuse cuBLAS without an environment variable
    that must be set before CUDA starts; on a single stream cuBLAS is deterministic without it.
    """
    if device.type != "cuda":
        yield
        return
    cudnn = torch.backends.cudnn
    before = cudnn.deterministic, cudnn.benchmark
    try:
        cudnn.deterministic, cudnn.benchmark = True, False
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        cudnn.deterministic, cudnn.benchmark = before


class TextAttention:
    """Cross-attention processor that looks keys and values up by row number.

    Instead of text states the network receives the B row numbers of its texts.
    """

    def __init__(self, attend: Callable[..., torch.Tensor]) -> None:
        self.attend = attend
        self.key = self.value = torch.empty(0)

    def prime(self, attention: Any, states: torch.Tensor) -> None:
        """Compute keys and values, RxLxHxD each, of the text states RxLxC."""
        shape = (*states.shape[:2], attention.heads, -1)
        self.key, self.value = (f(states).view(shape) for f in (attention.to_k, attention.to_v))

    def __call__(
        self,
        attn: Any,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        attention_mask: Any = None,
        temb: Any = None,
    ) -> torch.Tensor:
        """Return BxNxC for hidden states BxNxC and row numbers B."""
        batch, length, _ = hidden_states.shape
        query = attn.to_q(hidden_states).view(batch, length, attn.heads, -1)
        rows = encoder_hidden_states
        output = self.attend(query, self.key[rows], self.value[rows])
        return attn.to_out[0](output.reshape(batch, length, -1))


class SelfAttention:
    """Self-attention processor on a chosen kernel."""

    def __init__(self, attend: Callable[..., torch.Tensor]) -> None:
        self.attend = attend

    def __call__(
        self,
        attn: Any,
        hidden_states: torch.Tensor,
        encoder_hidden_states: Any = None,
        attention_mask: Any = None,
        temb: Any = None,
    ) -> torch.Tensor:
        """Return BxNxC for hidden states BxNxC."""
        batch, length, _ = hidden_states.shape
        parts = (f(hidden_states) for f in (attn.to_q, attn.to_k, attn.to_v))
        output = self.attend(*(part.view(batch, length, attn.heads, -1) for part in parts))
        return attn.to_out[0](output.reshape(batch, length, -1))


def to_rows(sample: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """Repeat B shared states for the texts of `rows`, if they are not apart yet."""
    return sample.repeat(len(rows) // len(sample), 1, 1, 1)


def attend_and_part(attention: Any, sample: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """Run a spatial transformer whose input is still shared; the halves part before the text.

    Follows `Transformer2DModel` and `BasicTransformerBlock` of diffusers.
    """
    batch, channels, height, width = sample.shape
    hidden = attention.norm(sample)
    if not attention.use_linear_projection:
        hidden = attention.proj_in(hidden)
    hidden = hidden.permute(0, 2, 3, 1).reshape(batch, height * width, -1)
    if attention.use_linear_projection:
        hidden = attention.proj_in(hidden)
    first, *others = attention.transformer_blocks
    hidden = hidden + first.attn1(first.norm1(hidden))
    hidden = hidden.repeat(len(rows) // batch, 1, 1)
    hidden = hidden + first.attn2(first.norm2(hidden), encoder_hidden_states=rows)
    hidden = hidden + first.ff(first.norm3(hidden))
    for block in others:
        hidden = block(hidden, encoder_hidden_states=rows)
    if attention.use_linear_projection:
        hidden = attention.proj_out(hidden)
    hidden = hidden.reshape(len(rows), height, width, -1).permute(0, 3, 1, 2)
    if not attention.use_linear_projection:
        hidden = attention.proj_out(hidden)
    return hidden + to_rows(sample, rows)
