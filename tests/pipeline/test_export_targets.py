"""An export that our programs read says what the set is: a target is no training set."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.dataset import open_dataset
from pipeline.errors import UserError
from pipeline.origins import kept_by_copies, refuse_test_data
from tests.pipeline.exporting import NUM_SAMPLES
from tests.pipeline.exporting import data as data
from tests.pipeline.exporting import run as run

STATE = {"role": "target", "protocol": {"eval_low_px": [8, 16]}, "classes": [["road", [0]]]}


@pytest.fixture
def target(data: Path, tmp_path: Path) -> Path:
    """The set as a target with test sizes and one class."""
    folder = shutil.copytree(data, tmp_path / "target")
    record = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps({**record, **STATE}))
    return folder


def test_an_exported_target_stays_one(run: Callable[..., Path], target: Path) -> None:
    split = run("imagefolder", "--split", "val", data=target) / "val"
    assert len(open_dataset(split, labelled=True)) == NUM_SAMPLES
    with pytest.raises(UserError, match="val: is a target that networks are scored on"):
        refuse_test_data(split)
    assert kept_by_copies(split) == kept_by_copies(target)


def test_hugging_face_does_not_mind(run: Callable[..., Path], target: Path, tmp_path: Path) -> None:
    hub = pytest.importorskip("datasets")
    folder = run("imagefolder", data=target)
    found = hub.load_dataset("imagefolder", data_dir=str(folder), cache_dir=str(tmp_path / "hub"))
    assert {name: len(rows) for name, rows in found.items()} == {"train": NUM_SAMPLES}


def test_a_run_that_is_a_link_is_not_published(run: Callable[..., Path], target: Path) -> None:
    (target / "run.json").rename(target.parent / "private.json")
    (target / "run.json").symlink_to(target.parent / "private.json")
    with pytest.raises(UserError, match="run.json: .*link"):
        run("imagefolder", data=target)
    left = target.parent.rglob("train/metadata.jsonl")
    assert not list(left), "rows without the role pass for a training set"


def test_a_set_without_a_run_is_exported(run: Callable[..., Path], target: Path) -> None:
    (target / "run.json").unlink()
    assert not (run("imagefolder", data=target) / "train/run.json").exists()
