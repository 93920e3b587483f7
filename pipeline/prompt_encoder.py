"""Prompts become text states, by the same rules for every family of base model.

A base's own `model_index.json` says which text encoders it has. Stable Diffusion 1.x and 2.x take
the last hidden state of one encoder; SDXL takes the last but one of two, side by side, and the
pooled state of the second (Podell et al., ICLR 2024, sections 2.1 and 2.2).
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline import models
from pipeline.hub import fetch
from pipeline.model_files import check_index

if TYPE_CHECKING:
    import torch

# By pixels in Cityscapes' training set, the most first (Cordts et al., CVPR 2016, figure 5)
COMMONEST_FIRST = (0, 2, 8, 13, 1, 10, 5, 11, 9, 4, 3, 7, 18, 14, 15, 16, 6, 12, 17)
CACHED_PROMPTS = 1024  # about 0.6 GB of SDXL's states in float32


@dataclass(frozen=True)
class Conditioning:
    """What text tells a network. `states`: BxLxD; `pooled`: BxP for SDXL, None for the others."""

    states: "torch.Tensor"
    pooled: "torch.Tensor | None" = None

    def map(self, change: "Callable[[torch.Tensor], torch.Tensor]") -> "Conditioning":
        """Return the result of `change` on each of the tensors."""
        pooled = None if self.pooled is None else change(self.pooled)
        return Conditioning(change(self.states), pooled)

    def arguments(self, size_px: tuple[int, int]) -> dict[str, Any]:
        """Return the keyword arguments of a U-Net or ControlNet for images of (height, width).

        SDXL also receives the original size, the corner of the crop and the target size. A training
        crop counts as a whole image of its own size: with a larger original size, SDXL composes
        images that look cut off.
        """
        if self.pooled is None:
            return {"encoder_hidden_states": self.states}
        import torch

        numbers = torch.tensor([*size_px, 0, 0, *size_px], dtype=torch.float32)
        time_ids = numbers.to(self.pooled.device).expand(len(self.pooled), -1)
        added = {"text_embeds": self.pooled, "time_ids": time_ids}
        return {"encoder_hidden_states": self.states, "added_cond_kwargs": added}


def fit_classes(
    classes: Sequence[int],
    render: Callable[[Sequence[int]], str],
    truncates: Callable[[str], bool],
) -> list[int]:
    """Return the train ids that a prompt can name within the text window, in their order.

    `render` makes the prompt of train ids, `truncates` tells whether it is too long. Common
    classes are left out first, so that a rare one is never what the window cuts off.
    """
    kept = list(classes)
    for common in COMMONEST_FIRST:
        if not truncates(render(kept)):
            break
        if common in kept:
            kept.remove(common)
    return kept


def is_cut(tokenizer: Any, prompt: str) -> bool:
    """Tell whether a prompt with its start and end mark exceeds the window of a tokenizer."""
    return count_tokens(tokenizer, prompt) > tokenizer.model_max_length


def count_tokens(tokenizer: Any, prompt: str) -> int:
    """Return the tokens of a whole prompt, start and end mark included.

    With `verbose=False` the tokenizer gives no warning of too long prompts, which are cut anyway.
    """
    return len(tokenizer(prompt, truncation=False, verbose=False).input_ids)


def load_tokenizers(home: Path) -> list[Any]:
    """Load the tokenizers of a base model's folder, without torch."""
    import transformers

    folders = [home / f"tokenizer{suffix}" for suffix in ("", "_2")]
    return [transformers.CLIPTokenizer.from_pretrained(f) for f in folders if f.is_dir()]


class PromptEncoder:
    """The text encoders of a base model; loaded when first needed, each prompt encoded once.

    A prompt goes through alone, so that its states do not depend on what else is in the batch.
    The empty prompt gives zeros where the base says so (SDXL's unconditional branch).
    """

    def __init__(self, base: str, device: Any = "cpu", dtype: Any = None) -> None:
        index = models.load_index(base)
        parts = check_index(fetch(base))
        suffixes = [s for s in ("", "_2") if f"text_encoder{s}" in parts]
        self.tokenizers = [models.load_component(base, f"tokenizer{s}") for s in suffixes]
        self._base, self._suffixes, self._device, self._dtype = base, suffixes, device, dtype
        self._zero_empty = bool(index.get("force_zeros_for_empty_prompt"))
        self._encoders: list[Any] = []
        self._encode = functools.lru_cache(CACHED_PROMPTS)(self._encode_one)

    def encode(self, prompts: Sequence[str]) -> Conditioning:
        """Return the states of `prompts`, each padded or cut to the full text window."""
        import torch

        parts = [self._encode(prompt) for prompt in prompts]
        pooled = None if parts[0].pooled is None else torch.cat([p.pooled for p in parts])
        return Conditioning(torch.cat([p.states for p in parts]), pooled)

    def free(self) -> None:
        """Give the encoders' memory back; known states stay, a new prompt loads them again."""
        self._encoders = []

    def truncates(self, prompt: str) -> bool:
        """Tell whether the text window cuts the prompt off."""
        return any(is_cut(tokenizer, prompt) for tokenizer in self.tokenizers)

    def num_tokens(self, prompt: str) -> int:
        """Return the tokens of a prompt before any are cut off, start and end included."""
        return max(count_tokens(tokenizer, prompt) for tokenizer in self.tokenizers)

    @property
    def window(self) -> int:
        """Tokens that the text window takes, start and end included: 77 for Stable Diffusion."""
        return min(t.model_max_length for t in self.tokenizers)

    def load(self) -> None:
        """Load the encoders now; otherwise the first new prompt does."""
        parts = [models.load_component(self._base, f"text_encoder{s}") for s in self._suffixes]
        for part in parts:
            part.requires_grad_(False).eval().to(self._device)
            if self._dtype is not None:
                part.to(self._dtype)
        self._encoders = parts

    def _encode_one(self, prompt: str) -> Conditioning:
        import torch

        if not self._encoders:
            self.load()
        states, pooled = [], None
        with torch.no_grad(), torch.autocast(torch.device(self._device).type, enabled=False):
            for tokenizer, encoder in zip(self.tokenizers, self._encoders, strict=True):
                tokens = tokenizer(
                    [prompt],
                    padding="max_length",
                    max_length=tokenizer.model_max_length,
                    truncation=True,
                    return_tensors="pt",
                )
                ids = tokens.input_ids.to(self._device)
                if len(self._suffixes) == 1:
                    states.append(encoder(ids)[0])
                else:
                    output = encoder(ids, output_hidden_states=True)
                    states.append(output.hidden_states[-2])
                    pooled = output[0]  # the second encoder's projected state is what remains
        text = Conditioning(torch.cat(states, dim=-1), pooled)
        return text.map(torch.zeros_like) if self._zero_empty and not prompt else text
