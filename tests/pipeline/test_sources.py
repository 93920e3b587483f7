"""The sources of the presets, in their own formats: train ids worked out by hand."""

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline import labels, prepare
from pipeline.dataset import check_dataset, open_dataset
from pipeline.yaml_files import load_preset

Writer = Callable[[Path, np.ndarray], object]


def sixteen_bits(path: Path, ids: np.ndarray) -> None:
    """Write ids as SYNTHIA does: the class in the red channel, an instance in the green one."""
    import cv2

    red, green = ids.astype(np.uint16), np.arange(ids.size, dtype=np.uint16).reshape(ids.shape) * 99
    assert cv2.imwrite(str(path), np.stack([np.zeros_like(red), green, red], axis=-1))


def grey(path: Path, ids: np.ndarray) -> None:
    Image.fromarray(ids.astype(np.uint8)).save(path)


SOURCES: dict[str, tuple[str, str, str, Writer, list[int], list[int]]] = {
    # dataset: (split, image, label, writer, its ids, train ids)
    "synthia": (
        "all", "RGB/0000001.png", "GT/LABELS/0000001.png", sixteen_bits,
        [0, 1, 3, 4, 8, 10, 12, 15, 21, 22], [255, 10, 0, 1, 13, 11, 17, 6, 3, 255],
    ),
    "urbansyn": (
        "all", "rgb/rgb_0001.png", "ss/ss_0001.png", grey,
        [0, 13, 18, 19, 10], [0, 13, 18, 255, 10],
    ),
    "cityscapes": (
        "train", "leftImg8bit/train/ulm/a_leftImg8bit.png",
        "gtFine/train/ulm/a_gtFine_labelIds.png", grey,
        [7, 26, 33, 3, 9, 23], [0, 13, 18, 255, 255, 10],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SOURCES)
def test_sources_of_the_presets_are_read(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    split, image, label, write, ids, expected = SOURCES[name]
    for path in (image, label):
        (tmp_path / "raw" / path).parent.mkdir(parents=True)
    Image.new("RGB", (len(ids), 1)).save(tmp_path / "raw" / image)
    write(tmp_path / "raw" / label, np.array([ids]))
    monkeypatch.setattr(sys, "argv", [
        "prepare.py", "--dataset", name, "--root", str(tmp_path / "raw"), "--split", split,
        "--output", str(tmp_path / "out"), "--workers", "1",
    ])  # fmt: skip
    assert prepare.main() is None
    samples = open_dataset(tmp_path / "out", labelled=True)
    check_dataset(samples)
    assert [labels.read_label(s.label).tolist() for s in samples if s.label] == [[expected]]


def test_presets_read_what_the_documentation_prepares(root: Path) -> None:
    """A preset that names data names the folders of docs/real-data.md."""
    text = (root / "docs" / "real-data.md").read_text()
    for path in (root / "configs" / "finetune").glob("*_sd*.yaml"):
        for folder in load_preset(path)[-1].settings.get("data", []):
            assert f"--output {folder}\n" in text or f"--output {folder} " in text, path
