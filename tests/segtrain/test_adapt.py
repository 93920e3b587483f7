"""Test-time adaptation: only scene tokens learn, runs resume, results are used."""

import dataclasses
import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from pipeline import checkpoints as run_checkpoints
from pipeline import labels
from pipeline.dataset_writer import DatasetWriter
from pipeline.errors import UserError
from pipeline.prompt_encoder import Conditioning
from pipeline.seeding import SeededSamples
from segtrain import adapt, checkpoints, predict, recipes, score
from segtrain.adaptation import Adaptation, ScenePrompt, class_mean
from segtrain.loop import training_loss
from segtrain.segmenter import Segmenter
from segtrain.self_training import Teacher, UnlabelledSamples
from segtrain.sets import SelfTraining


def _tokens(folder: Path) -> torch.Tensor:
    return load_file(folder / checkpoints.SCENE_FILE)["tokens"]


def _adapt(config: adapt.Config) -> torch.Tensor:
    adapt.run(config, adapt.check(config))
    return _tokens(config.output)


@pytest.fixture
def config(trained: Path, source: Path, tmp_path: Path) -> adapt.Config:
    return adapt.Config(
        checkpoint=trained,
        target=source,
        output=tmp_path / "scene",
        steps=4,
        checkpoint_interval=2,
        confidence=0.0,
        ema_decay=0.5,
    )


def test_learning_changes_the_tokens_and_lowers_the_loss(config) -> None:
    config = dataclasses.replace(config, steps=12, batch_size=6)
    tokens = _adapt(config)
    segmenter = Segmenter.from_pretrained(config.checkpoint)
    before = segmenter.model.backbone.text.scenes[0]
    assert tokens.shape == before.shape and not torch.allclose(tokens.float(), before, atol=1e-3)
    assert (config.output / checkpoints.SCENE_FILE).stat().st_size < 8192
    images, _ = segmenter.prepare(adapt.check(config))
    scene = ScenePrompt(segmenter, 0, config.confidence)

    def loss(tokens: torch.Tensor) -> float:
        scene.tokens.data = tokens
        return float(scene([images]))

    assert loss(tokens.float()) < loss(before)


def test_four_steps_equal_two_a_stop_and_two(config, tmp_path, monkeypatch) -> None:
    straight = _adapt(config)
    resumed = dataclasses.replace(config, output=tmp_path / "resumed")
    calls, real = iter(range(100)), Adaptation.loss

    def stopping(*arguments: object) -> torch.Tensor:
        if next(calls) == 3:
            raise KeyboardInterrupt
        return real(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Adaptation, "loss", stopping)
        with pytest.raises(KeyboardInterrupt):
            _adapt(resumed)
    assert torch.equal(_adapt(resumed), straight)
    with pytest.raises(UserError, match="holds another run"):
        _adapt(dataclasses.replace(resumed, ema_decay=0.6))


@pytest.mark.parametrize("mode", ["offline", "online"])
def test_a_stop_signal_saves_the_update_and_the_same_command_continues(
    config, mode, tmp_path, monkeypatch
) -> None:
    config = dataclasses.replace(config, mode=mode, checkpoint_interval=100)
    straight = _adapt(config)
    stopped = dataclasses.replace(config, output=tmp_path / "stopped")
    calls, real = iter(range(100)), Adaptation.loss

    def signalled(*arguments: object) -> torch.Tensor:
        if next(calls) == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Adaptation, "loss", signalled)
        with pytest.raises(SystemExit) as stop:
            _adapt(stopped)
    assert stop.value.code == 143
    assert [p.name for p in sorted((stopped.output / "checkpoints").iterdir())] == ["step-00000002"]
    assert torch.equal(_adapt(stopped), straight)


def test_online_predicts_each_image_before_it_learns_from_it(config, tmp_path) -> None:
    config = dataclasses.replace(config, mode="online")
    _adapt(config)
    found = sorted((config.output / "predictions").rglob("*.png"))
    images = adapt.check(config)
    assert len(found) == len(images)
    order = adapt_order(config, len(images))
    plain = Segmenter.from_pretrained(config.checkpoint)(images[order[0]])
    name = images[order[0]].relative_to(config.target).with_suffix(".png")
    assert (labels.read_label(config.output / "predictions" / name) == plain).all()


def adapt_order(config: adapt.Config, count: int) -> list[int]:
    from pipeline import seeding

    return seeding.numpy_generator(config.seed, "order").permutation(count).tolist()


@pytest.mark.parametrize("mode", ["offline", "online"])
def test_images_of_any_size_and_place_are_adapted_to(config, mode, tmp_path, monkeypatch) -> None:
    rng = np.random.default_rng(0)
    writer = DatasetWriter(tmp_path / "target", config={})
    for index, size in enumerate(((32, 64), (40, 48), (32, 64), (48, 32))):
        path = tmp_path / f"target/s{index}.png"
        Image.fromarray(rng.integers(0, 255, (*size, 3), np.uint8)).save(path)
        writer.append_row({"id": f"s{index}", "status": "ok", "image_file_name": path.name})
    config = dataclasses.replace(config, target=tmp_path / "target", mode=mode, batch_size=3)
    straight = _adapt(config)
    resumed = dataclasses.replace(config, output=tmp_path / "resumed")
    real = run_checkpoints.save_checkpoint

    def stopping(*arguments: object) -> None:
        real(*arguments)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(run_checkpoints, "save_checkpoint", stopping)
        with pytest.raises(KeyboardInterrupt):
            _adapt(resumed)
    assert torch.equal(_adapt(resumed), straight)
    names = sorted(p.name for p in (config.output / "predictions").rglob("*.png"))
    assert names == ([f"s{index}.png" for index in range(4)] if mode == "online" else [])


