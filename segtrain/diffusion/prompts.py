"""What a diffusion backbone is told: a block of category tokens, then a block of scene tokens.

Category tokens come in three ways: one token per class, the end-of-text state averaged over
sentence templates (VPD, Zhao et al., ICCV 2023; PTDiffSeg); the tokens of the class's own words
(sharper attention maps, TADP, Kondapaneni et al., CVPR 2024); or a sentence that lists all classes.
Scene tokens are the states of a sentence about place, light and weather (PTDiffSeg, Gong et al.,
BMVC 2024). All text is encoded once, when the network is built.
"""

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import nn

from pipeline.errors import UserError
from pipeline.labels import CLASS_NAMES
from pipeline.prompt_encoder import Conditioning, PromptEncoder

Categories = Literal["none", "eos", "words", "sentence"]
TEMPLATES = (
    "a photo of a {}", "a picture of the {}", "a street scene with a {}", "the {} in a street",
    "a small {}", "a large {}", "a {} in the city", "one {}", "a dark photo of a {}",
    "a bright photo of a {}", "a blurry photo of a {}", "a {} far away", "a {} close by",
)  # fmt: skip


class TextContext(nn.Module):
    """Builds the text states of a U-Net; `adapter` learns a gated residual of category tokens.

    `negative`: what guidance leads away from. `token_class`: for each category token the index of
    its class, -1 for a token of none.
    """

    def __init__(
        self,
        encoder: PromptEncoder,
        *,
        categories: Categories = "none",
        scenes: Sequence[str] = ("",),
        class_names: Sequence[str] = CLASS_NAMES,
        templates: Sequence[str] = TEMPLATES,
        class_prompt: str = "a city street scene with {}",
        adapter: bool = False,
        negative: str = "",
    ) -> None:
        super().__init__()
        if categories not in get_args(Categories):
            known = ", ".join(get_args(Categories))
            raise UserError(f"categories {categories}: expected {known}")
        if not scenes:
            raise UserError('scenes: name at least one; [""] says nothing of the scene')
        if any("{}" not in template for template in (*templates, class_prompt)):
            raise UserError("templates and class_prompt: each needs {} where the class name goes")
        block, self.token_class = category_block(encoder, categories, class_names, templates)
        encoded, away = encoder.encode(list(scenes)), encoder.encode([negative])
        length = encoded.states.shape[1]
        if categories != "none":  # beside category tokens, padding would only draw attention
            longest = max(len(tokens(encoder, text)) for text in (*scenes, negative))
            length = min(length, longest + 2)
        classes = encoder.encode(["", *(class_prompt.format(name) for name in class_names)])
        encoder.free()
        for name, tensor in (
            ("categories", block),
            ("scenes", encoded.states[:, :length]),
            ("scenes_pooled", encoded.pooled),
            ("classes", classes.states),
            ("classes_pooled", classes.pooled),
            ("negative", away.states),
            ("negative_pooled", away.pooled),
        ):
            self.register_buffer(name, tensor, persistent=False)
        width = encoded.states.shape[-1]
        self.adapter = (
            nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, width))
            if adapter and block is not None
            else None
        )
        self.gate = nn.Parameter(torch.full((width,), 1e-4)) if self.adapter else None

    def forward(self, scene: int | torch.Tensor = 0) -> Conditioning:
        """Return the states 1xLxD for a scene: the number of a sentence, or tokens SxD."""
        number = 0 if torch.is_tensor(scene) else scene
        tokens = scene if torch.is_tensor(scene) else self.scenes[number]
        pooled = None if self.scenes_pooled is None else self.scenes_pooled[number : number + 1]
        return Conditioning(self._beside_categories(tokens), pooled)

    def away(self, told: bool) -> Conditioning:
        """Return the states of the negative prompt, fit for `forward`, or if `told` for `paths`."""
        if told:
            return Conditioning(self.negative, self.negative_pooled)
        tokens = self.negative[0, : self.scenes.shape[1]]
        return Conditioning(self._beside_categories(tokens), self.negative_pooled)

    def _beside_categories(self, tokens: torch.Tensor) -> torch.Tensor:
        blocks = [tokens[None]]
        if self.categories is not None:
            block = self.categories
            if self.adapter is not None:
                block = block + self.gate * self.adapter(block)
            blocks.insert(0, block[None])
        return torch.cat(blocks, dim=1)

    def paths(self, class_ids: Sequence[int]) -> Conditioning:
        """Return the states of the empty prompt and of a sentence about each class, 1+K rows."""
        rows = [0, *(1 + class_id for class_id in class_ids)]
        pooled = None if self.classes_pooled is None else self.classes_pooled[rows]
        return Conditioning(self.classes[rows], pooled)

    def class_maps(self, maps: torch.Tensor, num_classes: int) -> torch.Tensor:
        """Return BxKxhxw maps of the classes, the mean over a class's tokens, from BxLxhxw."""
        index = torch.tensor(self.token_class, device=maps.device)
        sums = maps.new_zeros((maps.shape[0], num_classes, *maps.shape[2:]))
        sums.index_add_(1, index[index >= 0], maps[:, : len(index)][:, index >= 0])
        counts = torch.bincount(index[index >= 0], minlength=num_classes).clamp_min(1)
        return sums / counts[:, None, None]


def tokens(encoder: PromptEncoder, text: str) -> list[str]:
    """Return the tokens of a text, without start and end."""
    return encoder.tokenizers[0].tokenize(text)


def category_block(
    encoder: PromptEncoder,
    categories: Categories,
    class_names: Sequence[str],
    templates: Sequence[str],
) -> tuple[torch.Tensor | None, list[int]]:
    """Return the category tokens LxD, None for none, and the class of each."""
    if categories == "none":
        return None, []
    found: list[torch.Tensor] = []
    token_class: list[int] = []
    if categories == "sentence":
        for chunk in sentences(encoder, class_names):
            states = encoder.encode([", ".join(class_names[i] for i in chunk)]).states[0]
            position = 1
            for number, index in enumerate(chunk):
                length = len(tokens(encoder, class_names[index]))
                found.append(states[position : position + length])
                token_class += [index] * length
                position += length + len(tokens(encoder, ",")) * (number < len(chunk) - 1)
        return torch.cat(found), token_class
    for index, name in enumerate(class_names):
        if categories == "eos":
            texts = [template.format(name) for template in templates]
            states = encoder.encode(texts).states
            last = [min(len(tokens(encoder, text)) + 1, states.shape[1] - 1) for text in texts]
            found.append(
                torch.stack([s[i] for s, i in zip(states, last, strict=True)]).mean(0)[None]
            )
        else:
            first = 1 + len(tokens(encoder, templates[0].partition("{}")[0]))
            length = len(tokens(encoder, name))
            states = encoder.encode([templates[0].format(name)]).states[0]
            found.append(states[first : first + length])
        token_class += [index] * len(found[-1])
    return torch.cat(found), token_class


def sentences(encoder: PromptEncoder, class_names: Sequence[str]) -> list[list[int]]:
    """Divide the classes into lists that fit the text window."""
    room = encoder.tokenizers[0].model_max_length - 2
    chunks: list[list[int]] = [[]]
    for index in range(len(class_names)):
        text = ", ".join(class_names[i] for i in [*chunks[-1], index])
        if chunks[-1] and len(tokens(encoder, text)) > room:
            chunks.append([])
        chunks[-1].append(index)
    return chunks
