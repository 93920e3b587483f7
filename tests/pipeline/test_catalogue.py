"""The catalogue: entries, label spaces, layouts, strictness."""

import ast
import importlib.util
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline import files, images, label_spaces, labels
from pipeline.catalogue.specs import (
    DatasetSpec,
    Layout,
    Selection,
    Split,
    known_datasets,
    list_pairs,
    load_spec,
    open_selection,
)
from pipeline.errors import UserError

CITYSCAPES = dict(zip((7, 8, 11, 12, 13, 17, *range(19, 29), 31, 32, 33), range(19), strict=True))
MAPILLARY = {
    13: 0, 24: 0, 41: 0, 2: 1, 15: 1, 17: 2, 6: 3, 3: 4, 45: 5, 47: 5, 48: 6, 50: 7, 30: 8, 29: 9,
    27: 10, 19: 11, 20: 12, 21: 12, 22: 12, 55: 13, 61: 14, 54: 15, 58: 16, 57: 17, 52: 18,
}  # fmt: skip
SYNTHIA = {
    3: 0, 4: 1, 2: 2, 21: 3, 5: 4, 7: 5, 15: 6, 9: 7, 6: 8, 16: 9, 1: 10, 10: 11, 17: 12, 8: 13,
    18: 14, 19: 15, 20: 16, 12: 17, 11: 18,
}  # fmt: skip


def mapped(space: str) -> dict[int, int]:
    """The ids of a label space that are a class."""
    table = label_spaces.label_space(space)
    return {i: int(t) for i, t in enumerate(table) if t < 19}


def listed(space: str) -> list[int]:
    """The ids that a label space knows, void ones too."""
    return [i for i, t in enumerate(label_spaces.label_space(space)) if t != 254]


def mmseg_datasets(module: str) -> dict[str, dict]:
    """METAINFO and default suffixes of the datasets in a module of mmsegmentation, unimported."""
    found = importlib.util.find_spec("mmseg")
    if found is None or not found.submodule_search_locations:
        pytest.skip("mmsegmentation is not installed")
    path = Path(found.submodule_search_locations[0]) / "datasets" / f"{module}.py"
    result = {}
    for node in ast.parse(path.read_text()).body:
        if not isinstance(node, ast.ClassDef):
            continue
        attributes = {}
        for item in node.body:
            if isinstance(item, ast.Assign):
                attributes |= {k.arg: ast.literal_eval(k.value) for k in item.value.keywords}
            elif isinstance(item, ast.FunctionDef):
                names = [a.arg for a in item.args.args[1:]]
                values = map(ast.literal_eval, item.args.defaults)
                attributes |= dict(zip(names, values, strict=True))
        result[node.name] = attributes
    return result


def test_every_entry_is_complete_and_its_label_spaces_exist() -> None:
    names = known_datasets()
    assert set(names) == {
        "gta", "synthia", "urbansyn", "cityscapes", "bdd100k", "mapillary_v1_2", "mapillary_v2_0",
        "acdc", "dark_zurich", "nighttime_driving", "pocket_city", "dginstyle", "own", "camvid",
        "pocket_release",
    }  # fmt: skip
    for name in names:
        spec = load_spec(name)
        assert spec.title and spec.licence and spec.splits
        assert spec.layouts or name in ("own", "pocket_city", "pocket_release")
        assert all(x.image.endswith((".png", ".jpg")) for x in spec.layouts)


@pytest.mark.parametrize(
    ("name", "split", "count", "low", "high"),
    [
        ("gta", "all", 24966, None, None),
        ("cityscapes", "val", 500, (512, 1024), (1024, 2048)),
        ("bdd100k", "val", 1000, (512, 1024), (1024, 2048)),
        ("mapillary_v1_2", "val", 2000, (512, 1024), (1024, 2048)),
        ("acdc", "val", 406, (540, 960), (1080, 1920)),
        ("dark_zurich", "val", 50, (540, 960), (1080, 1920)),
        ("nighttime_driving", "test", None, (540, 960), (1080, 1920)),
        ("camvid", "test", 233, (360, 480), (720, 960)),
        ("dginstyle", "all", 7000, None, None),
    ],
)
def test_counts_and_scales_are_those_of_the_protocol(
    name: str, split: str, count: int | None, low: tuple | None, high: tuple | None
) -> None:
    spec = load_spec(name)
    assert spec.splits[split].count == count
    assert (spec.eval_low_px, spec.eval_high_px) == (low, high)


