"""What a folder says of its dataset, split and role, and which ones nothing learns from."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from finetune.start import open_samples
from finetune.style_images import open_style_images
from pipeline import pocket_city, prepare
from pipeline.config import digest
from pipeline.errors import UserError
from pipeline.origins import Origin, kept_by_copies, origin_of, refuse_test_data
from pipeline.pocket.splits import SPLITS, TARGETS

SIZE = ("--n", "1", "--size-px", "16", "32", "--workers", "1")


def call(monkeypatch: pytest.MonkeyPatch, program: Any, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", ["program.py", *map(str, arguments)])
    assert not program.main()


@pytest.fixture
def render(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """A function that writes one image of a split of Pocket City."""

    def write(split: str) -> Path:
        folder = tmp_path / split
        call(monkeypatch, pocket_city, "--split", split, *SIZE, "--output", folder)
        return folder

    return write


def write_run(folder: Path, **run: object) -> Path:
    folder.mkdir()
    (folder / "run.json").write_text(json.dumps(run))
    return folder


def test_the_catalogue_knows_the_role_of_folders_that_state_none(tmp_path: Path) -> None:
    val = write_run(tmp_path / "val", config={"dataset": "cityscapes", "split": "val"})
    assert origin_of(val) == Origin("cityscapes", "cityscapes", "val", "target")
    train = write_run(tmp_path / "train", config={"dataset": "cityscapes", "split": "train"})
    gta = write_run(tmp_path / "gta", config={"dataset": "gta", "split": "all"})
    other = write_run(tmp_path / "other", config={"dataset": "../x", "split": "val"})
    wrong = write_run(tmp_path / "wrong", config={"dataset": ["gta"], "split": 3}, role=None)
    assert origin_of(other) == Origin("other", split="val")
    assert origin_of(wrong) == Origin("wrong")
    assert origin_of(tmp_path / "none") == Origin("none")
    for folder in (train, gta, other, wrong, tmp_path / "none"):
        refuse_test_data(folder)
    with pytest.raises(UserError, match="val: is the split val of cityscapes, a target .*--yes ci"):
        refuse_test_data(val, flag="--yes")
    refuse_test_data(val, allowed=("cityscapes",))


@pytest.mark.parametrize("role", [5, 0, False, ["target"], {"target": True}])
def test_a_role_that_is_no_text_is_an_error(tmp_path: Path, role: object) -> None:
    folder = write_run(tmp_path / "set", role=role, config={"dataset": "gta", "split": "all"})
    for read in (origin_of, refuse_test_data, kept_by_copies):
        with pytest.raises(UserError, match=f"^{folder}/run.json: role is .*no text; correct") as e:
            read(folder)
        assert "\n" not in str(e.value)


def test_copies_keep_what_networks_are_scored_by(tmp_path: Path) -> None:
    classes = [["road", [0, 1]], ["car", [13]]]
    camvid = write_run(
        tmp_path / "camvid", role="target", protocol={"eval_low_px": [8, 16]}, classes=classes
    )
    assert kept_by_copies(camvid) == {
        "role": "target",
        "protocol": {"eval_low_px": [8, 16]},
        "classes": [("road", (0, 1)), ("car", (13,))],
    }
    assert "protocol" not in kept_by_copies(camvid, whole=False)
    acdc = write_run(tmp_path / "acdc", config={"dataset": "acdc", "split": "val"})
    assert kept_by_copies(acdc)["role"] == "target" and kept_by_copies(acdc)["protocol"]
    train = write_run(tmp_path / "train", role="target", config={"split": "train"})
    assert kept_by_copies(train) == kept_by_copies(tmp_path / "none") == {}


def test_all_five_targets_of_pocket_city_are_refused_and_nothing_else(render) -> None:
    for split in SPLITS:
        folder = render(split)
        if split not in TARGETS:
            refuse_test_data(folder)
            continue
        with pytest.raises(UserError, match=f"{split}: is a target .*train on another set"):
            refuse_test_data(folder)


def test_a_target_that_was_rendered_before_is_continued(
    render, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = render("acdc")
    run = json.loads((folder / "run.json").read_text())
    old = {"config": run["config"], "digest": run["digest"]}
    assert run == {**old, "role": "target"} and digest(old["config"]) == old["digest"]
    (folder / "run.json").write_text(json.dumps(old))
    rows = (folder / "metadata-000.jsonl").read_bytes()
    assert render("acdc") == folder
    assert json.loads((folder / "run.json").read_text()) == old
    assert (folder / "metadata-000.jsonl").read_bytes() == rows


def test_finetune_learns_neither_layouts_nor_looks_from_a_target(render) -> None:
    source, target = str(render("dev")), str(render("dark_zurich"))
    assert len(open_samples((source,), labelled=True)) == 1
    with pytest.raises(UserError, match="--data .*dark_zurich: is a target.*on another set$"):
        open_samples((source, target), labelled=True)
    with pytest.raises(UserError, match="--style-images .*dark_zurich: is a target"):
        open_style_images((source, target), "--prompt", "")


def test_a_prepared_folder_states_its_role_and_a_copy_of_a_target_stays_one(
    render, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = tmp_path / "mine.yaml"
    entry.write_text("title: mine\nrole: target\nlicence: none\nsplits: {all: {}, train: {}}\n")
    for dataset, root, split, is_target in (
        (entry, render("source"), "all", True),
        (entry, render("source"), "train", False),
        ("own", render("source"), "all", False),
        ("own", render("acdc"), "all", True),
    ):
        out = tmp_path / "out"
        call(monkeypatch, prepare, "--dataset", dataset, "--root", root, "--split", split,
             "--output", out, "--workers", "1")  # fmt: skip
        assert origin_of(out).is_test_data is is_target, (dataset, root, split)
        shutil.rmtree(out)


def test_a_loop_of_links_has_no_origin(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    assert not origin_of(tmp_path / "a").role
    with pytest.raises(UserError, match="a: "):
        open_samples((str(tmp_path / "a"),), labelled=False)
