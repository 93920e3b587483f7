"""Preparing: label spaces, palettes, void and the own classes of a set."""

import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline import label_spaces, labels, prepare
from pipeline.dataset import open_dataset
from pipeline.errors import UserError
from segtrain.protocol import Protocol, protocol_of
from tests.pipeline.preparing import run, write_pairs


def own_space(folder: Path, text: str) -> Path:
    path = folder / "space.yaml"
    path.write_text(text)
    return path


def test_a_corrected_label_space_converts_all_labels_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    good, odd = np.array([[1, 2]]), np.array([[1, 77]])
    root, out = write_pairs(tmp_path / "r", good, odd), tmp_path / "out"
    space = own_space(tmp_path, "train_ids: {1: 9, 2: 2}\nvoid: []\n")
    flags = ("--label-space", str(space))
    with pytest.raises(UserError, match="1 faults in 2 pairs"):
        run(monkeypatch, root, out, *flags)
    assert labels.read_label(out / "labels/0000/00000000.png").tolist() == [[9, 2]]
    own_space(tmp_path, "train_ids: {1: 8, 2: 2}\nvoid: [77]\n")
    assert run(monkeypatch, root, out, *flags) is None
    assert "all labels are converted again" in capsys.readouterr().out
    found = [labels.read_label(s.label).tolist() for s in open_dataset(out, labelled=True)]
    assert found == [[[8, 2]], [[8, 255]]]
    record = json.loads((out / "run.json").read_text())["config"]["label_space_content"]
    assert record == {"train_ids": {"1": 8, "2": 2}, "void": [77]}
    assert run(monkeypatch, root, out, *flags) is None
    assert "nothing to do" in capsys.readouterr().out


def test_labels_that_become_void_are_said_or_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    train_ids = np.array([[0, 1, 2, 8, 10, 10, 10, 11]])  # of GTA's ids, 8 and 11 are classes
    root = write_pairs(tmp_path / "r", train_ids)
    assert run(monkeypatch, root, tmp_path / "out") is None
    message = capsys.readouterr().err
    assert "only 25.0% of the pixels are of a class" in message and "--label-space" in message
    root = write_pairs(tmp_path / "trees", np.array([[8, 8, 8, 11, 2]]))  # 80 % are of a class
    assert run(monkeypatch, root, tmp_path / "out2") is None
    message = capsys.readouterr().err
    assert (
        "no pixel is of traffic light, traffic sign, vegetation" in message
        and "train ids" in message
    )
    root = write_pairs(tmp_path / "real", np.array([[8, 8, 8, 11, 23]]))  # sidewalk ... and sky
    assert run(monkeypatch, root, tmp_path / "out3") is None
    assert "no pixel" not in capsys.readouterr().err
    root = write_pairs(tmp_path / "void", np.zeros((2, 3)))
    with pytest.raises(UserError, match="none of the pixels are of a class.*--label-space"):
        run(monkeypatch, root, tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_a_set_whose_source_has_changed_is_not_continued(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root, out = write_pairs(tmp_path / "r", np.array([[7, 8]]), np.array([[7, 8]])), tmp_path / "o"
    assert run(monkeypatch, root, out) is None
    for path in root.glob("*/*.png"):
        os.utime(path)  # touched, not changed
    assert run(monkeypatch, root, out) is None and "nothing to do" in capsys.readouterr().out
    Image.new("RGB", (2, 1), "red").save(root / "images" / "2.png")
    Image.fromarray(np.array([[8, 8]], np.uint8)).save(root / "labels" / "1.png")
    with pytest.raises(UserError, match="labels/1.png: has changed .* 1 more .* another folder"):
        run(monkeypatch, root, out)
    assert run(monkeypatch, root, tmp_path / "o2") is None


def test_a_changed_label_space_removes_nothing_of_a_process_at_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, out = write_pairs(tmp_path / "r", np.array([[1, 2]])), tmp_path / "o"
    flags = ("--label-space", str(own_space(tmp_path, "train_ids: {1: 9, 2: 2}\nvoid: []\n")))
    assert run(monkeypatch, root, out, *flags) is None
    own_space(tmp_path, "train_ids: {1: 8, 2: 2}\nvoid: []\n")

    def refuse(folder: Path) -> None:
        raise UserError(f"{folder}: another process is writing to it")

    monkeypatch.setattr(prepare, "lock_folder", refuse)
    with pytest.raises(UserError, match="another process"):
        run(monkeypatch, root, out, *flags)
    assert len(open_dataset(out, labelled=True)) == 1


def test_palettes_with_other_numbers_are_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train_ids = np.array([[0, 1, 2, 8, 10, 13, 0, 0]])
    root = write_pairs(tmp_path / "r", train_ids)
    colours = labels.PALETTE[[0, 1, 2, 8, 10, 13]]
    renumbered = Image.fromarray(np.array([[0, 1, 2, 3, 4, 5, 0, 0]], np.uint8), "P")
    renumbered.putpalette(colours.tobytes())
    renumbered.save(root / "labels" / "1.png")
    with pytest.raises(UserError, match="labels/1.png: the palette gives.*cityscapes_colors"):
        run(monkeypatch, root, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    flags = ("--label-space", "cityscapes_colors")
    assert run(monkeypatch, root, tmp_path / "out", *flags) is None
    (sample,) = open_dataset(tmp_path / "out", labelled=True)
    assert labels.read_label(sample.label).tolist() == train_ids.tolist()


def test_own_classes_of_a_set_travel_with_the_prepared_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "r"
    ids = np.arange(12, dtype=np.uint8)[None]
    for folder, image in (("val", Image.new("RGB", (12, 1))), ("valannot", Image.fromarray(ids))):
        (root / "CamVid" / folder).mkdir(parents=True)
        image.save(root / "CamVid" / folder / "0016E5_07959.png")
    monkeypatch.setattr(sys, "argv", [
        "x", "--dataset", "camvid", "--root", str(root), "--split", "val",
        "--output", str(tmp_path / "out"), "--workers", "1",
    ])  # fmt: skip
    assert prepare.main() is None
    (sample,) = open_dataset(tmp_path / "out", labelled=True)
    assert sample.row["condition"] == "day"
    merged = label_spaces.classes_of_folder(tmp_path / "out")
    assert merged == label_spaces.merged_classes("camvid") and merged is not None
    assert merged.merge(labels.read_label(sample.label)).tolist() == [[*range(11), 255]]
    assert label_spaces.classes_of_folder(tmp_path) is None
    monkeypatch.setattr(sys, "argv", [
        "x", "--dataset", "own", "--root", str(tmp_path / "out"), "--condition", "day",
        "--output", str(tmp_path / "copy"), "--workers", "1",
    ])  # fmt: skip
    assert prepare.main() is None
    assert protocol_of(tmp_path / "copy") == protocol_of(tmp_path / "out")
    assert protocol_of(tmp_path / "copy") == Protocol((360, 480), (720, 960), merged)
