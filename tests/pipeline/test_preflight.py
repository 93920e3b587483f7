"""The preflight: every kind of bad file is found, all of them, one line each."""

import os
import shutil
import unicodedata
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline import images
from pipeline.catalogue.checks import Fault
from pipeline.catalogue.specs import DatasetSpec, Layout, Split, load_spec
from pipeline.errors import UserError
from pipeline.images import read_image
from pipeline.parallel import in_processes
from pipeline.preflight import preflight

GTA = load_spec("gta")


def grey(path: Path, value: int, size: tuple[int, int] = (8, 12), dtype: type = np.uint8) -> None:
    Image.fromarray(np.full(size, value, dtype)).save(path)


def spoil(root: Path) -> dict[str, str]:
    """Spoil the pairs 1 to 14 of a tree, each in one way; returns what must be said of whom."""
    image, label = root / "images", root / "labels"
    for number in (1, 2):
        folder = image if number == 1 else label
        path = folder / f"0000{number}.png"
        path.write_bytes(path.read_bytes()[:-9])
    grey(label / "00003.png", 7, (8, 11))
    Image.new("RGB", (12, 8), (70, 70, 7)).save(label / "00004.png")
    grey(label / "00005.png", 700, dtype=np.uint16)
    Image.new("CMYK", (12, 8)).save(image / "00006.png", format="JPEG")
    (label / "00007.png").unlink()
    (image / "00008.png").write_bytes(b"")
    (image / "00009.png").write_text("<html>quota exceeded</html>")
    bomb = bytearray((image / "00010.png").read_bytes())
    bomb[16:24] = b"\x00\x00\xff\xff" * 2
    (image / "00010.png").write_bytes(bomb)
    (image / "00011.png").unlink()
    shutil.copy(image / "00012.png", image / "00012A.png")
    shutil.copy(image / "00012.png", image / "00012a.png")
    for folder in (image, label):
        for stem in ("00012A", "00012a"):
            shutil.copy(folder / "00012.png", folder / f"{stem}.png")
        (folder / "00013.png").rename(folder / unicodedata.normalize("NFD", "stra\xdfe \xfc.png"))
        (folder / "00014.png").rename(folder / "two\nlines.png")
    return {
        "images/00001.png": "is truncated",
        "labels/00002.png": "is truncated",
        "labels/00003.png": "label is 11x8 but its image is 12x8",
        "labels/00004.png": "three channels that differ",
        "labels/00005.png": "16-bit label has values up to 700",
        "images/00006.png": "mode CMYK; save it as 8-bit RGB",
        "labels/00007.png": "is missing; restore it",
        "images/00008.png": "not a readable image (",
        "images/00009.png": "not a readable image (",
        "images/00010.png": "65535x65535 pixels, more than 40000000",
        "labels/00011.png": "label without an image",
        "images/00012a.png": "has the stem of",
        "images/stra": "not printable UTF-8 in normal form NFC",
        "labels/stra": "not printable UTF-8 in normal form NFC",
        "images/two": "not printable UTF-8 in normal form NFC",
        "labels/two": "not printable UTF-8 in normal form NFC",
    }


def test_all_faults_are_listed_one_line_each(gta_tree: Callable[..., Path]) -> None:
    root = gta_tree(16)
    expected = spoil(root)
    faults = preflight(GTA, root, "all")
    lines = [str(fault) for fault in faults]
    for name, message in expected.items():
        assert sum(f"/{name}" in line and message in line for line in lines) == 1, (name, lines)
    assert len(lines) == len(expected)
    assert all(line.count("\n") == 0 and "; " in line for line in lines)
    assert preflight(GTA, root, "all", workers=2) == faults


def test_good_trees_have_no_fault_also_with_umlauts_and_jpegs(
    gta_tree: Callable[..., Path], tmp_path: Path
) -> None:
    root = gta_tree(3)
    for folder in ("images", "labels"):
        (root / folder / "00003.png").rename(root / folder / "stra\xdfe.png")
    assert preflight(GTA, root, "all", "full") == []

    image_path, label = (
        tmp_path / "images/10k/val/a.jpg",
        tmp_path / "labels/sem_seg/masks/val/a.png",
    )
    for path in (image_path, label):
        path.parent.mkdir(parents=True)
    Image.new("L", (8, 4)).save(image_path)
    grey(label, 18, (4, 8))
    bdd = load_spec("bdd100k")
    assert preflight(bdd, tmp_path, "val", "full") == []
    image_path.write_bytes(image_path.read_bytes() + bytes(100))  # some cameras pad
    assert preflight(bdd, tmp_path, "val") == []
    image_path.write_bytes(image_path.read_bytes()[:-102])
    assert ["is truncated" in f.message for f in preflight(bdd, tmp_path, "val")] == [True]


