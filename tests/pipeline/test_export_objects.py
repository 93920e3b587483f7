"""Exports that list objects: COCO panoptic and FiftyOne."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline import labels
from pipeline.dataset import Sample, open_dataset
from pipeline.exports import panoptic
from pipeline.images import read_image
from tests.pipeline.exporting import NUM_SAMPLES
from tests.pipeline.exporting import data as data
from tests.pipeline.exporting import run as run
from tests.pipeline.exporting import samples as samples


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
    """Read images and masks as FiftyOne's ImageSegmentationDirectory importer does.

    It pairs files of data/ and labels/ by their path without suffix, and reads masks unchanged by
    OpenCV; one with three channels is a mask of colours, and mask_targets would be none of its.
    """
    import cv2

    def by_name(top: str) -> dict[str, Path]:
        found = (p for p in (folder / top).rglob("*") if p.is_file())
        return {str(p.relative_to(folder / top).with_suffix("")): p for p in found}

    images_by_name, masks = by_name("data"), by_name("labels")
    assert set(images_by_name) == set(masks)
    return {
        name: (cv2.imread(str(path))[..., ::-1], cv2.imread(str(masks[name]), cv2.IMREAD_UNCHANGED))
        for name, path in images_by_name.items()
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
        found_image, mask = found[f"0000/{sample.id}"]
        assert np.array_equal(found_image, read_image(sample.image))
        assert mask.ndim == 2 and set(np.unique(mask)) <= set(targets)
        assert np.array_equal(mask, expected[f"0000/{sample.id}"])
