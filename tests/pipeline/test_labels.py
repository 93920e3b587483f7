"""Ids, palette, void, reading, and the control tensor."""

import os
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from pipeline import files, images, label_spaces, labels
from pipeline.errors import UserError


def all_ids() -> np.ndarray:
    return np.append(np.arange(19), 255).astype(np.uint8).reshape(4, 5)


def test_round_trip_keeps_every_id(tmp_path: Path) -> None:
    files.write_bytes(tmp_path / "a.png", images.encode_png(all_ids()))
    assert np.array_equal(labels.read_label(tmp_path / "a.png"), all_ids())


def test_palette_png_is_read_as_ids(tmp_path: Path) -> None:
    image = Image.fromarray(all_ids(), mode="P")
    palette = np.zeros((256, 3), dtype=np.uint8)
    palette[:19] = labels.PALETTE
    image.putpalette(palette.tobytes())
    image.save(tmp_path / "p.png")
    assert np.array_equal(labels.read_label(tmp_path / "p.png"), all_ids())


def test_palettes_with_other_numbers_are_refused_by_every_reader(tmp_path: Path) -> None:
    codes = np.array([[0] * 12 + [1, 2, 3, 4, 5, 6]], np.uint8)  # most pixels are of road still
    image = Image.fromarray(codes, mode="P")
    image.putpalette(labels.PALETTE[[0, 1, 2, 8, 10, 13, 18]].tobytes())
    image.save(tmp_path / "p.png")
    with pytest.raises(UserError, match="p.png: the palette gives index 3 and 3 more.*read as"):
        labels.read_label(tmp_path / "p.png")


@pytest.mark.parametrize("left_out", [False, True])
def test_palettes_of_merged_classes_are_read(tmp_path: Path, left_out: bool) -> None:
    """As the categories of Cityscapes are, whose first classes stand for the others."""
    groups = ([0, 1], [2, 3, 4], [5, 6, 7], [8, 9], [10], [11, 12], range(13, 19))
    mapping = {i: group[0] for group in groups for i in group if not left_out or i in (0, 1, 2)}
    image = Image.fromarray(np.array([[*range(19), *[0] * 30]], np.uint8), mode="P")
    image.putpalette(labels.PALETTE.tobytes())
    image.save(tmp_path / "p.png")
    table = np.full(256, labels.VOID, np.uint8)
    table[list(mapping)] = list(mapping.values())
    label = labels.read_label(tmp_path / "p.png", table)
    assert label[0, :19].tolist() == [mapping.get(i, labels.VOID) for i in range(19)]


def test_sixteen_bit_colours_keep_void_and_refuse_instances(tmp_path: Path) -> None:
    path, pixels = tmp_path / "wide.png", np.zeros((4, 5, 3), np.uint16)
    pixels[..., 2] = all_ids()  # OpenCV has red last
    cv2.imwrite(str(path), pixels)
    assert np.array_equal(labels.read_label(path), all_ids())
    assert np.array_equal(labels.read_label(path, label_spaces.label_space("train_ids")), all_ids())
    cv2.imwrite(str(path), pixels + 300)
    with pytest.raises(UserError, match="wide.png: 16-bit label has values up to 555"):
        labels.read_label(path, np.zeros(256, np.uint8))


