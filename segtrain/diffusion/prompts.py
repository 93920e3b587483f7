"""The prompt of a diffusion backbone: a block of category tokens, then a block of scene tokens.

Category tokens come in two ways: one token per class, the end-of-text state averaged over sentence
templates (VPD, Zhao et al., ICCV 2023; PTDiffSeg); or the tokens of the class's own words (sharper
attention maps, TADP, Kondapaneni et al., CVPR 2024). Scene tokens are the states of a sentence
about place, light and weather (PTDiffSeg, Gong et al., BMVC 2024). All text is encoded once, when
the network is built.
"""

from collections.abc import Sequence

import torch
from torch import nn

from pipeline.prompt_encoder import Conditioning, PromptEncoder
from segtrain.diffusion.options import Text

CLASS_PROMPT = "a city street scene with {}"  # of the branch with a prompt for each class


class TextContext(nn.Module):
    """Builds the text states of a U-Net; `settings.adapter` learns a residual of category tokens.

    `token_class`: for each category token the index of its class.
    """

    def __init__(self, encoder: PromptEncoder, settings: Text | None = None) -> None:
        super().__init__()
        settings = settings or Text()
        block, self.token_class = category_block(encoder, settings)
        scenes = encoder.encode(list(settings.scenes))
        length = scenes.states.shape[1]
        if block is not None:  # beside category tokens, padding would only take attention
            longest = max(len(tokens(encoder, text)) for text in settings.scenes)
            length = min(length, longest + 2)
        names = settings.class_names
        classes = encoder.encode(["", *(CLASS_PROMPT.format(name) for name in names)])
        encoder.free()
        for name, tensor in (
            ("categories", block),
            ("scenes", scenes.states[:, :length]),
            ("scenes_pooled", scenes.pooled),
            ("classes", classes.states),
            ("classes_pooled", classes.pooled),
        ):
            self.register_buffer(name, tensor, persistent=False)
        width = scenes.states.shape[-1]
        self.adapter = (
            nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, width))
            if settings.adapter and block is not None
            else None
        )
        self.gate = nn.Parameter(torch.full((width,), 1e-4)) if self.adapter else None

    def forward(self, scene: int | torch.Tensor = 0) -> Conditioning:
        """Return the states 1xLxD for a scene: the number of a sentence, or tokens SxD."""
        number = 0 if torch.is_tensor(scene) else scene
        tokens = scene if torch.is_tensor(scene) else self.scenes[number]
        pooled = None if self.scenes_pooled is None else self.scenes_pooled[number : number + 1]
        return Conditioning(self._with_categories(tokens), pooled)

    def _with_categories(self, tokens: torch.Tensor) -> torch.Tensor:
        blocks = [tokens[None]]
        if self.categories is not None:
            block = self.categories
            if self.adapter is not None:
                block = block + self.gate * self.adapter(block)
            blocks.insert(0, block[None])
        return torch.cat(blocks, dim=1)

    def class_prompts(self, class_ids: Sequence[int]) -> Conditioning:
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


def category_block(encoder: PromptEncoder, settings: Text) -> tuple[torch.Tensor | None, list[int]]:
    """Return the category tokens LxD, None for none, and the class of each."""
    if settings.categories == "none":
        return None, []
    encode = end_of_text_state if settings.categories == "eos" else states_of_words
    blocks = [encode(encoder, name, settings.templates) for name in settings.class_names]
    token_class = [index for index, block in enumerate(blocks) for _ in block]
    return torch.cat(blocks), token_class


def end_of_text_state(encoder: PromptEncoder, name: str, templates: Sequence[str]) -> torch.Tensor:
    """Return the state 1xD at the end of text, the mean over all templates with a class name."""
    texts = [template.format(name) for template in templates]
    states = encoder.encode(texts).states
    last = [min(len(tokens(encoder, text)) + 1, states.shape[1] - 1) for text in texts]
    return torch.stack([s[i] for s, i in zip(states, last, strict=True)]).mean(0)[None]


def states_of_words(encoder: PromptEncoder, name: str, templates: Sequence[str]) -> torch.Tensor:
    """Return the states LxD of a class name's own tokens within the first template."""
    first = 1 + len(tokens(encoder, templates[0].partition("{}")[0]))
    states = encoder.encode([templates[0].format(name)]).states[0]
    return states[first : first + len(tokens(encoder, name))]
