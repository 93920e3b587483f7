"""Exports: each layout through its real reader, stopped and repeated runs, bad input."""

import hashlib
import importlib
import json
import os
import shutil
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline import export, files, labels, metadata
from pipeline.dataset import Sample, open_dataset
from pipeline.dataset_writer import DatasetWriter, write_card
from pipeline.errors import UserError
from pipeline.exports import job as exporters
from pipeline.images import read_image
from tests.pipeline.exporting import NUM_SAMPLES, assert_same
from tests.pipeline.exporting import data as data
from tests.pipeline.exporting import run as run
from tests.pipeline.exporting import samples as samples

FORMATS = tuple(export.WRITERS)


def content(folder: Path) -> dict[str, str]:
    """Return the hash of every file below a folder."""
    return {
        str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(folder.rglob("*"))
        if p.is_file()
    }


def test_mmseg_reads_its_layout(run: Callable[..., Path], samples: list[Sample]) -> None:
    pytest.importorskip("mmengine")
    importlib.import_module("segtrain.registry")  # before mmseg
    from mmengine.config import Config
    from mmseg.registry import DATASETS

    folder = run("mmseg", "--split", "val")
    config = Config.fromfile(folder / "val_dataset.py")
    dataset = DATASETS.build({**config.val_dataset, "_scope_": "mmseg"})
    assert len(dataset) == NUM_SAMPLES
    assert dataset.metainfo["classes"] == labels.CLASS_NAMES
    for item, sample in zip(dataset, samples, strict=True):
        assert Path(item["img_path"]).stem == sample.id
        assert_same(sample, item["img"][..., ::-1], item["gt_seg_map"])


def test_daformer_finds_rare_classes(run: Callable[..., Path], samples: list[Sample]) -> None:
    folder = run("dginstyle")
    pixels = dict.fromkeys(range(19), 0)
    for item in json.loads((folder / "sample_class_stats.json").read_text()):
        name = item.pop("file")
        label = labels.read_label(folder / name)
        assert {int(c): n for c, n in item.items()} == {
            c: n for c, n in enumerate(labels.count_classes(label).tolist()) if n
        }
        for c, n in item.items():
            pixels[int(c)] += n
    assert all(pixels.values())
    named = {p.name.replace(".png", "_labelTrainIds.png") for p in (folder / "images").iterdir()}
    for c, holders in json.loads((folder / "samples_with_class.json").read_text()).items():
        assert sum(n for _, n in holders) == pixels[int(c)]
        assert {name.split("/")[-1] for name, _ in holders} <= named
    by_file = json.loads((folder / "sample_class_stats_dict.json").read_text())
    assert {name.split("/")[-1] for name in by_file} == named
    for sample in samples:
        label = labels.read_label(folder / f"labels/{sample.id}_labelTrainIds.png")
        assert_same(sample, read_image(folder / f"images/{sample.id}.png"), label)


def test_webdataset_reads_its_shards(run: Callable[..., Path], samples: list[Sample]) -> None:
    wds = pytest.importorskip("webdataset")
    folder = run("webdataset", "--shard-samples", 2)
    urls = f"{folder}/train-{{000000..000002}}.tar"
    found = list(wds.WebDataset(urls, shardshuffle=False).decode("pil"))
    for item, sample in zip(found, samples, strict=True):
        assert item["__key__"] == sample.id
        assert item["json"]["prompt"] == sample.caption
        with Image.open(sample.label) as label:
            assert_same(sample, item["image.png"], label)


def test_tar_shards_keep_the_naming_rules_and_limits(
    run: Callable[..., Path], tmp_path: Path
) -> None:
    first, again = run("webdataset", "--shard-samples", 2), tmp_path / "again"
    run("webdataset", "--shard-samples", 2, output=again)
    names = []
    for path in sorted(first.glob("*.tar")):
        assert path.read_bytes() == (again / path.name).read_bytes()
        with tarfile.open(path) as archive:
            members = archive.getmembers()
        assert {(m.mtime, m.uid, m.gid, m.mode) for m in members} == {(0, 0, 0, 0o644)}
        names.append([m.name.partition(".") for m in members])
    assert [len({key for key, _, _ in shard}) for shard in names] == [2, 2, 1]
    assert {rest for shard in names for _, _, rest in shard} == {"image.png", "label.png", "json"}
    assert len(list(run("webdataset", "--shard-mb", 1, output=tmp_path / "mb").glob("*.tar"))) == 1


