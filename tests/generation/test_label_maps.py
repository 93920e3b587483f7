"""Label maps of any space become train ids; bad files are named before anything else happens."""

import numpy as np
import pytest
from PIL import Image

from generation import label_maps
from pipeline import release
from pipeline.errors import UserError


def save(path, array, mode=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(np.asarray(array, dtype=np.uint8), mode=mode)
    if mode == "P":
        image.putpalette(list(range(256)) * 3)
    image.save(path)
    return path


def opened(folder, space="train_ids", height_px=0, pattern="*.png"):
    return label_maps.open_folder(folder, pattern=pattern, label_space=space, height_px=height_px)


def test_gta_ids_become_train_ids(tmp_path):
    save(tmp_path / "a.png", [[7, 8, 33, 0], [4, 34, 23, 26]], "P")
    source = opened(tmp_path, "gta")
    assert source.read("a.png").tolist() == [[0, 1, 18, 255], [255, 255, 10, 13]]


@pytest.mark.parametrize("space", ["gta", "cityscapes_ids", "train_ids"])
def test_ids_outside_the_space_are_refused(tmp_path, space):
    save(tmp_path / "a.png", np.full((4, 4), 40))
    with pytest.raises(UserError, match=r"a\.png.*\[40\]"):
        label_maps.scan(opened(tmp_path, space))


def test_unknown_space_lists_the_known_ones(tmp_path):
    save(tmp_path / "a.png", np.zeros((4, 4)))
    with pytest.raises(UserError, match="cityscapes_ids, gta, mapillary_v1_2"):
        opened(tmp_path, "kitti")


def test_own_space_from_a_yaml(tmp_path):
    save(tmp_path / "a.png", [[1, 2]])
    (tmp_path / "own.yaml").write_text("train_ids: {1: 13}\nvoid: [2]\n")
    assert opened(tmp_path, str(tmp_path / "own.yaml")).read("a.png").tolist() == [[13, 255]]
    save(tmp_path / "a.png", [[1, 3]])
    with pytest.raises(UserError, match="outside"):
        opened(tmp_path, str(tmp_path / "own.yaml")).read("a.png")
    (tmp_path / "own.yaml").write_text("train_ids: {1: 99}\nvoid: []\n")
    with pytest.raises(UserError, match="does not map"):
        opened(tmp_path, str(tmp_path / "own.yaml"))


def test_first_bad_file_in_name_order_is_named(tmp_path):
    for name in "abcdef":
        save(tmp_path / f"{name}.png", np.zeros((8, 8)))
    save(tmp_path / "e.png", np.full((8, 8, 3), (70, 70, 7)))
    whole = (tmp_path / "c.png").read_bytes()
    (tmp_path / "c.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"c\.png: not a readable PNG"):
        label_maps.scan(opened(tmp_path))
    (tmp_path / "c.png").write_bytes(whole)
    with pytest.raises(UserError, match=r"e\.png: label has mode RGB and three"):
        label_maps.scan(opened(tmp_path))


def test_missing_and_empty_folders(tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        opened(tmp_path / "none")
    with pytest.raises(UserError, match="no label map matches"):
        opened(tmp_path)


def test_pattern_picks_files(tmp_path):
    save(tmp_path / "x" / "a_labelIds.png", np.full((4, 4), 7))
    save(tmp_path / "x" / "a_color.png", np.zeros((4, 4, 3)))
    source = opened(tmp_path, "cityscapes_ids", pattern="*_labelIds.png")
    assert source.names == ("x/a_labelIds.png",) and (source.read(source.names[0]) == 0).all()


def test_resizing_is_nearest_and_small_maps_are_refused_with_the_remedy(tmp_path):
    save(tmp_path / "a.png", np.random.default_rng(0).choice([0, 13, 255], (1052, 1914)), "P")
    source = opened(tmp_path, height_px=64)
    label = source.read("a.png")
    assert label.shape == (64, 116) and set(np.unique(label)) == {0, 13, 255}
    found = label_maps.scan(source)
    with pytest.raises(UserError, match="--label-height-px 72"):
        label_maps.check_sizes(source, found, (32, 128))
    label_maps.check_sizes(
        opened(tmp_path, height_px=72),
        label_maps.scan(opened(tmp_path, height_px=72)),
        (32, 128),
    )


def test_scan_is_kept_and_renewed(tmp_path):
    path = save(tmp_path / "in" / "a.png", np.zeros((4, 4)))
    source, cache = opened(tmp_path / "in"), tmp_path / "label_maps.json"
    first = label_maps.scan(source)
    label_maps.save_scan(source, first, {}, cache)
    assert label_maps.scan(source, cache) == first
    save(path, np.full((6, 6), 13))
    renewed = label_maps.scan(source, cache)
    assert renewed[0].counts[13] == 36
    assert label_maps.contents_digest(renewed) != label_maps.contents_digest(first)


def test_dataset_folder_gives_its_labels(tiny_dataset):
    source = opened(tiny_dataset(3, 16, 32))
    assert [n.startswith("labels/") for n in source.names] == [True] * 3


def test_a_released_set_gives_its_labels_and_images(tiny_dataset, tmp_path, monkeypatch):
    output, cache = tmp_path / "set", tmp_path / "label_maps.json"
    argv = ["release.py", str(tiny_dataset(3, 16, 32)), "--output", str(output)]
    monkeypatch.setattr("sys.argv", [*argv, "--work", str(tmp_path / "work"), "--workers", "1"])
    assert release.main() is None
    source = opened(output)
    label_maps.check_source_images(source)
    found, images = label_maps.scan(source), label_maps.digest_images(source)
    assert len(set(images.values())) == len(images) == 3
    label_maps.save_scan(source, found, images, cache)
    monkeypatch.setattr(label_maps, "file_digest", lambda _: "read again")
    assert label_maps.digest_images(source, cache) == images


def test_images_of_another_size_than_their_maps_are_refused(tiny_dataset, tmp_path):
    folder = tiny_dataset(3, 16, 32, folder=tmp_path / "set")
    label_maps.check_source_images(opened(folder))
    label_maps.check_source_images(opened(folder, height_px=8))  # maps and images are scaled alike
    image = folder / "images" / "0000" / "00000001.png"
    whole = image.read_bytes()
    save(image, np.zeros((90, 100, 3)))
    message = r"labels/0000/00000001\.png: label is 32x16 but its image is 100x90; "
    with pytest.raises(UserError, match=message) as caught:
        label_maps.check_source_images(opened(folder))
    assert "\n" not in str(caught.value)
    image.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"00000001\.png: not a readable image"):
        label_maps.check_source_images(opened(folder))


def test_maps_read_in_the_wrong_label_space_are_mentioned(tmp_path):
    ids = np.full((8, 16), 5, dtype=np.uint8)  # train id of walls; void among GTA's ids
    ids[:, :6] = 7  # train id of signs, GTA's road
    save(tmp_path / "a.png", ids)
    right, wrong = (label_maps.scan(opened(tmp_path, s)) for s in ("train_ids", "gta"))
    assert label_maps.mostly_void(right) == ""
    assert "only 38% of the label maps' pixels are of a class" in label_maps.mostly_void(wrong)
