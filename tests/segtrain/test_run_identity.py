"""A training goes on only with the same models, data, settings and processes."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from pipeline.config import to_mapping
from pipeline.errors import UserError
from segtrain import recipes, train
from segtrain.identity import identify
from segtrain.sets import SelfTraining


def identity_of(config: train.Config) -> dict:
    """The identity of a run that is not begun."""
    recipe = recipes.load_recipe(config.recipe, config.cfg_options)
    return identify(to_mapping(config), recipe, train.check(config))


def refused(config: train.Config) -> str:
    with pytest.raises(UserError) as caught:
        train.run(config, train.check(config))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_each_change_is_named(
    tiny_diffusion_recipe: Path, tiny_base: Path, make_dataset, tmp_path: Path, monkeypatch
) -> None:
    source, generated = make_dataset(tmp_path / "s", 3), make_dataset(tmp_path / "g", 3, seed=1)
    base = tmp_path / "base"
    shutil.copytree(tiny_base, base)
    config = train.Config(
        recipe=tiny_diffusion_recipe,
        source=source,
        generated=generated,
        generated_share=0.5,
        base=str(base),
        output=tmp_path / "run",
        steps=1,
    )
    train.run(config, train.check(config))
    settings = json.loads((config.output / "config.json").read_text())["settings"]
    assert settings["source"] == str(source) and settings["recipe"] == str(tiny_diffusion_recipe)
    for options, expected in (
        ({"seed": 1}, "seed: 0 -> 1"),
        ({"generated_share": 0.25}, "sets.generated: 0.5 -> 0.25"),
        ({"generated": None, "generated_share": 0.0}, "data.generated: "),
        ({"source": generated}, "data.source: "),
        ({"batch_size": 1}, "batch_size: 2 -> 1"),
        ({"cfg_options": ("optim_wrapper.optimizer.lr=0.5",)}, "optim_wrapper.optimizer.lr: "),
        ({"cfg_options": ("sets.generated.scale_factor=2.0",)}, "transforms.generated: "),
        ({"cfg_options": ("model.ipkl.probability=0.1",)}, "model.ipkl.probability: "),
        ({"self_training": SelfTraining(target=source)}, "data.target: None"),
    ):
        message = refused(dataclasses.replace(config, **options))
        assert "holds another run" in message and expected in message, message
    with monkeypatch.context() as patch:
        patch.setenv("WORLD_SIZE", "2")
        assert "processes: 1 -> 2" in refused(config)
    moved = tmp_path / "moved"
    source.rename(moved)
    train.run(
        dataclasses.replace(config, source=moved),
        train.check(dataclasses.replace(config, source=moved)),
    )
    moved.rename(source)
    weights = base / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    assert "models.base.unet: " in refused(config)


def test_contents_of_files_count(tiny_recipe: Path, make_dataset, tmp_path: Path) -> None:
    source = make_dataset(tmp_path / "s", 2)
    model = recipes.build_model(recipes.load_recipe(tiny_recipe))
    state = model.backbone.state_dict()
    weights = tmp_path / "weights.safetensors"
    save_file(state, weights)
    config = train.Config(recipe=tiny_recipe, source=source, init=weights)
    first = identity_of(config)
    assert json.loads(json.dumps(first)) == first == identity_of(config)
    save_file({name: torch.zeros_like(value) for name, value in state.items()}, weights)
    assert identity_of(config) != first
    save_file(state, weights)
    assert identity_of(config) == first
    started = dataclasses.replace(config, init=None)
    recipe = recipes.load_recipe(tiny_recipe)
    recipe.model.backbone.init_cfg = {"type": "Pretrained", "checkpoint": str(weights)}
    before = identify(to_mapping(started), recipe, train.check(started))["model_files"]
    weights.write_bytes(b"other")
    after = identify(to_mapping(started), recipe, train.check(started))["model_files"]
    assert before.keys() == after.keys() == {"model.backbone.init_cfg.checkpoint"}
    assert before != after
    save_file(state, weights)
    image = next((source / "images").rglob("*.png"))
    Image.new("RGB", (64, 32), "red").save(image)
    assert identity_of(config)["data"] != first["data"]
    elsewhere = tmp_path / "elsewhere.py"
    elsewhere.write_text(f"_base_ = [{str(tiny_recipe)!r}]\n")
    assert identity_of(dataclasses.replace(config, recipe=elsewhere))["model"] == first["model"]