@pytest.mark.parametrize("kind", ["imagefolder", "parquet"])
def test_hugging_face_reads_both_images(
    kind: str, run: Callable[..., Path], samples: list[Sample], tmp_path: Path
) -> None:
    hub = pytest.importorskip("datasets")
    folder = run(kind, "--shard-samples", 2)
    dataset = hub.load_dataset(kind, data_dir=str(folder), cache_dir=str(tmp_path / "cache"))
    assert list(dataset) == ["train"]
    for item, sample in zip(dataset["train"], samples, strict=True):
        assert item["id"] == sample.id and item["condition"] == sample.row["condition"]
        assert_same(sample, item["image"], item["label"])
    assert isinstance(dataset["train"].features["label"], hub.Image)


def test_parquet_holds_the_bytes(run: Callable[..., Path], samples: list[Sample]) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    paths = sorted(run("parquet", "--shard-samples", 3).glob("data/*.parquet"))
    assert [p.name for p in paths] == [f"train-0000{i}-of-00002.parquet" for i in range(2)]
    rows = [row for path in paths for row in parquet.read_table(path).to_pylist()]
    for row, sample in zip(rows, samples, strict=True):
        assert row["image"]["bytes"] == sample.image.read_bytes()
        assert files.sha256(row["label"]["bytes"]) == row["label_sha256"]


def test_turned_images_are_refused(run: Callable[..., Path], data: Path, tmp_path: Path) -> None:
    shutil.copytree(data, tmp_path / "turned")
    image_path = open_dataset(tmp_path / "turned", labelled=True)[0].image
    exif = Image.Exif()
    exif[0x0112] = 3
    with Image.open(image_path) as image:
        image.save(image_path, exif=exif)
    with pytest.raises(UserError, match="EXIF orientation 3"):
        run("mmseg", data=tmp_path / "turned")


@pytest.mark.parametrize("kind", FORMATS)
def test_stopped_export_continues_to_the_same_files(
    kind: str, run: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = content(run(kind, "--shard-samples", 2, output=tmp_path / "whole"))
    replace, calls = os.replace, []

    def stopping(source: Path, target: Path) -> None:
        calls.append(target)
        if len(calls) == 4:
            raise KeyboardInterrupt
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", stopping)
        with pytest.raises(KeyboardInterrupt):
            run(kind, "--shard-samples", 2)
    part = content(tmp_path / "out")
    assert len(part) < len(whole) and not any(files.TEMPORARY_MARK in name for name in part)
    for _ in range(2):
        found = content(run(kind, "--shard-samples", 2))
        assert set(found) == set(whole)
        assert {n for n in found if found[n] != whole[n]} <= {"train_dataset.py"}  # names its place
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "out").rglob("*")}
    run(kind, "--shard-samples", 2)
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "out").rglob("*")} == before


@pytest.mark.parametrize("link", ["hard", "copy", "symlink"])
def test_links(link: str, run: Callable[..., Path], samples: list[Sample]) -> None:
    path = run("mmseg", "--link", link) / "img_dir/train/0000/00000000.png"
    assert path.read_bytes() == samples[0].image.read_bytes()
    assert path.is_symlink() == (link == "symlink")
    assert path.samefile(samples[0].image) == (link != "copy")


def test_two_splits_share_an_output(run: Callable[..., Path]) -> None:
    run("coco_panoptic", "--split", "val")
    folder = run("coco_panoptic", "--split", "train")
    assert len(list((folder / "annotations").iterdir())) == 2


@pytest.mark.parametrize("kind", export.WITHOUT_LABELS)
def test_collections_without_labels(
    kind: str, run: Callable[..., Path], tiny_dataset: Callable[..., Path], tmp_path: Path
) -> None:
    folder = run(kind, data=tiny_dataset(2, 8, 8, labelled=False))
    if kind != "webdataset":
        hub = pytest.importorskip("datasets")
        dataset = hub.load_dataset(kind, data_dir=str(folder), cache_dir=str(tmp_path / "cache"))
        assert dataset["train"][1]["image"].size == (8, 8)


def test_columns_are_the_same_whatever_a_set_knows() -> None:
    rows = [
        {"id": "0", "height": 1, "width": 2, "prompt": "x", "seed": 2**70, "crop": [1, 2, 3, 4]},
        {"id": "1", "height": 1, "width": 2, "condition": None},
    ]
    first, second = exporters.table([Sample(r["id"], Path(), None, r) for r in rows])
    assert {k: type(v) for k, v in first.items()} == {k: type(v) for k, v in second.items()}
    assert first["prompt"] == "x" and second["prompt"] == second["condition"] == ""
    assert json.loads(first["attributes"]) == {"seed": 2**70, "crop": [1, 2, 3, 4]}


