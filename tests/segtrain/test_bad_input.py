"""Bad input: one line that names the file or setting, before torch is imported."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.config import parse
from pipeline.errors import UserError
from pipeline.output_folders import RUN, check_output, require_same
from segtrain import score, train
from segtrain.mixing import RareClassCrops


def _damage(folder: Path, how: str) -> str:
    label = sorted(folder.glob("labels/*/*.png"))[1]
    if how == "size":
        Image.fromarray(np.zeros((8, 8), np.uint8)).save(label)
        return "same size"
    if how == "ids":
        Image.fromarray(np.full((32, 64), 33, np.uint8)).save(label)
        return "33"
    if how == "rgb":
        Image.fromarray(np.zeros((32, 64, 3), np.uint8)).save(label)
        return "mode RGB"
    label.write_bytes(label.read_bytes()[:60])
    return "not a readable PNG"


@pytest.mark.parametrize("how", ["size", "ids", "rgb", "truncated"])
def test_damaged_labels_are_named(
    how: str, make_dataset, tiny_recipe: Path, tmp_path: Path
) -> None:
    folder = make_dataset(tmp_path / "d", 3)
    text = _damage(folder, how)
    with pytest.raises(UserError, match=text) as caught:
        train.check(train.Config(recipe=tiny_recipe, source=folder))
    assert "labels/0000/00000001.png" in str(caught.value) and "\n" not in str(caught.value)


def test_missing_things_are_named(source: Path, tiny_recipe: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no recipe given"):
        train.check(train.Config(source=source))
    with pytest.raises(UserError, match="no such recipe"):
        train.check(train.Config(recipe=tmp_path / "none.py", source=source))
    with pytest.raises(UserError, match="no such dataset folder"):
        train.check(train.Config(recipe=tiny_recipe, source=tmp_path / "none"))
    with pytest.raises(UserError, match="--steps 0"):
        train.check(train.Config(recipe=tiny_recipe, source=source, steps=0))
    for setting in ({"steps": 10**12}, {"batch_size": 10**9}, {"workers": 10**6}):
        flag = next(iter(setting)).replace("_", "-")
        with pytest.raises(UserError, match=f"--{flag} .*: must be in"):
            train.check(train.Config(recipe=tiny_recipe, source=source, **setting))
    for bad in ({"temperature": -1}, {"min_pixels": -1}, {"min_crop_ratio": -1}):
        rare = RareClassCrops(**bad)
        with pytest.raises(UserError, match="--rare-classes.* -1: must be"):
            train.check(train.Config(recipe=tiny_recipe, source=source, rare_classes=rare))
    with pytest.raises(UserError, match="no finished training"):
        score.check(score.Config(checkpoint=(tmp_path,), targets=(source,)))
    with pytest.raises(UserError, match="--targets"):
        score.check(score.Config(checkpoint=(tmp_path,)))


def test_output_of_another_program_is_refused(source: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="dataset folder"):
        check_output(source, RUN)
    (tmp_path / "config.json").write_text(json.dumps({"config": {"steps": 3}}))
    with pytest.raises(UserError, match="holds another run"):
        require_same(tmp_path, RUN, {"seed": 1})


def test_dry_run_and_errors_need_no_torch(
    source: Path, tiny_recipe: Path, tmp_path: Path, run_program
) -> None:
    (tmp_path / "torch.py").write_text("raise SystemExit('torch was imported')")
    program = ("segtrain/train.py", tiny_recipe, "--source", source)
    done = run_program(*program, "--dry-run", PYTHONPATH=str(tmp_path))
    assert "would take 100% of the samples from 6 source images" in done.stdout
    done = run_program(*program, "--lr", "1", PYTHONPATH=str(tmp_path), check=False)
    assert done.returncode == 2 and "--lr" in done.stderr and "Traceback" not in done.stderr
    done = run_program("segtrain/score.py", "--help", PYTHONPATH=str(tmp_path))
    assert "--limit" in done.stdout


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("--iterations", "--steps"),
        ("--checkpoint-every", "--checkpoint-interval"),
        ("--log-every", "--log-interval"),
        ("--backbone-weights", "--init"),
    ],
)
def test_old_flags_name_the_new_ones(old: str, new: str) -> None:
    with pytest.raises(UserError, match=f"{old}.*{new}"):
        parse(train.Config, "", ["recipe.py", old, "3"])
