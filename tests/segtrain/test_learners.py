"""Each learner's recipe at toy size: trains by the program, resumes bit for bit, runs in mmengine.

The networks are random and small; nothing is downloaded. Recipes that differ in their data alone
are tested once.
"""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from segtrain import checkpoints, loop, recipes, train
from segtrain.segmenter import Segmenter

RANDOM = "backbone=dict(pretrained=None),"
LEARNERS = {
    "segformer_efficientnet_pocket": f"{RANDOM} decode_head=dict(channels=8)",
    "daformer_efficientnet_pocket": f"{RANDOM} decode_head=dict(channels=8, embed_dims=8)",
}
Shrink = Callable[[str, str], Path]


@pytest.mark.parametrize("name", LEARNERS)
def test_a_learner_trains_and_resumes(
    name: str, shrink: Shrink, source: Path, tmp_path: Path, monkeypatch
) -> None:
    config = train.Config(
        recipe=shrink(name, LEARNERS[name]),
        source=source,
        output=tmp_path / "straight",
        generated=source,
        generated_share=0.5,
        iterations=3,
        checkpoint_every=2,
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


@pytest.mark.parametrize("name", LEARNERS)
def test_mmengine_runner_trains_a_learner(name: str, shrink: Shrink, tmp_path: Path) -> None:
    from mmengine.runner import Runner

    recipe = recipes.load_recipe(shrink(name, LEARNERS[name]))
    recipe.work_dir, recipe.experiment_name = str(tmp_path), name
    recipe.train_cfg.update(max_iters=1, val_interval=9)
    runner = Runner.from_cfg(recipe)
    runner.train()
    assert runner.iter == 1
