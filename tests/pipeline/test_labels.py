"""Ids, palette, void, reading, and the control tensor."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline import files, labels
from pipeline.errors import UserError


def all_ids() -> np.ndarray:
    return np.append(np.arange(19), 255).astype(np.uint8).reshape(4, 5)


def test_round_trip_keeps_every_id(tmp_path: Path) -> None:
    files.write_bytes(tmp_path / "a.png", files.encode_png(all_ids()))
    assert np.array_equal(labels.read_label(tmp_path / "a.png"), all_ids())


def test_palette_png_is_read_as_ids(tmp_path: Path) -> None:
    image = Image.fromarray(all_ids(), mode="P")
    palette = np.zeros((256, 3), dtype=np.uint8)
    palette[:19] = labels.PALETTE
    image.putpalette(palette.tobytes())
    image.save(tmp_path / "p.png")
    assert np.array_equal(labels.read_label(tmp_path / "p.png"), all_ids())


def test_other_label_space_is_converted_and_unknown_ids_become_void(tmp_path: Path) -> None:
    files.write_bytes(tmp_path / "a.png", files.encode_png(np.array([[7, 26, 3]], dtype=np.uint8)))
    table = labels.id_table({7: 0, 26: 13})
    assert labels.read_label(tmp_path / "a.png", table).tolist() == [[0, 13, 255]]


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.full((4, 4), 19, np.uint8), r"label ids \[19\] are outside 0..18 and 255"),
        (np.zeros((4, 4, 3), np.uint8), "mode RGB.*single-channel"),
        (np.zeros((4, 4), np.uint16), "mode I;16.*single-channel"),
    ],
)
def test_wrong_labels_are_refused_by_name(tmp_path: Path, array: np.ndarray, message: str) -> None:
    path = tmp_path / "wrong.png"
    Image.fromarray(array).save(path)
    with pytest.raises(UserError, match=message) as caught:
        labels.read_label(path)
    assert str(path) in str(caught.value)
    assert str(caught.value).endswith("by pipeline/prepare.py --label-space NAME")


def test_truncated_missing_and_foreign_files_are_refused(tmp_path: Path) -> None:
    data = files.encode_png(np.tile(all_ids(), (40, 40)))
    (tmp_path / "cut.png").write_bytes(data[: len(data) // 2])
    (tmp_path / "text.png").write_text("not a picture")
    for name in ("cut.png", "text.png"):
        with pytest.raises(UserError, match="not a readable PNG"):
            labels.read_label(tmp_path / name)
    with pytest.raises(UserError, match="no such label"):
        labels.read_label(tmp_path / "none.png")


def test_huge_label_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(labels, "MAX_PIXELS", 10)
    files.write_bytes(tmp_path / "a.png", files.encode_png(all_ids()))
    with pytest.raises(UserError, match="more than 10 pixels"):
        labels.read_label(tmp_path / "a.png")


def test_control_is_one_hot_with_void_last_and_input_unchanged() -> None:
    import torch

    ids = torch.from_numpy(all_ids())[None]
    before = ids.clone()
    control = labels.one_hot_control(ids)
    assert control.shape == (1, 20, 4, 5) and control.dtype == torch.float32
    assert torch.equal(control.sum(1), torch.ones(1, 4, 5))
    assert torch.equal(control.argmax(1), torch.arange(20).reshape(1, 4, 5))
    assert torch.equal(ids, before)


def test_colours_and_names() -> None:
    colours = labels.colorize(all_ids())
    assert tuple(colours[0, 0]) == (128, 64, 128) and tuple(colours[3, 4]) == (0, 0, 0)
    assert labels.present_class_names(np.array([[255, 13, 0]])) == ["road", "car"]
    assert len(labels.CLASS_NAMES) == len(labels.PALETTE) == 19
