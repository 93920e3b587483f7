"""Training: resume bit for bit, two processes, stored files, mmengine's own Runner."""

import dataclasses
import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from pipeline import release
from pipeline.dataset import open_dataset
from pipeline.errors import UserError
from pipeline.seeding import SeededSamples
from segtrain import checkpoints, loop, recipes, score, train
from segtrain.mixing import RareClassCrops
from segtrain.self_training import Teacher, UnlabelledSamples
from segtrain.sets import SelfTraining

RECIPES = Path(__file__).resolve().parents[2] / "configs" / "segtrain"


def _train(config: train.Config) -> dict[str, torch.Tensor]:
    train.run(config, train.check(config))
    return load_file(config.output / checkpoints.WEIGHTS_FILE)


def _stop_after(monkeypatch: pytest.MonkeyPatch, steps: int) -> None:
    calls, real = iter(range(10**6)), loop.training_loss

    def stopping(*arguments: object) -> torch.Tensor:
        if next(calls) == steps:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(loop, "training_loss", stopping)


def _straight_and_resumed(
    config: train.Config, monkeypatch: pytest.MonkeyPatch
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor], train.Config]:
    """Train at once, and again with a kill at the fourth step; also the second run's config."""
    resumed = dataclasses.replace(config, output=config.output.with_name("resumed"))
    straight = _train(config)
    with monkeypatch.context() as patch:
        _stop_after(patch, 4)
        with pytest.raises(KeyboardInterrupt):
            _train(resumed)
    return straight, _train(resumed), resumed


@pytest.mark.parametrize("recipe_name", ["tiny_recipe", "tiny_diffusion_recipe"])
def test_six_steps_equal_three_a_kill_and_three(
    recipe_name: str, source: Path, tmp_path: Path, request, monkeypatch
) -> None:
    config = train.Config(
        recipe=request.getfixturevalue(recipe_name),
        source=source,
        output=tmp_path / "straight",
        generated=source,
        generated_share=0.5,
        checkpoint_interval=3,
    )
    straight, weights, resumed = _straight_and_resumed(config, monkeypatch)
    finished = json.loads((tmp_path / "resumed" / "finished.json").read_text())
    assert finished["first_step"] == 3
    assert weights.keys() == straight.keys()
    assert all(torch.equal(weights[name], straight[name]) for name in weights)
    assert not any("extractor" in name for name in weights)
    with pytest.raises(UserError, match="seed: 0 -> 1"):
        _train(dataclasses.replace(resumed, seed=1))


@pytest.fixture
def released(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """A function that releases `source` in three shards to a folder or address."""

    def pack(output: str) -> str:
        argv = ["release.py", str(source), "--output", output, "--shard-samples", "2"]
        monkeypatch.setattr(sys, "argv", [*argv, "--work", str(tmp_path / "work")])
        assert release.main() is None
        return output

    return pack


def test_shards_train_the_network_that_their_folder_trains(
    source: Path, released: Callable[..., str], tiny_recipe: Path, tmp_path: Path, monkeypatch
) -> None:
    """With rare classes, workers, and a kill and a resume half-way."""
    rare = RareClassCrops(enabled=True, min_pixels=20)
    config = train.Config(
        recipe=tiny_recipe,
        source=source,
        generated=source,
        generated_share=0.5,
        rare_classes=rare,
        checkpoint_interval=3,
        output=tmp_path / "plain",
    )
    plain = _train(config)
    shards = Path(released(str(tmp_path / "set")))
    config = dataclasses.replace(config, source=shards, generated=shards, workers=2)
    config = dataclasses.replace(config, output=tmp_path / "straight")
    straight, weights, _ = _straight_and_resumed(config, monkeypatch)
    for name, values in plain.items():
        assert torch.equal(values, straight[name]) and torch.equal(values, weights[name])


def test_shards_train_from_an_address(
    source: Path, released: Callable[..., str], tiny_recipe: Path, tmp_path: Path
) -> None:
    far = Path(released("memory://training/set"))
    config = train.Config(
        recipe=tiny_recipe,
        source=source,
        generated=source,
        generated_share=0.5,
        output=tmp_path / "near",
    )
    near = _train(config)
    weights = _train(dataclasses.replace(config, generated=far, output=tmp_path / "far"))
    assert all(torch.equal(near[name], weights[name]) for name in near)


def test_a_stop_signal_saves_and_the_same_command_continues(
    source: Path, tiny_recipe: Path, tmp_path: Path, monkeypatch, capsys
) -> None:
    config = train.Config(recipe=tiny_recipe, source=source, output=tmp_path / "straight")
    straight, stopped = _train(config), dataclasses.replace(config, output=tmp_path / "stopped")
    real, calls = loop.training_loss, []

    def signalled(*arguments: object) -> torch.Tensor:
        calls.append(len(calls))
        if len(calls) == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "training_loss", signalled)
        with pytest.raises(SystemExit) as left:
            _train(stopped)
    assert left.value.code == 128 + signal.SIGTERM and len(calls) == 3
    assert "stopped after step 3; the same command continues" in capsys.readouterr().err
    weights = _train(stopped)
    assert json.loads((stopped.output / "finished.json").read_text())["first_step"] == 3
    assert all(torch.equal(weights[name], straight[name]) for name in weights)


