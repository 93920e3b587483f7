"""Prompts of every family are encoded as diffusers' own pipelines encode them."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from pipeline.errors import UserError
from pipeline.prompt_encoder import PromptEncoder

PROMPTS = ["a city street", "road " * 99]


def expected(base: Path, prompt: str) -> list[torch.Tensor | None]:
    """States and pooled state of the stock pipeline, without guidance."""
    from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline

    if json.loads((base / "model_index.json").read_text()).get("text_encoder_2"):
        pipe = StableDiffusionXLPipeline.from_pretrained(base, add_watermarker=False)
        states, _, pooled, _ = pipe.encode_prompt(prompt, do_classifier_free_guidance=False)
        return [states, pooled]
    pipe = StableDiffusionPipeline.from_pretrained(base, safety_checker=None)
    return [pipe.encode_prompt(prompt, "cpu", 1, False)[0], None]


@pytest.mark.parametrize("family", ["sd15", "sd21", "sdxl"])
def test_states_equal_those_of_the_stock_pipeline(family: str, family_base) -> None:
    base = family_base(family)
    text = PromptEncoder(str(base)).encode(PROMPTS)
    for i, prompt in enumerate(PROMPTS):
        states, pooled = expected(base, prompt)
        assert torch.equal(text.states[i : i + 1], states)
        assert (text.pooled is None) == (pooled is None)
        if pooled is not None:
            assert torch.equal(text.pooled[i : i + 1], pooled)


def test_xl_receives_sizes_and_gets_zeros_for_the_empty_prompt(family_base) -> None:
    text = PromptEncoder(str(family_base("sdxl"))).encode(["", "road"])
    assert not text.states[0].any() and not text.pooled[0].any()
    assert text.states[1].any() and text.pooled[1].any()
    added = text.arguments((32, 64))["added_cond_kwargs"]
    assert added["time_ids"].tolist() == [[32, 64, 0, 0, 32, 64]] * 2
    assert set(PromptEncoder(str(family_base("sd15"))).encode(["road"]).arguments((32, 64))) == {
        "encoder_hidden_states"
    }


def test_a_prompt_is_encoded_once_and_the_encoders_can_go(tiny_base: Path, monkeypatch) -> None:
    from pipeline import models

    encoder = PromptEncoder(str(tiny_base))
    first = encoder.encode(["road", "sky"]).states
    encoder.free()
    loads: list[str] = []
    load = models.load_component
    monkeypatch.setattr(
        models, "load_component", lambda base, part, **k: loads.append(part) or load(base, part)
    )
    again = encoder.encode(["sky", "road"]).states
    assert torch.equal(again.flip(0), first) and not loads
    encoder.encode(["a car"])
    assert loads == ["text_encoder"]


def test_cut_prompts_are_noticed(tiny_base: Path) -> None:
    encoder = PromptEncoder(str(tiny_base))
    assert encoder.truncates("road " * 99) and not encoder.truncates("a city street")


def test_other_text_encoders_are_refused_by_name(tiny_base: Path, tmp_path: Path) -> None:
    index = json.loads((tiny_base / "model_index.json").read_text())
    index["text_encoder_2"] = ["transformers", "T5EncoderModel"]
    shutil.copytree(tiny_base / "tokenizer", tmp_path / "tokenizer")
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match="text_encoder_2 is T5EncoderModel.*or XL base"):
        PromptEncoder(str(tmp_path))