def test_other_label_space_is_converted_and_unknown_ids_become_void(tmp_path: Path) -> None:
    files.write_bytes(tmp_path / "a.png", images.encode_png(np.array([[7, 26, 3]], dtype=np.uint8)))
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
    data = images.encode_png(np.tile(all_ids(), (40, 40)))
    (tmp_path / "cut.png").write_bytes(data[: len(data) // 2])
    (tmp_path / "text.png").write_text("not an image")
    for name in ("cut.png", "text.png"):
        with pytest.raises(UserError, match="not a readable PNG"):
            labels.read_label(tmp_path / name)
    with pytest.raises(UserError, match="no such file; .*re-create the file"):
        labels.read_label(tmp_path / "none.png")


def test_huge_label_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "MAX_PIXELS", 10)
    files.write_bytes(tmp_path / "a.png", images.encode_png(all_ids()))
    with pytest.raises(UserError, match="5x4 pixels, more than 10"):
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


SPACE = "train_ids: {0: 10, 1: 2}\nvoid: [11]\n"
BAD_SPACES = {
    "null lists": ("train_ids:\nvoid:\n", "train_ids is a mapping"),
    "list for map": ("train_ids: [1, 2]\nvoid: [3]\n", "train_ids is a mapping"),
    "map for list": ("train_ids: {1: 2}\nvoid: {3: 4}\n", "void a list"),
    "text for list": ("train_ids: {1: 2}\nvoid: abc\n", "void a list"),
    "boolean id": ("train_ids: {true: 2}\nvoid: [3]\n", "True: 2 does not map"),
    "boolean train id": ("train_ids: {1: yes}\nvoid: [3]\n", "1: True does not map"),
    "boolean void": ("train_ids: {1: 2}\nvoid: [no]\n", "False: 255 does not map"),
    "text id": ("train_ids: {'1': 2}\nvoid: [3]\n", "1: 2 does not map"),
    "float id": ("train_ids: {1.0: 2}\nvoid: [3]\n", "1.0: 2 does not map"),
    "train id 19": ("train_ids: {1: 19}\nvoid: [3]\n", "1: 19 does not map"),
    "id 256": ("train_ids: {256: 1}\nvoid: [3]\n", "256: 1 does not map"),
    "huge id": (f"train_ids: {{{10**30}: 1}}\nvoid: [3]\n", "does not map"),
    "class and void": ("train_ids: {1: 2}\nvoid: [1]\n", "1 is mapped twice, to 2 and 255"),
    "nothing": ("train_ids: {}\nvoid: [1]\n", "maps nothing to a class"),
    "no mapping": ("- 1\n", "exactly the keys"),
    "empty": ("", "exactly the keys"),
    "null colours": ("train_colors: {0: null}\nvoid_colors: []\n", "three numbers 0..255"),
    "colour of two": ("train_colors: {0: [1, 2]}\nvoid_colors: []\n", "three numbers 0..255"),
    "boolean colour": ("train_colors: {0: [1, 2, yes]}\nvoid_colors: []\n", "three numbers"),
    "colour 256": ("train_colors: {0: [1, 2, 256]}\nvoid_colors: []\n", "three numbers"),
    "text colour": ("train_colors: {0: '#404040'}\nvoid_colors: []\n", "three numbers"),
    "mixed colours": ("train_colors: {0: [[1, 2, 3], 4]}\nvoid_colors: []\n", "three numbers"),
    "list of colours": ("train_colors: [[1, 2, 3]]\nvoid_colors: []\n", "train_colors is a map"),
    "null void": ("train_colors: {0: [1, 2, 3]}\nvoid_colors:\n", "void_colors a list"),
    "colour twice": (
        "train_colors: {0: [1, 2, 3], 1: [1, 2, 3]}\nvoid_colors: []\n",
        r"\[1, 2, 3\] is mapped twice, to 0 and 1",
    ),
}


@pytest.mark.parametrize("name", BAD_SPACES)
def test_bad_label_spaces_are_one_line(tmp_path: Path, name: str) -> None:
    text, rule = BAD_SPACES[name]
    path = tmp_path / "space.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=rule) as caught:
        label_spaces.label_space(str(path))
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["none", "../labelspaces/gta", "gta/../gta", "/etc/passwd"])
def test_a_name_is_only_looked_for_in_the_folder_of_label_spaces(name: str) -> None:
    with pytest.raises(UserError, match="not known; use one of .*cityscapes_ids"):
        label_spaces.label_space(name)


def test_several_colours_may_be_one_class(tmp_path: Path) -> None:
    path = tmp_path / "space.yaml"
    path.write_text("train_colors: {0: [[1, 0, 0], [24, 0, 0]], 13: [14, 0, 0]}\nvoid_colors: []\n")
    colors = np.array([[(1, 0, 0), (24, 0, 0), (14, 0, 0)]], dtype=np.uint8)
    Image.fromarray(colors).save(tmp_path / "a.png")
    found = labels.read_label(tmp_path / "a.png", label_spaces.label_space(str(path)))
    assert found.tolist() == [[0, 0, 13]]