def test_full_depth_finds_ids_and_broken_data_that_headers_cannot(
    gta_tree: Callable[..., Path],
) -> None:
    root = gta_tree(4, height=40, width=40)
    grey(root / "labels" / "00002.png", 200, (40, 40))
    for folder, number in (("images", 3), ("labels", 4)):
        path = root / folder / f"0000{number}.png"
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 255
        path.write_bytes(data)
    assert preflight(GTA, root, "all") == []
    lines = [str(fault) for fault in preflight(GTA, root, "all", "full")]
    assert len(lines) == 3
    assert "00002.png: label ids [200] are outside its label space" in lines[0]
    assert "00003.png: not a readable image" in lines[1]
    assert "00004.png: not a readable PNG" in lines[2]


def test_every_cut_of_a_file_is_found(gta_tree: Callable[..., Path]) -> None:
    root = gta_tree(1)
    path = root / "labels" / "00001.png"
    data = path.read_bytes()
    for length in range(0, len(data), 7):
        path.write_bytes(data[:length])
        assert len(preflight(GTA, root, "all")) == 1, length


def test_name_that_is_not_utf8_is_printable(tmp_path: Path) -> None:
    fault = Fault(tmp_path / os.fsdecode(b"a\xff.png"), "x; y")
    assert str(fault).isascii() and "udcff" in str(fault)


def test_decompression_bomb_in_a_jpeg_is_refused(
    gta_tree: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    root = gta_tree(1)
    monkeypatch.setattr(images, "MAX_PIXELS", 95)
    assert len(preflight(GTA, root, "all")) == 2


def test_program_lists_faults_and_exits_with_2(
    gta_tree: Callable[..., Path], run_program: Callable
) -> None:
    root = gta_tree(3)
    flags = ("--dataset", "gta", "--root", root, "--workers", "1")
    done = run_program("pipeline/preflight.py", *flags)
    assert done.stdout == "3 pairs, no fault\n" and "3 images of 24966" in done.stderr
    (root / "images" / "00002.png").write_bytes(b"")
    (root / "labels" / "00003.png").unlink()
    done = run_program("pipeline/preflight.py", *flags, check=False)
    assert done.returncode == 2
    assert [line.partition(": ")[0][-16:] for line in done.stdout.splitlines()] == [
        "images/00002.png",
        "labels/00003.png",
    ]
    assert "2 faults in 3 pairs, listed above" in done.stderr.splitlines()[-1]


def die(item: int) -> int:
    if item == 3:
        os.kill(os.getpid(), 9)
    return item


def test_killed_worker_is_an_error_and_not_a_hang() -> None:
    with pytest.raises(UserError, match="worker process was killed.*fewer --workers"):
        list(in_processes(die, range(6), 2, chunk=1))


def test_images_of_several_sequences_may_share_their_names(tmp_path: Path) -> None:
    for sequence in ("01", "02"):
        for folder in ("images", "labels"):
            (tmp_path / folder / sequence).mkdir(parents=True)
            grey(tmp_path / folder / sequence / "000000.png", 7, (4, 8))
    layout = Layout("images/{sequence}/{name}.png", "labels/{sequence}/{name}.png", "gta")
    spec = DatasetSpec("own", licence="own", layouts=(layout,), splits={"all": Split()})
    assert preflight(spec, tmp_path, "all") == []


def test_jpegs_that_are_damaged_inside_are_found_by_their_decoder_alone(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    image_path, label = (
        tmp_path / "images/10k/val/a.jpg",
        tmp_path / "labels/sem_seg/masks/val/a.png",
    )
    for path in (image_path, label):
        path.parent.mkdir(parents=True)
    noise = np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)
    Image.fromarray(noise).save(image_path, quality=90)
    grey(label, 1, (64, 96))
    bdd, data = load_spec("bdd100k"), image_path.read_bytes()
    half = len(data) // 2
    image_path.write_bytes(data[:half] + bytes(range(1, 41)) + data[half + 40 :])
    faults = preflight(bdd, tmp_path, "val")
    assert [f.path for f in faults] == [image_path] and "damaged inside (Corrupt" in str(faults[0])
    with pytest.raises(UserError, match="a.jpg: is damaged inside"):
        read_image(image_path)
    image_path.write_bytes(data[:-2] + bytes(9) + data[-2:])  # some cameras fill up with zeros
    assert preflight(bdd, tmp_path, "val") == [] and read_image(image_path).shape == (64, 96, 3)
    assert capfd.readouterr().err == ""