def test_label_spaces_are_the_published_maps() -> None:
    assert mapped("gta") == mapped("cityscapes_ids") == CITYSCAPES
    assert mapped("mapillary_v1_2") == MAPILLARY and listed("mapillary_v1_2") == [*range(66)]
    assert mapped("synthia") == SYNTHIA and listed("synthia") == [*range(23)]
    assert mapped("train_ids_void19") == mapped("train_ids") == {i: i for i in range(19)}
    assert listed("train_ids_void19") == [*range(20), 255]
    assert listed("mapillary_v2_0") == [*range(124)]
    colors = label_spaces.label_space("cityscapes_colors")
    packed = labels.PALETTE.astype(int) @ (1, 256, 65536)
    assert colors[packed].tolist() == [*range(19)] and colors[0] == labels.VOID


def test_classes_and_palette_are_those_of_mmsegmentation() -> None:
    for module, name in (("cityscapes", "CityscapesDataset"), ("bdd100k", "BDD100KDataset")):
        attributes = mmseg_datasets(module)[name]
        assert attributes["classes"] == labels.CLASS_NAMES
        assert attributes["palette"] == labels.PALETTE.tolist()


def test_file_suffixes_are_those_of_mmsegmentation() -> None:
    for module, dataset in (
        ("cityscapes", "cityscapes"),
        ("bdd100k", "bdd100k"),
        ("dark_zurich", "dark_zurich"),
        ("night_driving", "nighttime_driving"),
        ("mapillary", "mapillary_v2_0"),
    ):
        attributes = list(mmseg_datasets(module).values())[-1]
        ends = (attributes["img_suffix"], attributes["seg_map_suffix"])
        assert any(
            x.image.endswith(ends[0]) and x.label.endswith(ends[1])
            for x in load_spec(dataset).layouts
        )


def test_mapillary_maps_agree_with_mmsegmentations_class_names() -> None:
    old, new = (x["classes"] for x in mmseg_datasets("mapillary").values())
    first = {old[i]: t for i, t in mapped("mapillary_v1_2").items()}
    second = {new[i]: t for i, t in mapped("mapillary_v2_0").items()}
    assert (len(old), len(new)) == (66, 124)
    assert first["Curb"] == 1 and first["On Rails"] == 16 and first["Other Rider"] == 12
    for name in set(old) & set(new):
        assert first.get(name) == second.get(name), name
    own_names = {name: labels.CLASS_NAMES[t] for name, t in second.items() if name not in first}
    for name, target in own_names.items():
        kind = name.partition(" - ")[0].removesuffix(" (Front)")
        assert target == {"Lane Marking": "road"}.get(kind, kind.lower())


def test_label_path_follows_the_image_whatever_the_parents_are_called(
    gta_tree: Callable[..., Path],
) -> None:
    root = gta_tree(3)
    (root / "labels" / "00002_labelTrainIds.png").write_bytes(b"left by another converter")
    (root / "labels" / "00009.png").write_bytes(b"no image")
    listing = list_pairs(load_spec("gta"), root, "all")
    assert [p.label for p in listing.pairs] == [root / f"labels/0000{i}.png" for i in (1, 2, 3)]
    assert [p.attributes["original_image"] for p in listing.pairs][0] == "images/00001.png"
    assert listing.orphans == [root / "labels" / "00009.png"] and listing.label_space == "gta"


