"""Each network's recipe at toy size: trains by the program, resumes bit for bit, runs in mmengine.

The networks are random and small; nothing is downloaded. Recipes that differ in their data alone
are tested once.
"""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from segtrain import checkpoints, loop, recipes, train
from segtrain.diffusion.trajectories import DIFF_37_SAVED
from segtrain.segmenter import Segmenter

RECIPES = Path(__file__).resolve().parents[2] / "configs" / "segtrain"
EFFICIENTNET = "backbone=dict(pretrained=None),"
MIT = "backbone=dict(embed_dims=8, num_layers=[1, 1, 1, 1], num_heads=[1, 1, 1, 1]),"
RESNET = "backbone=dict(depth=18, base_channels=8, stem_channels=8),"
MIT_DAFORMER = f"{MIT} decode_head=dict(in_channels=[8, 8, 8, 8], channels=8, embed_dims=8),"
SMALL_VIEWS = MIT.replace("),", ", sr_ratios=[2, 1, 1, 1]),")
STYLES = "channels=8, num_styles=2, pool=4, interval=2"
VIT = (
    "backbone=dict(architecture=dict(hidden_size=32, num_hidden_layers=4, num_attention_heads=2, "
    "image_size=16), out_layers=(0, 1, 2, 3)),"
)
NETWORKS = {
    "segformer_efficientnet_pocket": f"{EFFICIENTNET} decode_head=dict(channels=8)",
    "daformer_pocket": f"{EFFICIENTNET} decode_head=dict(channels=8, embed_dims=8)",
    "deeplabv3plus_pocket": f"{EFFICIENTNET} decode_head=dict(channels=8)",
    "daformer_gta": MIT_DAFORMER,
    "hrda_gta": f"{SMALL_VIEWS} decode_head=dict(in_channels=[8] * 4, channels=8, embed_dims=8), "
    "detail=dict(crop_size=(16, 32)), test_cfg=dict("
    "crop_size=(32, 32), stride=(32, 16)), attention_head=dict(in_channels=[8] * 4, channels=8)",
    "deeplabv2_gta": f"{RESNET} decode_head=dict(in_channels=64)",
    "deeplabv3plus_gta": f"{RESNET} decode_head=dict(in_channels=64, channels=8, c1_in_channels=8,"
    "c1_channels=4), auxiliary_head=dict(in_channels=32, channels=8)",
    "mask2former_gta": f"{MIT} decode_head=dict(in_channels=[8] * 4, feature_size=32, "
    "dim_feedforward=16, encoder_feedforward_dim=16, encoder_layers=1, decoder_layers=2, "
    "num_attention_heads=2, num_queries=5, train_num_points=64)",
    "dinov2_lora_gta": "backbone=dict(architecture=dict(hidden_size=8, num_hidden_layers=4, "
    "num_attention_heads=2), out_layers=(0, 1, 2, 3), rank=2), "
    "decode_head=dict(in_channels=[8] * 4, channels=8)",
    # mmsegmentation builds a convolution of 3x3 in this head first, larger than all that is kept
    "dinov2_linear_pocket": f"{VIT} decode_head=dict(in_channels=32, channels=32)",
    "daformer_shade_gta": f"{MIT_DAFORMER} style_hallucination=dict({STYLES})",
    "flexseg_gta": MIT_DAFORMER,
    "class_mixing_gta": MIT_DAFORMER,
}
DAFORMER = f"{EFFICIENTNET} decode_head=dict(channels=8, embed_dims=8)"
SHORT = (
    "backbone=dict(features=dict(trajectory=dict("
    f"targets={[*sorted(DIFF_37_SAVED), 105]}))), decode_head=dict(channels=8, embed_dims=8)"
)
HRDA = f"{DAFORMER}, detail=dict(crop_size=(32, 32)), attention_head=dict(channels=8),"
STYLE = "style_hallucination=dict(num_styles=2, interval=1, pool=4)"
POCKET = {
    "class_mixing_pocket": DAFORMER,
    "daformer_efficientnet_pocket": DAFORMER,
    "deeplabv2_pocket": EFFICIENTNET,
    "diff1_pocket": "decode_head=dict(channels=8, embed_dims=8)",
    "diff5_pocket": "decode_head=dict(channels=8, embed_dims=8)",
    "diff_as_released_pocket": SHORT,
    "diff_pocket": SHORT,
    "diffusion_pocket": "",
    "dinov2_pocket": f"{VIT} decode_head=dict(in_channels=[32] * 4, channels=8)",
    "dinov2_lora_pocket": f"{VIT} decode_head=dict(in_channels=[32] * 4, channels=8)",
    "dinov3_pocket": f"{VIT} decode_head=dict(in_channels=[32] * 4, channels=8)",
    "flexseg_hrda_pocket": f"{HRDA} {STYLE}",
    "flexseg_pocket": DAFORMER,
    "hrda_pocket": HRDA,
    "hrda_shade_pocket": f"{HRDA} {STYLE}",
    "latent_regression_pocket": "",
    "mask2former_pocket": "decode_head=dict(train_num_points=64)",
    "ptdiffseg_pocket": "",
    "random_pocket": "",
    "segformer_pocket": MIT + "decode_head=dict(in_channels=[8] * 4, channels=8)",
    "shade_pocket": f"{DAFORMER}, {STYLE}",
    "streetforge_pocket": "",
    "vpd_pocket": "",
}
"""The other recipes of Pocket City, those of diffusion backbones on the shipped model."""
Shrink = Callable[[str, str], Path]


