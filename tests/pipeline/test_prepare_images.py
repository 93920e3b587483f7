"""Preparing: images linked, copied or left where they are, and the names of files."""

import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline import labels, prepare
from pipeline.dataset import check_dataset, open_dataset
from pipeline.errors import UserError
from tests.pipeline.preparing import content, run, write_pairs


def test_copied_images_keep_their_bytes_and_format(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = tmp_path / "r/images/10k/val/a.jpg"
    label = tmp_path / "r/labels/sem_seg/masks/val/a.png"
    for path in (image, label):
        path.parent.mkdir(parents=True)
    Image.new("RGB", (8, 4), (9, 99, 199)).save(image)
    Image.new("L", (8, 4), 13).save(label)
    out = tmp_path / "out"
    monkeypatch.setattr(sys, "argv", [
        "x", "--dataset", "bdd100k", "--root", str(tmp_path / "r"), "--split", "val",
        "--output", str(out), "--workers", "1", "--copy-images", "True",
    ])  # fmt: skip
    assert prepare.main() is None
    (sample,) = open_dataset(out, labelled=True)
    assert sample.image == out / "images/0000/00000000.jpg"
    assert sample.image.read_bytes() == image.read_bytes()


def test_suffixes_in_upper_case_are_images_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = write_pairs(tmp_path / "r", np.array([[7, 26]]), suffix=".PNG")
    write_pairs(root, np.array([[8, 26]]), np.array([[11, 26]]))
    (root / "labels" / "2.png").rename(root / "labels" / "2.Png")
    (root / "images" / "1.png").unlink()
    (root / "labels" / "1.png").unlink()
    assert run(monkeypatch, root, tmp_path / "out") is None
    found = [
        labels.read_label(s.label).tolist() for s in open_dataset(tmp_path / "out", labelled=True)
    ]
    assert found == [[[0, 13]], [[2, 13]]]


def test_images_are_copied_and_said_where_there_are_no_hard_links(
    gta_tree: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    root, out, real = gta_tree(2), tmp_path / "out", os.link

    def refuse(source: object, target: object) -> None:
        if str(source).startswith(str(root)):
            raise OSError(18, "Invalid cross-device link")
        real(source, target)

    monkeypatch.setattr(os, "link", refuse)
    run(monkeypatch, root, out)
    assert "2 images are copied, the file system gives no hard links" in capsys.readouterr().err
    for number, sample in enumerate(open_dataset(out, labelled=True), 1):
        source = root / f"images/0000{number}.png"
        assert sample.image.read_bytes() == source.read_bytes()
        assert not os.path.samefile(sample.image, source)


def test_linked_images_need_a_declared_store(
    gta_tree: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, out = gta_tree(2), tmp_path / "out"
    with pytest.raises(UserError, match=f"set STREETFORGE_STORES={root}"):
        run(monkeypatch, root, out, "--symlink-images", "True")
    assert not out.exists()
    monkeypatch.setenv("STREETFORGE_STORES", str(root))
    with pytest.raises(UserError, match="choose one of them"):
        run(monkeypatch, root, out, "--symlink-images", "True", "--copy-images", "True")
    run(monkeypatch, root, out, "--symlink-images", "True")
    samples = open_dataset(out, labelled=True)
    assert all(sample.image.is_symlink() for sample in samples)
    check_dataset(samples)
    monkeypatch.delenv("STREETFORGE_STORES")
    with pytest.raises(UserError, match="leads out of the dataset folder"):
        open_dataset(out, labelled=True)


def test_names_that_are_no_text_are_left_out_and_the_rows_stay_readable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = write_pairs(tmp_path / "r", np.array([[7, 26]]), np.array([[8, 26]]))
    out = tmp_path / "out"
    for folder in ("images", "labels"):
        odd = os.fsencode(root / folder) + b"/\xff.png"
        try:
            shutil.copy(root / folder / "1.png", odd)
        except OSError:
            pytest.skip("the file system takes names of text alone")
    assert run(monkeypatch, root, out, "--policy", "skip") == 3
    assert len(open_dataset(out, labelled=True)) == 2
    rows = [json.loads(line) for line in (out / "metadata-000.jsonl").read_text().splitlines()]
    (failed,) = [row for row in rows if row["status"] == "failed"]
    assert failed["original_image"] == "images/\\udcff.png"  # spelt out, not a half character
    before = content(out)
    assert run(monkeypatch, root, out, "--policy", "skip") == 3
    assert content(out) == before
