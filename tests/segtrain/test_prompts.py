"""The text states of a diffusion backbone: category tokens, scenes, class maps."""

from pathlib import Path

import pytest
import torch

from pipeline.errors import UserError
from pipeline.prompt_encoder import PromptEncoder
from segtrain.diffusion.options import Text
from segtrain.diffusion.prompts import CLASS_PROMPT, TextContext, category_block

NAMES = ("road", "traffic light", "car", "sky", "traffic sign", "person", "terrain", "bus")


@pytest.fixture(scope="module")
def encoder(tiny_base: Path) -> PromptEncoder:
    return PromptEncoder(str(tiny_base))


def _tokenized(encoder: PromptEncoder, text: str) -> list[str]:
    return encoder.tokenizers[0].tokenize(text)


def test_eos_tokens_are_the_mean_over_templates(encoder: PromptEncoder) -> None:
    block, owners = category_block(
        encoder, Text("eos", class_names=("car", "road"), templates=("a {} at night", "a {}"))
    )
    assert owners == [0, 1] and block.shape == (2, 16)
    ends = []
    for text in ("a road at night", "a road"):
        ends.append(encoder.encode([text]).states[0, len(_tokenized(encoder, text)) + 1])
    torch.testing.assert_close(block[1], torch.stack(ends).mean(0))


def test_word_tokens_are_those_of_the_name(encoder: PromptEncoder) -> None:
    block, owners = category_block(
        encoder, Text("words", class_names=("car", "traffic light"), templates=("a street {} at",))
    )
    words = _tokenized(encoder, "traffic light")
    assert owners == [0] * len(_tokenized(encoder, "car")) + [1] * len(words)
    text = "a street traffic light at"
    first = _tokenized(encoder, text).index(words[0]) + 1
    expected = encoder.encode([text]).states[0, first : first + len(words)]
    torch.testing.assert_close(block[owners.index(1) :], expected)


def test_blocks_stand_side_by_side_and_class_maps_find_their_tokens(encoder) -> None:
    scenes = ("a street at night", "a street in snowy weather at dusk")
    text = TextContext(encoder, Text("words", scenes=scenes, class_names=NAMES))
    first, second = text(0).states, text(1).states
    count = len(text.token_class)
    assert torch.equal(first[:, :count], second[:, :count])
    assert not torch.equal(first[:, count:], second[:, count:])
    assert first.shape[1] == count + 2 + len(_tokenized(encoder, scenes[1]))
    maps = torch.rand(2, first.shape[1], 4, 6).softmax(1)
    found = text.class_maps(maps, len(NAMES))
    lights = [i for i, owner in enumerate(text.token_class) if owner == 1]
    assert found.shape == (2, len(NAMES), 4, 6)
    torch.testing.assert_close(found[:, 1], maps[:, lights].mean(1))
    learned = torch.zeros(3, 16)
    assert torch.equal(text(learned).states[0, count:], learned)


def test_no_text_is_the_whole_window_of_the_empty_prompt(encoder: PromptEncoder) -> None:
    assert torch.equal(TextContext(encoder)().states, encoder.encode([""]).states)


def test_adapter_starts_near_nothing_and_learns(encoder: PromptEncoder) -> None:
    plain = TextContext(encoder, Text("eos", class_names=NAMES))
    adapted = TextContext(encoder, Text("eos", class_names=NAMES, adapter=True))
    torch.testing.assert_close(plain().states, adapted().states, rtol=0, atol=1e-3)
    adapted().states[:, : len(NAMES)].square().sum().backward()
    assert all(p.grad is not None for p in adapted.parameters())
    assert set(adapted.state_dict()) == {"gate"} | {
        f"adapter.{i}.{kind}" for i in (0, 2) for kind in ("weight", "bias")
    }


def test_class_prompts_are_the_empty_one_and_one_sentence_per_class(encoder) -> None:
    text = TextContext(encoder, Text(class_names=NAMES))
    expected = encoder.encode(["", CLASS_PROMPT.format("car"), CLASS_PROMPT.format("road")]).states
    assert torch.equal(text.class_prompts([2, 0]).states, expected)


def test_templates_without_a_class_name_are_refused() -> None:
    for options in ({"templates": ("a road",)}, {"scenes": ()}):
        with pytest.raises(UserError, match="needs {}|name at least one"):
            Text(**options)