def test_self_training_labels_where_the_average_is_sure(
    source: Path, tiny_diffusion_recipe: Path
) -> None:
    recipe = recipes.load_recipe(tiny_diffusion_recipe)
    model = recipes.build_model(recipe).train()
    images = [sample.image for sample in open_dataset(source, labelled=True)]
    draw = UnlabelledSamples(images, recipe.train_pipeline)
    teacher = Teacher(model, SelfTraining(confidence=0.9999, ema_decay=0.5), draw)
    assert not any("extractor" in name for name in teacher.state_dict())  # frozen: held once
    samples = [SeededSamples(draw, 0)[i] for i in range(2)]
    assert all((s["data_samples"].gt_sem_seg.data == 255).all() for s in samples)
    for sample in teacher.label(samples):  # an untrained network is sure of nothing
        assert (sample["data_samples"].gt_sem_seg.data == 255).all()
    teacher.settings = dataclasses.replace(teacher.settings, confidence=0.0)
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(1.0)
    first = [s["data_samples"].gt_sem_seg.data.clone() for s in teacher.label(samples)]
    assert all((label < 19).all() for label in first)
    for name, weight in model.named_parameters():  # the average was asked, the network is back
        assert torch.equal(weight, before[name] + 1.0)
    assert model.training
    teacher.follow()
    name, weight = next(iter(model.named_parameters()))
    torch.testing.assert_close(teacher.get_buffer(name.replace(".", "/")), before[name] + 0.5)


def test_self_training_resumes_and_changes_the_network(
    source: Path, tiny_recipe: Path, tmp_path: Path, monkeypatch
) -> None:
    learning = SelfTraining(target=source, start=2, confidence=0.0)
    config = train.Config(
        recipe=tiny_recipe,
        source=source,
        output=tmp_path / "straight",
        checkpoint_interval=3,
        self_training=learning,
    )
    straight, weights, resumed = _straight_and_resumed(config, monkeypatch)
    assert all(torch.equal(weights[name], straight[name]) for name in weights)
    plain = dataclasses.replace(config, output=tmp_path / "plain", self_training=SelfTraining())
    other = _train(plain)
    assert any(not torch.equal(other[name], straight[name]) for name in other)
    for wrong, message in (
        ({"target": tmp_path / "none"}, "no such folder"),
        ({"confidence": 1.5}, "below 1"),
    ):
        bad = dataclasses.replace(config, self_training=dataclasses.replace(learning, **wrong))
        with pytest.raises(UserError, match=message):
            train.check(bad)


def test_learning_rate_is_a_function_of_the_step() -> None:
    factor = recipes.learning_rate_factor(
        [
            {"type": "LinearLR", "start_factor": 0.1, "by_epoch": False, "begin": 0, "end": 10},
            {"type": "PolyLR", "power": 1.0, "by_epoch": False, "begin": 10, "end": 20},
        ]
    )
    assert factor(0) == pytest.approx(0.1) and factor(10) == 1.0
    assert factor(15) == pytest.approx(0.5) and factor(20) == 0.0


def test_a_training_as_long_as_the_warm_up_shrinks_it() -> None:
    """1,500 of 40,000 updates: at any length the warm-up has the same share of them."""
    for steps in (1400, 1500):
        recipe = recipes.load_recipe(RECIPES / "segformer_gta.py")
        recipes.override(recipe, steps=steps, batch_size=None, base="")
        warm_up = 1500 * steps // 40000
        found = [(one["begin"], one["end"]) for one in recipe.param_scheduler]
        assert found == [(0, warm_up), (warm_up, steps)]


def test_options_of_self_training_need_a_target(source: Path) -> None:
    SelfTraining().check()
    for name, value in (("start", 5), ("confidence", 0.5), ("ema_decay", 0.9)):
        with pytest.raises(UserError, match="needs --self-training.target DIR") as error:
            SelfTraining(**{name: value}).check()
        assert str(error.value).startswith(f"--self-training.{name.replace('_', '-')} ")
        SelfTraining(target=source, **{name: value}).check()


