"""Keeps what named modules compute, while a network runs.

A tap is the name of a module inside the U-Net, or inside the VAE after `vae.`:

- `up_blocks.1`, `mid_block`, `vae.encoder.down_blocks.1`: the output of a block; one of
  `vae.decoder` when the clean latent is decoded again (ODISE, Xu et al., CVPR 2023);
- `up_blocks.1.resnets.0.conv2`: a residual block before its shortcut is added (DIFF, DHF);
- `up_blocks.1.attentions.0.transformer_blocks.0`: hidden states after the feed-forward (DIFF);
- `up_blocks.1.attentions.0.transformer_blocks.0.attn2:maps`: cross-attention probabilities, the
  mean over heads, one channel per token (VPD).
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch

from pipeline.errors import UserError
from pipeline.latents import full_precision, without_autocast

MAPS = ":maps"


class Exit(Exception):
    """Ends a forward pass early."""


def check_taps(unet: Any, vae: Any, taps: Sequence[str]) -> None:
    """Raise `UserError` unless the taps are distinct modules, and maps are of cross-attention."""
    known = {
        f"vae.{name}" for name, _ in vae.named_modules() if name.startswith(("encoder", "decoder"))
    }
    known |= {name for name, _ in unet.named_modules() if name}
    wrong = [tap for tap in taps if tap.removesuffix(MAPS) not in known]
    wrong += [tap for tap in taps if tap.endswith(MAPS) and not tap.endswith(f".attn2{MAPS}")]
    if wrong or not taps or len(set(taps)) != len(taps):
        blocks = ", ".join(f"up_blocks.{i}" for i in range(len(unet.up_blocks)))
        raise UserError(
            f"taps {wrong or list(taps)}: name distinct U-Net modules, for example {blocks}, or an "
            f"attn2{MAPS}"
        )


def as_map(feature: torch.Tensor, aspect: tuple[int, int]) -> torch.Tensor:
    """Return BxNxC tokens as BxCxhxw; `aspect` is the size at any level above, strides 2^k."""
    if feature.ndim == 4:
        return feature
    (height, width), length = aspect, feature.shape[1]
    while height * width > length:
        height, width = -(-height // 2), -(-width // 2)
    return feature.transpose(1, 2).unflatten(2, (height, width))


def attention_maps(attention: Any, hidden: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
    """Return BxNxL probabilities softmax(q k^T / sqrt(d)) of a cross-attention, mean over heads.

    The product is in full precision, as in fused kernels: q k^T can overflow in float16.
    """
    query, key = (
        full_precision(part).unflatten(2, (attention.heads, -1)).transpose(1, 2)
        for part in (attention.to_q(hidden), attention.to_k(text))
    )
    with without_autocast(query.device.type):
        return (query @ key.transpose(-1, -2) * attention.scale).softmax(-1).mean(1)


class Taps:
    """Keeps what each tap computes during a pass in `values`, in the order of computing.

    A context manager around a forward pass. `early_exit`: leave the pass as soon as all taps are
    seen, by the exception `Exit`. With `at_block`, leave it at the end of the up block instead:
    inside of a block that is recomputed in the backward pass, an exception would lose the
    gradients.
    """

    def __init__(
        self, network: Any, taps: Sequence[str], *, early_exit: bool, at_block: bool = False
    ) -> None:
        self.network, self.taps = network, taps
        self.early_exit, self.at_block = early_exit, at_block
        self.values: dict[str, torch.Tensor] = {}
        self._handles: list[Any] = []

    def __enter__(self) -> "Taps":
        for tap in self.taps:
            module = self.network.get_submodule(tap.removesuffix(MAPS))
            self._handles.append(module.register_forward_hook(self._hook(tap), with_kwargs=True))
        if self.at_block and self.early_exit:  # hooks run in this order
            for block in (self.network.mid_block, *self.network.up_blocks):
                self._handles.append(block.register_forward_hook(self._leave))
        return self

    def __exit__(self, kind: Any, *_: object) -> bool:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        return kind is Exit

    def _leave(self, *_: object) -> None:
        if len(self.values) == len(self.taps):
            raise Exit

    def _hook(self, tap: str) -> Callable[..., None]:
        def hook(module: Any, inputs: Any, options: dict[str, Any], output: Any) -> None:
            value = output[0] if isinstance(output, tuple) else output
            if tap.endswith(MAPS):
                text = options.get("encoder_hidden_states")
                value = attention_maps(module, inputs[0], inputs[1] if text is None else text)
            # An alias made here: gradients of the layers after the tap are added before its own
            self.values[tap] = value.view_as(value)
            if self.early_exit and not self.at_block:
                self._leave()

        return hook
