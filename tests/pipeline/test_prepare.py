"""Preparing: conversion, counts, policies, resume, the field's files, the source untouched."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline import dataset, files, labels, prepare
from pipeline.dataset import Sample, check_dataset, open_dataset, read_pair
from pipeline.errors import UserError
from pipeline.rare_classes import RareClassSampling, index_classes
from tests.pipeline.preparing import content, run, write_pairs

ROOT = Path(__file__).resolve().parent.parent.parent


def test_prepared_folder_is_read_like_any_other(
    gta_tree: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = gta_tree(5)
    before = content(root)
    assert run(monkeypatch, root, tmp_path / "out") is None
    assert content(root) == before
    samples = open_dataset(tmp_path / "out", labelled=True)
    check_dataset(samples)
    for number, sample in enumerate(samples):
        assert sample.image == tmp_path / f"out/images/0000/0000000{number}.png"
        assert os.path.samefile(sample.image, root / f"images/0000{number + 1}.png")
    table = np.full(256, 255)
    table[[7, 8, 11, 12, 13, 17, *range(19, 29), 31, 32, 33]] = np.arange(19)
    totals = np.zeros(19, int)
    for sample in samples:
        image, label = read_pair(sample)
        ids = np.array(Image.open(root / sample.row["original_label"]))
        assert np.array_equal(label, table[ids])
        assert np.array_equal(image, np.array(Image.open(root / sample.row["original_image"])))
        assert sample.row["image_sha256"] == files.sha256(sample.image.read_bytes())
        assert sample.row["label_sha256"] == files.sha256(sample.label.read_bytes())
        assert (sample.row["height"], sample.row["width"]) == label.shape
        assert sample.row["class_pixels"] == [int((label == c).sum()) for c in range(19)]
        totals += sample.row["class_pixels"]
    stats = json.loads((tmp_path / "out" / "class_stats.json").read_text())
    assert stats["pixels"] == totals.tolist() and stats["classes"] == list(labels.CLASS_NAMES)
    assert stats["samples"]["00000002"] == samples[2].row["class_pixels"]
    assert "Playing for Data" in (tmp_path / "out" / "README.md").read_text()


def test_rare_class_sampling_reads_the_counts_and_finds_the_same(
    gta_tree: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(monkeypatch, gta_tree(6), tmp_path / "out")
    samples = open_dataset(tmp_path / "out", labelled=True)
    bare = [
        Sample(s.id, s.image, s.label, {k: v for k, v in s.row.items() if k != "class_pixels"})
        for s in samples
    ]
    sampling = RareClassSampling(min_pixels=4)
    counted = index_classes(bare, sampling)
    monkeypatch.setattr(labels, "read_label", lambda *_: pytest.fail("counts were not used"))
    stored = index_classes(samples, sampling)
    assert np.array_equal(stored.probabilities, counted.probabilities)
    for a, b in zip(stored.files_with_class, counted.files_with_class, strict=True):
        assert np.array_equal(a, b)


def test_second_run_changes_nothing_and_says_so(
    gta_tree: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    root, flags = gta_tree(4), ("--field-files", "True", "--copy-images", "True")
    run(monkeypatch, root, tmp_path / "out", *flags)
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "out").rglob("*.*")}
    capsys.readouterr()
    assert run(monkeypatch, root, tmp_path / "out", *flags) is None
    assert "nothing to do, 4 of 4 pairs are prepared" in capsys.readouterr().out
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "out").rglob("*.*")} == before


def test_policy_stop_lists_all_and_writes_nothing(
    gta_tree: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    root = gta_tree(5)
    (root / "images" / "00002.png").write_bytes(b"")
    (root / "labels" / "00004.png").unlink()
    with pytest.raises(UserError, match="2 faults in 5 pairs, listed above; .*--policy skip"):
        run(monkeypatch, root, tmp_path / "out")
    lines = capsys.readouterr().out.splitlines()
    assert ["00002.png" in lines[0], "00004.png" in lines[1], len(lines)] == [True, True, 2]
    assert not (tmp_path / "out").exists()


def test_policy_stop_also_lists_what_only_decoding_finds_and_continues_after_the_repair(
    gta_tree: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    root = gta_tree(5)
    good = content(root)
    for number in (2, 4):
        Image.new("L", (12, 8), 99).save(root / f"labels/0000{number}.png")
    with pytest.raises(UserError, match="2 faults in 5 pairs"):
        run(monkeypatch, root, tmp_path / "out")
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 and all("label ids [99] are outside its label space" in x for x in lines)
    for name, data in good.items():
        (root / name).write_bytes(data)
    assert run(monkeypatch, root, tmp_path / "out") is None
    assert len(open_dataset(tmp_path / "out", labelled=True)) == 5


def test_policy_skip_leaves_out_the_bad_and_takes_them_when_repaired(
    gta_tree: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    root, out = gta_tree(5), tmp_path / "out"
    good = content(root)
    (root / "images" / "00002.png").write_bytes(b"")
    Image.new("L", (12, 8), 99).save(root / "labels" / "00003.png")
    (root / "labels" / "00004.png").unlink()
    assert run(monkeypatch, root, out, "--policy", "skip") == 3
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4 and "2 of 5 pairs are prepared" in lines[-1]
    assert [s.id for s in open_dataset(out, labelled=True)] == ["00000000", "00000004"]
    before = content(out)
    assert run(monkeypatch, root, out, "--policy", "skip") == 3
    assert content(out) == before
    for name, data in good.items():
        files.write_bytes(root / name, data)
    assert run(monkeypatch, root, out, "--policy", "skip") is None
    assert len(open_dataset(out, labelled=True)) == 5


def test_other_selection_or_changed_tree_is_refused(
    gta_tree: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = gta_tree(3)
    run(monkeypatch, root, tmp_path / "out")
    with pytest.raises(UserError, match="another run .label_space: 'gta' -> 'cityscapes_ids'"):
        run(monkeypatch, root, tmp_path / "out", "--label-space", "cityscapes_ids")
    gta_tree(4)
    with pytest.raises(UserError, match="holds another run .image_list: '3, "):
        run(monkeypatch, root, tmp_path / "out")
    with pytest.raises(UserError, match="lies in --root .*--write-into-source True"):
        run(monkeypatch, root, root / "prepared")


def test_field_files_are_what_daformer_and_hrda_read(
    gta_tree: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, out = gta_tree(4), tmp_path / "out"
    before = content(root)
    run(monkeypatch, root, out, "--field-files", "True")
    assert content(root) == before
    field = out / "field_files"
    stats = json.loads((field / "sample_class_stats.json").read_text())
    assert [s["file"] for s in stats] == [f"labels/0000{i}_labelTrainIds.png" for i in range(1, 5)]
    for entry in stats:
        label = np.array(Image.open(field / entry.pop("file")))
        assert entry == {str(c): int((label == c).sum()) for c in range(19) if (label == c).any()}
    by_file = json.loads((field / "sample_class_stats_dict.json").read_text())
    assert list(by_file.values()) == stats
    holders = json.loads((field / "samples_with_class.json").read_text())
    assert {c: dict(v) for c, v in holders.items()} == {
        c: {f: s[c] for f, s in by_file.items() if c in s} for c in {c for s in stats for c in s}
    }

    run(monkeypatch, root, out, "--write-into-source", "True")
    after = content(root)
    assert {k: after[k] for k in before} == before
    assert set(after) - set(before) == {
        "sample_class_stats.json",
        "sample_class_stats_dict.json",
        "samples_with_class.json",
        *(f"labels/0000{i}_labelTrainIds.png" for i in range(1, 5)),
    }
    assert after["samples_with_class.json"] == content(field)["samples_with_class.json"]


def test_own_folder_can_be_indexed(
    tiny_dataset: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tiny_dataset(3, 16, 16, conditions=("fog",))
    monkeypatch.setattr(sys, "argv", [
        "x", "--dataset", "own", "--root", str(folder), "--output", str(tmp_path / "out"),
        "--workers", "1",
    ])  # fmt: skip
    assert prepare.main() is None
    samples = open_dataset(tmp_path / "out", labelled=True)
    assert [s.row["condition"] for s in samples] == ["fog"] * 3 and samples[0].caption
    assert sum(samples[0].row["class_pixels"]) > 0


def test_field_files_of_an_own_folder_keep_its_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, rows = tmp_path / "r", []
    for number, (drive, original) in enumerate((("a", "a.png"), ("b", None))):
        write_pairs(root / drive, np.full((2, 2), number))
        names = {f"{kind}_file_name": f"{drive}/{kind}s/1.png" for kind in ("image", "label")}
        rows.append({"id": drive, **names, "original_image": original})
    (root / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.setattr(sys, "argv", [
        "x", "--dataset", "own", "--root", str(root), "--output", str(tmp_path / "out"),
        "--workers", "1", "--field-files", "True",
    ])  # fmt: skip
    assert prepare.main() is None
    for number, drive in enumerate(("a", "b")):
        path = tmp_path / "out" / "field_files" / drive / "labels" / "1_labelTrainIds.png"
        assert (labels.read_label(path) == number).all()
    samples = open_dataset(tmp_path / "out", labelled=True)
    assert [s.row["original_image"] for s in samples] == ["a.png", "b/images/1.png"]


def start(root: Path, output: Path) -> subprocess.Popen:
    command = [sys.executable, str(ROOT / "pipeline" / "prepare.py"), "--dataset", "gta"]
    command += ["--root", str(root), "--output", str(output), "--field-files", "True"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )


def test_killed_and_resumed_equals_uninterrupted(
    gta_tree: Callable[..., Path], tmp_path: Path
) -> None:
    root = gta_tree(150)
    assert start(root, tmp_path / "whole").wait(120) == 0
    killed, out = 0, tmp_path / "killed"
    for rows in (1, 40, 100):
        process = start(root, out)
        metadata = out / "metadata-000.jsonl"
        while process.poll() is None:
            if metadata.is_file() and metadata.read_bytes().count(b"\n") >= rows:
                process.send_signal(signal.SIGKILL)
                killed += 1
                break
            time.sleep(0.005)
        process.wait(120)
    assert killed
    time.sleep(1)  # the killed run's workers notice and leave
    assert start(root, out).wait(120) == 0
    whole, resumed = content(tmp_path / "whole"), content(out)
    proofs = [json.loads(found.pop("checked.json"))["samples"] for found in (whole, resumed)]
    assert len(proofs[0]) == 150 and 0 < len(proofs[1]) <= 150  # of those the last start made
    assert resumed == whole


def test_real_cityscapes_pair(
    real_samples: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stem, root = "frankfurt_000000_000294", tmp_path / "cityscapes"
    for kind, suffix in (("leftImg8bit", ["leftImg8bit"]), ("gtFine", ["labelIds", "instanceIds"])):
        for end in suffix:
            name = f"{stem}_{end if kind == 'leftImg8bit' else f'gtFine_{end}'}.png"
            target = root / kind / "val" / "frankfurt" / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(real_samples / "cityscapes" / name, target)
    monkeypatch.setattr(sys, "argv", [
        "x", "--dataset", "cityscapes", "--root", str(root), "--split", "val", "--workers", "1",
        "--output", str(tmp_path / "out"), "--field-files", "True",
    ])  # fmt: skip
    assert prepare.main() is None
    (sample,) = open_dataset(tmp_path / "out", labelled=True)
    official = np.array(
        Image.open(real_samples / "cityscapes" / f"{stem}_gtFine_labelTrainIds.png")
    )
    # the two label maps of this sample were scaled down apart from each other
    assert (read_pair(sample)[1] != official).mean() < 0.003
    field = tmp_path / f"out/field_files/gtFine/val/frankfurt/{stem}_gtFine_labelTrainIds.png"
    assert np.array_equal(np.array(Image.open(field)), read_pair(sample)[1])


def test_real_gta_and_bdd_files(
    real_samples: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "bdd"
    for kind, source in (("images/10k/val", "images"), ("labels/sem_seg/masks/val", "labels")):
        shutil.copytree(real_samples / "bdd100k" / source, root / kind)
    monkeypatch.setattr(sys, "argv", [
        "x", "--dataset", "bdd100k", "--root", str(root), "--split", "val", "--workers", "1",
        "--output", str(tmp_path / "out_bdd"),
    ])  # fmt: skip
    assert prepare.main() is None
    assert set(np.unique(read_pair(open_dataset(tmp_path / "out_bdd", labelled=True)[0])[1])) == {
        2,
        8,
    }

    root = tmp_path / "gta"
    (root / "images").mkdir(parents=True)
    (root / "labels").mkdir()
    for path in (real_samples / "gta" / "labels").glob("*.png"):
        Image.new("RGB", (1914, 1052)).save(root / "images" / f"{path.name[:5]}.png")
        shutil.copy(path, root / "labels" / f"{path.name[:5]}.png")
    # these files went through the field's converter: palette PNGs of train ids
    assert run(monkeypatch, root, tmp_path / "out", "--label-space", "train_ids") is None
    for sample in open_dataset(tmp_path / "out", labelled=True):
        ids = np.array(Image.open(root / sample.row["original_label"]))
        assert np.array_equal(labels.read_label(sample.label), ids)


def test_a_damaged_record_is_left_to_the_writer(
    gta_tree: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, out = gta_tree(2), tmp_path / "out"
    run(monkeypatch, root, out)
    before = json.loads((out / "run.json").read_text())
    (out / "run.json").write_text('{"config": ')
    assert run(monkeypatch, root, out) is None
    assert json.loads((out / "run.json").read_text()) == before


@pytest.mark.parametrize("change", [{"class_pixels": [1]}, {"original_label": "../../x.png"},
                                    {"height": "8"}, {"class_pixels": None}])  # fmt: skip
def test_rows_of_others_in_the_output_are_refused(
    gta_tree: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: dict[str, object],
) -> None:
    root, out = gta_tree(2), tmp_path / "out"
    run(monkeypatch, root, out)
    rows = [json.loads(line) for line in (out / "metadata-000.jsonl").read_text().splitlines()]
    rows[0] |= change
    rows[0].pop("row_sha256")
    (out / "metadata-000.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(UserError, match="row 00000000|broken row"):
        run(monkeypatch, root, out, "--field-files", "True")


def test_prepared_samples_need_no_second_check(
    gta_tree: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(monkeypatch, gta_tree(3), tmp_path / "out")
    samples = open_dataset(tmp_path / "out", labelled=True)
    monkeypatch.setattr(dataset, "check_sample", lambda sample: pytest.fail("was read again"))
    check_dataset(samples)