@pytest.mark.parametrize("recipe_name", ["tiny_recipe", "tiny_diffusion_recipe"])
def test_two_processes_train_and_score_as_one_world(
    recipe_name: str, source: Path, make_dataset, tmp_path: Path, run_program, request
) -> None:
    recipe = request.getfixturevalue(recipe_name)
    torchrun = ("-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone")
    output, target = tmp_path / "run", make_dataset(tmp_path / "t", 5, seed=9)
    run_program(
        *torchrun, "segtrain/train.py", recipe, "--source", source, "--output", output,
        "--steps", 2, GLOO_SOCKET_IFNAME="lo", ACCELERATE_USE_CPU="1",
    )  # fmt: skip
    assert json.loads((output / "finished.json").read_text())["processes"] == 2
    run_program(
        *torchrun, "segtrain/score.py", "--checkpoint", output, "--targets", target,
        "--output", tmp_path / "two.json", GLOO_SOCKET_IFNAME="lo", ACCELERATE_USE_CPU="1",
    )  # fmt: skip
    config = score.Config(checkpoint=(output,), targets=(target,), output=tmp_path / "one.json")
    score.run(config, score.check(config))
    assert (tmp_path / "one.json").read_bytes() == (tmp_path / "two.json").read_bytes()


def test_scores_of_conditions_and_of_a_changed_base(
    source: Path, tiny_diffusion_recipe: Path, tiny_base: Path, make_dataset, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    _train(train.Config(recipe=tiny_diffusion_recipe, source=source, output=run, steps=1))
    target = make_dataset(tmp_path / "acdc", 4, seed=5, conditions=("fog", "night"))
    config = score.Config(checkpoint=(run,), targets=(target,), output=tmp_path / "s.json")
    score.run(config, score.check(config))
    scores = json.loads(config.output.read_text())["checkpoints"][0]["targets"]["acdc"]
    assert {c: s["images"] for c, s in scores["conditions"].items()} == {"fog": 2, "night": 2}
    saved = json.loads((run / "recipe.json").read_text())
    assert saved["features"] == {"timesteps": [1], "taps": ["up_blocks.1", "up_blocks.0"]}
    for part, name, other in (
        ("features", "timesteps", [7]),
        ("diffusion", "revision", "0" * 16),
        ("diffusion", "unet_revision", "0" * 16),
    ):
        changed = {**saved, part: {**saved[part], name: other}}
        (run / "recipe.json").write_text(json.dumps(changed))
        with pytest.raises(UserError, match=f"{name}.*restore that base model"):
            checkpoints.load_trained(run)


@pytest.mark.parametrize("recipe_name", ["tiny_recipe", "tiny_diffusion_recipe"])
def test_mmengine_runner_trains_validates_and_tests_the_recipe(
    recipe_name: str, tmp_path: Path, request
) -> None:
    from mmengine.config import Config
    from mmengine.runner import Runner

    recipe = Config.fromfile(request.getfixturevalue(recipe_name))
    recipe.work_dir = str(tmp_path)
    recipe.train_cfg.update(max_iters=2, val_interval=2)
    checkpoint = {"type": "CheckpointHook", "by_epoch": False, "interval": 2}
    recipe.default_hooks = {"checkpoint": checkpoint}
    recipe.experiment_name = recipe_name
    runner = Runner.from_cfg(recipe)
    runner.train()
    assert runner.iter == 2 and (tmp_path / "iter_2.pth").is_file()
    scores = runner.test()
    assert 0 <= scores["mIoU"] <= 100 and "aAcc" in scores


@pytest.mark.parametrize("name", ["segformer_pocket", "segformer_gta", "diffusion_pocket"])
def test_shipped_recipes_load_and_take_overrides(name: str) -> None:
    recipe = recipes.load_recipe(RECIPES / f"{name}.py")
    recipes.override(recipe, steps=60, batch_size=3, base="")
    assert recipe.train_cfg.max_iters == 60 and recipe.train_dataloader.batch_size == 3
    assert recipe.param_scheduler[-1]["end"] == 60
    assert recipes.learning_rate_factor(recipe.param_scheduler)(0) > 0


def test_recipe_settings_change_by_name(
    tiny_diffusion_recipe: Path, source: Path, tmp_path
) -> None:
    options = ("model.prompt_randomization=None",
               "model.backbone.features.taps=[mid_block,up_blocks.0]",
               "optim_wrapper.optimizer.lr=0.5")  # fmt: skip
    recipe = recipes.load_recipe(tiny_diffusion_recipe)
    recipes.change(recipe, options)
    assert recipe.model.prompt_randomization is None and recipe.optim_wrapper.optimizer.lr == 0.5
    assert recipe.model.backbone.features.taps == ["mid_block", "up_blocks.0"]
    with pytest.raises(UserError, match="has no heads"):
        recipes.change(recipe, ("model.heads.channels=3",))
    config = train.Config(recipe=tiny_diffusion_recipe, source=source, cfg_options=("lr 3",))
    with pytest.raises(UserError, match="key=value"):
        train.check(config)
    run = dataclasses.replace(config, output=tmp_path / "run", steps=1, cfg_options=options[:1])
    train.run(run, train.check(run))
    assert (
        checkpoints.require_trained(run.output)["recipe"]["model"]["prompt_randomization"] is None
    )