def initial_weights(path: Path, folder: Path) -> Path:
    """Write random weights for the backbone of a recipe, to start from and to stay near."""
    torch.manual_seed(5)
    backbone = recipes.build_model(recipes.load_recipe(path)).backbone
    state = getattr(backbone, "pretrained_part", backbone).state_dict()
    save_file({name: value.clone() for name, value in state.items()}, folder / "initial")
    return (folder / "initial").rename(folder / "initial.safetensors")


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_trains_and_resumes(
    name: str, shrink: Shrink, source: Path, tmp_path: Path, monkeypatch
) -> None:
    path = shrink(name, NETWORKS[name])
    config = train.Config(
        recipe=path,
        source=source,
        output=tmp_path / "straight",
        generated=source,
        generated_share=0.5,
        steps=3,
        checkpoint_interval=2,
        init=initial_weights(path, tmp_path),
    )
    train.run(config, train.check(config))
    resumed = dataclasses.replace(config, output=tmp_path / "resumed")
    calls, real = [], loop.training_loss

    def killed_at_the_third_step(*arguments: object) -> torch.Tensor:
        calls.append(len(calls))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "training_loss", killed_at_the_third_step)
        with pytest.raises(KeyboardInterrupt):
            train.run(resumed, train.check(resumed))
    train.run(resumed, train.check(resumed))
    assert json.loads((resumed.output / "finished.json").read_text())["first_step"] == 2
    expected, found = (
        load_file(one.output / checkpoints.WEIGHTS_FILE) for one in (config, resumed)
    )
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[key], found[key]) for key in expected)
    images = sorted((source / "images").rglob("*.png"))
    assert Segmenter.from_pretrained(config.output)(images[0]).shape == (32, 64)


def test_every_recipe_of_pocket_city_is_here() -> None:
    names = {path.stem for path in RECIPES.glob("*_pocket.py")}
    assert names == {name for name in {**NETWORKS, **POCKET} if name.endswith("_pocket")}


@pytest.mark.parametrize("name", POCKET)
def test_a_recipe_of_pocket_city_trains_and_resumes(
    name: str, shrink: Shrink, source: Path, tmp_path: Path, monkeypatch
) -> None:
    """Bit-equal resume is tested above and in test_training.py; here that each recipe can."""
    path = shrink(name, POCKET[name])
    start = initial_weights(path, tmp_path) if "feature_distance" in path_text(name) else None
    config = train.Config(
        recipe=path,
        source=source,
        output=tmp_path / "run",
        generated=source,
        generated_share=0.5,
        steps=2,
        batch_size=2,
        checkpoint_interval=1,
        init=start,
    )
    with monkeypatch.context() as patch:
        patch.setattr(loop.Progress, "update", killed_after_a_checkpoint)
        with pytest.raises(KeyboardInterrupt):
            train.run(config, train.check(config))
    train.run(config, train.check(config))
    assert json.loads((config.output / "finished.json").read_text())["first_step"] == 1
    checkpoints.require_trained(config.output)  # may be loaded by others


def killed_after_a_checkpoint(self: loop.Progress, done: int, *_: float) -> None:
    if done == 2:
        raise KeyboardInterrupt


def path_text(name: str) -> str:
    """The model of a shipped recipe, as text."""
    return str(recipes.load_recipe(RECIPES / f"{name}.py").model)


@pytest.mark.parametrize("name", NETWORKS)
def test_mmengine_runner_trains_a_network(name: str, shrink: Shrink, tmp_path: Path) -> None:
    from mmengine.runner import Runner

    recipe = recipes.load_recipe(shrink(name, NETWORKS[name]))
    recipe.work_dir, recipe.experiment_name = str(tmp_path), name
    recipe.train_cfg.update(max_iters=1, val_interval=9)
    recipe.update(val_cfg=None, val_dataloader=None, val_evaluator=None)  # frames of full size
    runner = Runner.from_cfg(recipe)
    runner.train()
    assert runner.iter == 1