def test_conditions_and_second_layout(tmp_path: Path) -> None:
    image_bytes = images.encode_png(np.zeros((2, 2, 3), np.uint8))
    names = ("fog/val/GOPR0475/a", "night/val/GP01/b", "night/val_ref/GP01/c", "night/train/G/d")
    for name in names:
        files.write_bytes(tmp_path / f"rgb_anon/{name}_rgb_anon.png", image_bytes)
        files.write_bytes(tmp_path / f"gt/{name}_gt_labelTrainIds.png", image_bytes)
        files.write_bytes(tmp_path / f"gt/{name}_gt_labelIds.png", image_bytes)
    spec = load_spec("acdc")
    listing = list_pairs(spec, tmp_path, "val")
    assert [p.attributes["condition"] for p in listing.pairs] == ["fog", "night"]
    assert not listing.orphans
    assert [p.image.name for p in list_pairs(spec, tmp_path, "val", "night").pairs] == [
        "b_rgb_anon.png"
    ]
    with pytest.raises(UserError, match="--condition snow: no such images; .* has fog, night"):
        list_pairs(spec, tmp_path, "val", "snow")

    flat = tmp_path / "flat"
    files.write_bytes(flat / "rgb_anon/val/a_rgb_anon.png", image_bytes)
    files.write_bytes(flat / "gt/val/a_gt_labelTrainIds.png", image_bytes)
    assert list_pairs(spec, flat, "val").pairs[0].label == flat / "gt/val/a_gt_labelTrainIds.png"
    assert "condition" not in list_pairs(spec, flat, "val").pairs[0].attributes


def test_own_folder_keeps_its_rows(tiny_dataset: Callable[..., Path]) -> None:
    folder = tiny_dataset(2, 8, 8, conditions=("fog",))
    listing = list_pairs(load_spec("own"), folder, "all")
    assert listing.label_space == "train_ids" and len(listing.pairs) == 2
    attributes = listing.pairs[1].attributes
    assert attributes["condition"] == "fog" and attributes["prompt"]
    assert attributes["original_label"] == "labels/0000/00000001.png" and "height" not in attributes