@pytest.mark.parametrize("kind", ["imagefolder", "parquet"])
def test_two_splits_of_different_sets_have_equal_features(
    kind: str, run: Callable[..., Path], tmp_path: Path
) -> None:
    hub = pytest.importorskip("datasets")
    image, label = np.zeros((8, 12, 3), np.uint8), np.zeros((8, 12), np.uint8)
    writer = DatasetWriter(tmp_path / "bare", config={})
    writer.write(0, image, label, {"score": 1.5, "tags": ["a"]})
    folder = run(kind, "--split", "train")
    run(kind, "--split", "test", data=tmp_path / "bare")
    found = hub.load_dataset(str(folder), cache_dir=str(tmp_path / "cache"))
    assert found["train"].features == found["test"].features
    assert (len(found["train"]), len(found["test"])) == (NUM_SAMPLES, 1)
    assert np.array_equal(np.asarray(found["test"][0]["label"]), label)


def test_the_hub_opens_a_dataset_folder_before_and_after_merging(tmp_path: Path) -> None:
    hub, folder = pytest.importorskip("datasets"), tmp_path / "set"
    rng = np.random.default_rng(0)
    images_by_id = {
        f"0000000{i}": rng.integers(0, 256, (8, 12, 3), dtype=np.uint8) for i in range(4)
    }
    for index, (key, image) in enumerate(images_by_id.items()):
        writer = DatasetWriter(folder, config={}, process_index=(0, 63)[index % 2])
        label = np.full((8, 12), index, np.uint8)
        writer.write(int(key), image, label, {"prompt": f"street {index}"})
    writer.write_failure(7, "black image", {"prompt": "street"})
    write_card(folder, "A set", "text")
    for time in ("before", "after"):
        found = hub.load_dataset(str(folder), cache_dir=str(tmp_path / time))["train"]
        assert sorted(found["id"]) == sorted(images_by_id)  # neither labels nor what failed
        for row in found:
            assert np.array_equal(np.asarray(row["image"]), images_by_id[row["id"]])
            assert (np.asarray(row["label"]) == int(row["id"])).all()
            assert row["prompt"] == f"street {int(row['id'])}"
        scan = metadata.scan_rows(folder)
        metadata.write_merged(folder, [metadata.choose(r) for r in scan.rows.values()], scan.sizes)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--split", "Val 1"), "must be small letters"),
        (("--shard-samples", "0"), "must be 1 or more"),
        (("--output", ""), "name the folder to write"),
        (("--data", "no/such"), "no such dataset folder"),
    ],
)
def test_bad_settings_are_one_line(
    flags: tuple[str, ...], message: str, run: Callable[..., Path], tmp_path: Path
) -> None:
    with pytest.raises(UserError) as caught:
        run("mmseg", *flags)
    assert message in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_bad_data_and_outputs_are_refused(
    run: Callable[..., Path], tiny_dataset: Callable[..., Path], tmp_path: Path, data: Path
) -> None:
    with pytest.raises(UserError, match="lies in --data"):
        run("mmseg", output=data / "mmseg")
    with pytest.raises(UserError, match="has no label"):
        run("mmseg", data=tiny_dataset(1, 8, 8, labelled=False))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.txt").write_text("x")
    with pytest.raises(UserError, match="holds thesis.txt and has no"):
        run("mmseg", output=tmp_path / "mine")
    run("mmseg")
    with pytest.raises(UserError, match="another export .format: 'mmseg' -> 'fiftyone'"):
        run("fiftyone")
    with pytest.raises(UserError, match="another export .*rows: "):
        run("mmseg", data=tiny_dataset(2, 8, 8))
    other = tiny_dataset(2, 8, 8)
    (other / "labels/0000/00000001.png").write_bytes(
        (other / "labels/0000/00000000.png").read_bytes()
    )
    with pytest.raises(UserError, match="differs from its label_sha256"):
        run("webdataset", data=other, output=tmp_path / "tar")
    assert not list((tmp_path / "tar").glob("*.tar*"))
    (other / "images/0000/00000000.png").unlink()
    with pytest.raises(UserError, match="is missing"):
        run("mmseg", data=other, output=tmp_path / "new")


def test_missing_library_is_named(
    run: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(UserError, match=r"install -e '.\[export\]'"):
        run("parquet")
    assert not (tmp_path / "out").exists()