def test_ids_in_channels_or_two_bytes_are_read_through_a_label_space(tmp_path: Path) -> None:
    ids = np.array([[7, 26, 3], [33, 0, 21]], dtype=np.uint8)
    expected = [[0, 13, 255], [18, 255, 8]]
    table = label_spaces.label_space("gta")
    empty, full = np.zeros_like(ids), np.full_like(ids, 255)
    for name, array in {
        "grey": np.stack([ids] * 3, -1),
        "grey_alpha": np.stack([ids, ids, ids, full], -1),
        "red": np.stack([ids, empty, empty], -1),
        "red_alpha": np.stack([ids, empty, empty, full], -1),
        "luminance_alpha": np.stack([ids, full], -1),
        "two_bytes": ids.astype(np.uint16),
    }.items():
        path = tmp_path / f"{name}.png"
        Image.fromarray(array).save(path)
        assert labels.read_label(path, table).tolist() == expected, name
    for name, array, rule in (
        ("colours", labels.colorize(np.array([[0, 13, 255]], np.uint8)), "three channels that"),
        ("instances", np.array([[26001, 7]], np.uint16), "values up to 26001"),
    ):
        Image.fromarray(array).save(tmp_path / f"{name}.png")
        with pytest.raises(UserError, match=rule):
            labels.read_label(tmp_path / f"{name}.png", table)


def test_label_pipes_and_devices_are_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.png")
    for path in (tmp_path / "a.png", Path("/dev/zero"), tmp_path):
        with pytest.raises(UserError, match="not a regular file"):
            labels.read_label(path)


def test_colour_of_static_in_the_palette_of_gta_is_void(tmp_path: Path) -> None:
    colors = np.array([[(20, 20, 20), (0, 0, 142), (111, 74, 0)]], dtype=np.uint8)
    Image.fromarray(colors).save(tmp_path / "a.png")
    table = label_spaces.label_space("cityscapes_colors")
    assert labels.read_label(tmp_path / "a.png", table).tolist() == [[255, 13, 255]]


def test_camvid_merges_nineteen_classes_into_its_eleven() -> None:
    merged = label_spaces.merged_classes("camvid")
    assert merged is not None and label_spaces.merged_classes("gta") is None
    found = merged.merge(np.arange(256, dtype=np.uint8)[None])[0]
    # by hand, in the order of the train ids
    order = ["road", "pavement", "building", "building", "fence", "pole", "sign symbol",
             "sign symbol", "tree", "tree", "sky", "pedestrian", "bicyclist", "car", "car", "car",
             "car", "bicyclist", "bicyclist"]  # fmt: skip
    assert [merged.names[i] for i in found[:19]] == order
    assert found[255] == 255 and set(found[19:255]) == {merged.other} == {11}
    table = label_spaces.label_space("camvid")
    back = merged.merge(table[np.arange(12, dtype=np.uint8)][None])[0].tolist()
    assert back == [*range(11), 255]  # its own labels keep their ids


@pytest.mark.parametrize(
    ("classes", "rule"),
    [
        ("[a, b]", "is a mapping of class names"),
        ("{}", "is a mapping of class names"),
        ("{a: 1}", "is a list of train ids"),
        ("{a: []}", "is a list of train ids"),
        ("{a: [yes]}", "is a list of train ids"),
        ("{a: [19]}", "is a list of train ids"),
        ("{1: [0]}", "is a list of train ids"),
        ("{a: [0, 1], b: [1]}", "train id 1 stands in two classes"),
        ("{a: [3]}", "train id 2, which labels are mapped to, stands in none"),
    ],
)
def test_bad_classes_of_a_label_space_are_one_line(tmp_path: Path, classes: str, rule: str) -> None:
    path = tmp_path / "space.yaml"
    path.write_text(f"{SPACE}classes: {classes}\n")
    with pytest.raises(UserError, match=rule):
        label_spaces.merged_classes(str(path))


def test_predictions_of_no_class_count_as_wrong() -> None:
    merged = label_spaces.parse_merged({"sky": [10], "building": [2]}, "test")
    assert merged.merge(np.array([[10, 2, 0, 255]], np.uint8)).tolist() == [[0, 1, 2, 255]]
