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
from pipeline.exports import panoptic
from pipeline.images import read_image

FORMATS = tuple(export.WRITERS)
NUM_SAMPLES = 5


@pytest.fixture(scope="module")
def data(tiny_dataset: Callable[..., Path]) -> Path:
    """Five labelled samples."""
    return tiny_dataset(NUM_SAMPLES, 24, 40, conditions=("fog", "rain"))


@pytest.fixture
def samples(data: Path) -> list[Sample]:
    """The samples of `data`."""
    return open_dataset(data, labelled=True)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, data: Path, tmp_path: Path) -> Callable[..., Path]:
    """A function that exports `data` in this process and returns the output folder."""

    def call(kind: str, *flags: object, output: Path = tmp_path / "out", data: Path = data) -> Path:
        if kind == "parquet":
            pytest.importorskip("datasets")
        argv = ["--data", data, "--output", output, "--format", kind, "--workers", 1, *flags]
        monkeypatch.setattr(sys, "argv", ["export.py", *map(str, argv)])
        assert export.main() is None
        return output

    return call


def content(folder: Path) -> dict[str, str]:
    """Return the hash of every file below a folder."""
    return {
        str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(folder.rglob("*"))
        if p.is_file()
    }


def assert_same(sample: Sample, image: object, label: object) -> None:
    """Check pixels read elsewhere against the sample."""
    assert np.array_equal(np.asarray(image), read_image(sample.image))
    assert np.array_equal(np.asarray(label), labels.read_label(sample.label))


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
def test_hugging_face_reads_both_pictures(
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


def test_coco_panoptic_follows_the_format(run: Callable[..., Path], samples: list[Sample]) -> None:
    folder = run("coco_panoptic", "--split", "val")
    record = json.loads((folder / "annotations/panoptic_val.json").read_text())
    things = {c["name"] for c in record["categories"] if c["isthing"]}
    assert things == {"person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle"}
    images = {image["id"]: image for image in record["images"]}
    assert len(images) == NUM_SAMPLES
    for note, sample in zip(record["annotations"], samples, strict=True):
        assert (folder / "val" / images[note["image_id"]]["file_name"]).is_file()
        rgb = read_image(folder / "panoptic_val" / note["file_name"]).astype(np.int64)
        ids = rgb @ np.array([1, 256, 65536])
        label = labels.read_label(sample.label)
        segments = {s["id"]: s for s in note["segments_info"]}
        assert set(np.unique(ids)) - {0} == set(segments)
        assert np.array_equal(ids == 0, label == labels.VOID)
        for number, segment in segments.items():
            mask = ids == number
            rows, columns = np.nonzero(mask)
            size = [np.ptp(columns) + 1, np.ptp(rows) + 1]
            assert segment["bbox"] == [columns.min(), rows.min(), *size]
            assert segment["area"] == mask.sum() and segment["iscrowd"] == 0
            assert set(np.unique(label[mask])) == {segment["category_id"]}
        stuff = [s["category_id"] for s in segments.values() if s["category_id"] < 11]
        assert len(stuff) == len(set(stuff))


def test_objects_are_connected_regions() -> None:
    label = np.zeros((6, 9), dtype=np.uint8)
    label[1:3, 1:3] = label[3, 3] = 13  # touch at a corner
    label[5, 8] = 13
    ids, infos = panoptic.find_segments(label)
    assert [(s["category_id"], s["area"]) for s in infos] == [(0, 48), (13, 5), (13, 1)]
    assert ids[1, 1] == ids[3, 3] == 2 and ids[5, 8] == 3 and infos[2]["bbox"] == [8, 5, 1, 1]


def panoptic_quality(folder: Path, split: str) -> dict[int, tuple[float, int]]:
    """Read an export as COCO's evaluation does, against itself: (sum of IoU, matches) by category.

    After Kirillov et al., Panoptic Segmentation, CVPR 2019: segments match at an IoU above 0.5.
    Like COCO's own reader it demands that PNG and JSON name the same segments.
    """
    record = json.loads((folder / f"annotations/panoptic_{split}.json").read_text())
    names = {image["id"]: image for image in record["images"]}
    known, found = {c["id"] for c in record["categories"]}, {}
    for note in record["annotations"]:
        with Image.open(folder / f"panoptic_{split}" / note["file_name"]) as image:
            rgb = np.array(image, dtype=np.uint32)
        assert rgb.shape == (names[note["image_id"]]["height"], names[note["image_id"]]["width"], 3)
        ids = rgb[..., 0] + 256 * rgb[..., 1] + 256 * 256 * rgb[..., 2]
        areas = dict(zip(*np.unique(ids, return_counts=True), strict=True))
        areas.pop(0, None)
        segments = {info["id"]: info for info in note["segments_info"]}
        assert len(segments) == len(note["segments_info"]) and set(segments) == set(areas)
        for number, info in segments.items():
            assert info["category_id"] in known and info["area"] == areas[number]
            iou = areas[number] / (info["area"] + areas[number] - areas[number])
            total, matches = found.get(info["category_id"], (0.0, 0))
            found[info["category_id"]] = total + iou, matches + (iou > 0.5)
    return found


def test_panoptic_export_is_read_by_its_evaluation(
    run: Callable[..., Path], samples: list[Sample]
) -> None:
    found = panoptic_quality(run("coco_panoptic", "--split", "val"), "val")
    classes = {c for s in samples for c in np.unique(labels.read_label(s.label)).tolist()} - {255}
    assert set(found) == classes
    assert all(total == matches for total, matches in found.values())


def read_fiftyone(folder: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Read pictures and masks as FiftyOne's ImageSegmentationDirectory importer does.

    It pairs files of data/ and labels/ by their path without suffix, and reads masks unchanged by
    OpenCV; one with three channels is a mask of colours, and mask_targets would be none of its.
    """
    import cv2

    def by_name(top: str) -> dict[str, Path]:
        found = (p for p in (folder / top).rglob("*") if p.is_file())
        return {str(p.relative_to(folder / top).with_suffix("")): p for p in found}

    pictures, masks = by_name("data"), by_name("labels")
    assert set(pictures) == set(masks)
    return {
        name: (cv2.imread(str(path))[..., ::-1], cv2.imread(str(masks[name]), cv2.IMREAD_UNCHANGED))
        for name, path in pictures.items()
    }


@pytest.mark.parametrize("palette", [False, True])
def test_fiftyone_export_is_read_by_its_importer(
    palette: bool, run: Callable[..., Path], samples: list[Sample], data: Path, tmp_path: Path
) -> None:
    expected = {f"0000/{s.id}": labels.read_label(s.label) for s in samples}
    if palette:  # as the simulators' tools write them
        shutil.copytree(data, data := tmp_path / "palette")
        for sample in open_dataset(data, labelled=True):
            image = Image.fromarray(labels.read_label(sample.label), mode="P")
            image.putpalette(np.pad(labels.PALETTE, ((0, 237), (0, 0))).tobytes())
            image.save(sample.label)
    folder = run("fiftyone", data=data)
    found = read_fiftyone(folder)
    targets = {int(k): v for k, v in json.loads((folder / "mask_targets.json").read_text()).items()}
    assert set(found) == set(expected) and targets[13] == "car" and targets[255] == "void"
    for sample in samples:
        picture, mask = found[f"0000/{sample.id}"]
        assert np.array_equal(picture, read_image(sample.image))
        assert mask.ndim == 2 and set(np.unique(mask)) <= set(targets)
        assert np.array_equal(mask, expected[f"0000/{sample.id}"])


def test_turned_images_are_refused(run: Callable[..., Path], data: Path, tmp_path: Path) -> None:
    shutil.copytree(data, tmp_path / "turned")
    picture = open_dataset(tmp_path / "turned", labelled=True)[0].image
    exif = Image.Exif()
    exif[0x0112] = 3
    with Image.open(picture) as image:
        image.save(picture, exif=exif)
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
    drawn = {f"0000000{i}": rng.integers(0, 256, (8, 12, 3), dtype=np.uint8) for i in range(4)}
    for index, (key, image) in enumerate(drawn.items()):
        writer = DatasetWriter(folder, config={}, process_index=index % 2)
        label = np.full((8, 12), index, np.uint8)
        writer.write(int(key), image, label, {"prompt": f"street {index}"})
    writer.write_failure(7, "black image", {"prompt": "street"})
    write_card(folder, "A set", "text")
    for time in ("before", "after"):
        found = hub.load_dataset(str(folder), cache_dir=str(tmp_path / time))["train"]
        assert sorted(found["id"]) == sorted(drawn)  # neither labels nor what failed
        for row in found:
            assert np.array_equal(np.asarray(row["image"]), drawn[row["id"]])
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
    with pytest.raises(UserError, match=r"streetforge\[export\]"):
        run("parquet")
    assert not (tmp_path / "out").exists()