def test_wrong_entries_and_selections_are_named(
    tmp_path: Path, gta_tree: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    entry = tmp_path / "x.yaml"
    entry.write_text("title: x\nlicense: y\n")
    with pytest.raises(UserError, match="unknown key 'license'; known keys: title, role, licence"):
        load_spec(str(entry))
    entry.write_text("title: x\nlicence: y\n")
    with pytest.raises(UserError, match="splits is missing"):
        load_spec(str(entry))
    entry.write_text(
        "title: x\nlicence: y\nsplits: {all: {}}\n"
        "layouts: [{image: 'i/{name}.png', label: 'l/{stem}.png'}]\n"
    )
    with pytest.raises(UserError, match=r"\{stem\} is not a field of its image"):
        load_spec(str(entry))
    for text, message in (
        ("splits: {all: {count: -5}}", "splits.all: count -5: must be 0 or more"),
        ('splits: {all: {folder: "a\\nb"}}', "splits.all: folder: .* plain path below --root"),
        ("splits: {all: {}}\neval_low_px: [0, 5]", "eval_low_px: height and width must be in 1"),
        ("splits: {all: {}}\neval_high_px: [5, 99999]", "eval_high_px: height and width must"),
    ):
        entry.write_text(f"title: x\nlicence: y\n{text}\n")
        with pytest.raises(UserError, match=message):
            load_spec(str(entry))
    with pytest.raises(UserError, match="'gta5': not in the catalogue; use one of acdc, bdd100k"):
        load_spec("gta5")
    root = gta_tree(2)
    with pytest.raises(UserError, match="has all; choose one of them"):
        list_pairs(load_spec("gta"), root, "val")
    with pytest.raises(UserError, match="no such folder; --root is where Cityscapes was unpacked"):
        list_pairs(load_spec("cityscapes"), tmp_path / "none", "val")
    with pytest.raises(UserError, match=r"no val split of Cityscapes \(leftImg8bit/\{split\}"):
        list_pairs(load_spec("cityscapes"), root, "val")
    with pytest.raises(UserError, match="--root: not given"):
        open_selection(Selection("gta"))
    open_selection(Selection("gta", str(root)))
    assert "2 images of 24966 expected" in capsys.readouterr().err


def test_labels_beside_their_images_are_no_images(tmp_path: Path) -> None:
    for name in ("a.png", "a_label.png", "b.png", "b_label.PNG"):
        (tmp_path / name).touch()
    layout = Layout("{name}.png", "{name}_label.png")
    spec = DatasetSpec("x", licence="y", layouts=(layout,), splits={"all": Split()})
    listing = list_pairs(spec, tmp_path, "all")
    assert [pair.label.name for pair in listing.pairs] == ["a_label.png", "b_label.PNG"]
    assert not listing.orphans


def test_label_spaces_are_strict(tmp_path: Path) -> None:
    space = tmp_path / "space.yaml"
    for text, message in (
        ("train_ids: {7: 0}\n", "exactly the keys"),
        ("train_ids: {7: 19}\nvoid: []\n", "7: 19 does not map"),
        ("train_ids: {256: 0}\nvoid: []\n", "256: 0 does not map"),
        ("train_colors: {0: [0, 0, 256]}\nvoid_colors: []\n", "three numbers 0..255"),
    ):
        space.write_text(text)
        with pytest.raises(UserError, match=message):
            label_spaces.label_space(str(space))
    with pytest.raises(UserError, match="--label-space lost: not known; use one of .*synthia"):
        label_spaces.label_space("lost")


def test_colours_palettes_and_16_bit_labels_are_read(tmp_path: Path) -> None:
    import cv2

    train_ids = np.append(np.arange(19), 255).astype(np.uint8).reshape(4, 5)
    for mode in ("RGB", "RGBA"):
        Image.fromarray(labels.colorize(train_ids)).convert(mode).save(tmp_path / f"{mode}.png")
    palette = Image.fromarray(np.arange(20, dtype=np.uint8).reshape(4, 5), mode="P")
    palette.putpalette([*labels.PALETTE.ravel().tolist(), 0, 0, 0])
    palette.save(tmp_path / "P.png")
    table = label_spaces.label_space("cityscapes_colors")
    for mode in ("RGB", "RGBA", "P"):
        assert np.array_equal(labels.read_label(tmp_path / f"{mode}.png", table), train_ids)

    deep = np.zeros((4, 5, 3), np.uint16)
    deep[..., 2], deep[..., 1] = np.arange(20).reshape(4, 5), 60000  # BGR: class, instance
    cv2.imwrite(str(tmp_path / "synthia.png"), deep)
    expected = [[SYNTHIA.get(5 * r + c, 255) for c in range(5)] for r in range(4)]
    synthia = label_spaces.label_space("synthia")
    assert labels.read_label(tmp_path / "synthia.png", synthia).tolist() == expected
    data = (tmp_path / "synthia.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(data[:-20])
    with pytest.raises(UserError, match="not a readable PNG"):
        labels.read_label(tmp_path / "cut.png", synthia)

    odd = labels.colorize(train_ids)
    odd[0, 0] = (1, 2, 3)
    Image.fromarray(odd).save(tmp_path / "odd.png")
    with pytest.raises(UserError, match=r"colours \[\(1, 2, 3\)\] are outside its label space"):
        labels.read_label(tmp_path / "odd.png", table)
    Image.fromarray(np.full((2, 2), 35, np.uint8)).save(tmp_path / "ids.png")
    with pytest.raises(UserError, match=r"ids \[35\] are outside its label space"):
        labels.read_label(tmp_path / "ids.png", label_spaces.label_space("gta"))


def test_grey_of_few_bits_is_refused_because_decoders_scale_it(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 1]], bool)).save(tmp_path / "one.png", bits=1)
    with pytest.raises(UserError, match="mode L;1"):
        labels.read_label(tmp_path / "one.png")