def test_images_are_grouped_by_size_and_keep_their_values(trained: Path) -> None:
    rng = np.random.default_rng(0)
    sizes = ((32, 64), (40, 48), (32, 64))
    images = [rng.integers(0, 255, (*size, 3), np.uint8) for size in sizes]
    segmenter = Segmenter.from_pretrained(trained)
    (pair, _), (single, _) = segmenter.prepare_by_size(images)
    assert torch.equal(pair, segmenter.prepare([images[0], images[2]])[0])
    assert torch.equal(single, segmenter.prepare(images[1:2])[0])


def test_self_training_takes_images_smaller_than_the_crop(tiny_recipe, tmp_path) -> None:
    rng = np.random.default_rng(0)
    for name, size in (("a.png", (24, 24)), ("b.png", (16, 64))):
        Image.fromarray(rng.integers(0, 255, (*size, 3), np.uint8)).save(tmp_path / name)
    recipe = recipes.load_recipe(tiny_recipe)
    model = recipes.build_model(recipe).train()
    draw = UnlabelledSamples(sorted(tmp_path.glob("*.png")), recipe.train_pipeline)
    teacher = Teacher(model, SelfTraining(confidence=0.0), draw)
    samples = [SeededSamples(draw, 0)[index] for index in range(6)]
    sizes = [sample["inputs"].shape[1:] for sample in samples]
    assert len(set(sizes)) > 1
    labelled = teacher.label(samples)
    assert [sample["data_samples"].gt_sem_seg.shape for sample in labelled] == sizes
    assert all((sample["data_samples"].gt_sem_seg.data < 19).all() for sample in labelled)
    assert torch.isfinite(training_loss(model, model, labelled))


def test_a_learned_scene_is_used(config: adapt.Config, source: Path, tmp_path: Path) -> None:
    tokens = _adapt(dataclasses.replace(config, learning_rate=1.0))
    segmenter = Segmenter.from_pretrained(config.checkpoint, scene=config.output)
    context = segmenter.model.backbone.text(segmenter.model.scene)
    assert isinstance(context, Conditioning)
    assert torch.equal(context.states[0, -len(tokens) :], tokens.float())
    image = adapt.check(config)[0]
    inputs, _ = segmenter.prepare([image])
    adapted = segmenter.model.extract_feat(inputs)[0]
    segmenter.model.scene = 0
    assert not torch.allclose(adapted, segmenter.model.extract_feat(inputs)[0])
    scores = score.Config(
        checkpoint=(config.checkpoint,),
        targets=(source,),
        scene=config.output,
        output=tmp_path / "scores.json",
    )
    score.run(scores, score.check(scores))
    assert (tmp_path / "scores.json").is_file()

    moved, other = tmp_path / "moved", tmp_path / "other"
    for folder in (moved, other):
        shutil.copytree(config.checkpoint, folder)
    Segmenter.from_pretrained(moved, scene=config.output)
    weights = load_file(other / checkpoints.WEIGHTS_FILE)
    doubled = {name: value * 2 for name, value in weights.items()}
    save_file(doubled, other / checkpoints.WEIGHTS_FILE)
    with pytest.raises(UserError, match="not learned through .*other; run segtrain/adapt.py"):
        Segmenter.from_pretrained(other, scene=config.output)
    wrong = predict.Config(
        checkpoint=other, scene=config.output, images=source, output=tmp_path / "predictions"
    )
    with pytest.raises(UserError, match="not learned through"):
        predict.run(wrong, predict.check(wrong))
    right = dataclasses.replace(wrong, checkpoint=config.checkpoint, limit=1)
    predict.run(right, predict.check(right))
    with pytest.raises(UserError, match="holds another run .*weights"):
        _adapt(dataclasses.replace(config, learning_rate=1.0, checkpoint=other))


def test_two_processes_adapt(config, run_program, tmp_path) -> None:
    arguments = (
        "segtrain/adapt.py", "--checkpoint", config.checkpoint, "--target", config.target,
        "--steps", 2, "--confidence", 0, "--batch-size", 1, "--learning-rate", 0.01,
        "--ema-decay", 0.99,
    )  # fmt: skip
    launch = ("-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone")
    run_program(*launch, *arguments, "--output", tmp_path / "two", ACCELERATE_USE_CPU="true")
    single = dataclasses.replace(config, steps=2, batch_size=2, ema_decay=0.99, learning_rate=0.01)
    torch.testing.assert_close(_tokens(tmp_path / "two"), _adapt(single), rtol=0, atol=2e-3)


def test_classes_count_the_same_in_a_pseudo_label() -> None:
    labels = torch.tensor([[3, 3, 3, 3], [3, 3, 7, 9]])
    loss = torch.where(labels == 7, 6.0, torch.where(labels == 3, 2.0, 100.0))
    confidence = torch.where(labels == 9, 0.2, 0.8)
    value = class_mean(loss, labels, confidence, 0.5)
    torch.testing.assert_close(value, torch.tensor(4.0))  # not 16 / 7, and nothing of class 9
    assert class_mean(loss, labels, confidence, 0.9) == 0


def test_bad_input_of_adaptation(config: adapt.Config, tmp_path: Path) -> None:
    for changes, text in (
        ({"checkpoint": tmp_path}, "no finished training"),
        ({"target": tmp_path / "none"}, "no such folder"),
        ({"scene": 2}, "scenes 0 to 1"),
        ({"steps": 0}, "--steps"),
        ({"ema_decay": 1.0}, "--ema-decay"),
        ({"confidence": -0.1}, "--confidence"),
    ):
        with pytest.raises(UserError, match=text):
            adapt.check(dataclasses.replace(config, **changes))
