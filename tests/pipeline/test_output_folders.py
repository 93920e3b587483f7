"""Folders that a run continues: what stands in the way is named before anything is written."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline import runs
from pipeline.errors import UserError

CONFIG = {"seed": 1}


@pytest.fixture
def begun(tmp_path: Path) -> Path:
    """The folder of a run with one checkpoint, as its program leaves it."""
    folder = tmp_path / "run"
    runs.open_run(folder, CONFIG, is_main=True)
    checkpoint = folder / "checkpoints/step-00000002"
    for name in ("complete.json", "model.safetensors", "shard_0/.metadata", "shard_0/a.distcp"):
        (checkpoint / name).parent.mkdir(parents=True, exist_ok=True)
        (checkpoint / name).write_text("{}")
    (folder / "checkpoints/.DS_Store").write_text("x")
    (folder / "metrics.jsonl").write_text("{}\n")
    (folder / "unet").mkdir()
    (folder / "notes").symlink_to(tmp_path)  # the user's own
    return folder


def test_a_sound_run_is_continued(begun: Path) -> None:
    runs.open_run(begun, CONFIG, is_main=True)


def link(path: Path) -> None:
    path.symlink_to("/")


def file(path: Path) -> None:
    path.write_text("x")


@pytest.mark.parametrize(
    ("name", "make", "message"),
    [
        ("metrics.jsonl", os.mkfifo, "metrics.jsonl: is not a file"),
        ("metrics.jsonl", link, "metrics.jsonl: is a link"),
        ("metrics.jsonl", Path.mkdir, "metrics.jsonl: is not a file"),
        ("finished.json", os.mkfifo, "finished.json: is not a file"),
        ("checkpoints", link, "checkpoints: is a link"),
        ("checkpoints", file, "checkpoints: is not a folder"),
        ("checkpoints/step-00000009", file, "step-00000009: is not a folder"),
        ("checkpoints/step-00000009", os.mkfifo, "step-00000009: is not a folder"),
        ("checkpoints/step-00000009", link, "step-00000009: is a link"),
        ("checkpoints/step-00000002/model.safetensors", os.mkfifo, "model.safetensors: is not a"),
        ("checkpoints/step-00000002/model.safetensors", link, "model.safetensors: is a link"),
        ("checkpoints/step-00000002/shard_0/a.distcp", os.mkfifo, "a.distcp: is not a file"),
        ("tensorboard", link, "tensorboard: is a link"),
        ("ids", link, "ids: is a link"),
        ("unet/config.json", os.mkfifo, "unet/config.json: is not a file"),
        ("unet/model.safetensors", Path.mkdir, "unet/model.safetensors: is not a file"),
        ("model.safetensors", link, "model.safetensors: is a link"),
    ],
)
def test_what_no_run_writes_is_refused(
    begun: Path, name: str, make: Callable[[Path], object], message: str
) -> None:
    path = begun / name
    if path.is_dir():
        path.rename(begun.parent / "moved")
    path.unlink(missing_ok=True)
    make(path)
    before = sorted(begun.rglob("*"))
    with pytest.raises(UserError, match=message):
        runs.open_run(begun, CONFIG, is_main=True)
    assert sorted(begun.rglob("*")) == before
