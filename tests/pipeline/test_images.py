"""The one reader of images and labels: files of every origin, by values known otherwise."""

import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from pipeline import images, labels
from pipeline.dataset import find_images
from pipeline.errors import UserError
from pipeline.image_files import headers
from pipeline.image_files.verdicts import by_content
from pipeline.images import read_image
from pipeline.paths import find_files
from segtrain import transforms

RNG = np.random.default_rng(0)
COLOR = RNG.integers(0, 256, (6, 9, 3), dtype=np.uint8)
GREY = RNG.integers(0, 256, (6, 9), dtype=np.uint8)


def png(array: np.ndarray, **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG", **options)
    return buffer.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def orientation_exif(value: int, order: str = "<") -> bytes:
    """EXIF data with an orientation and nothing else."""
    mark = b"II*\0" if order == "<" else b"MM\0*"
    return mark + struct.pack(f"{order}IHHHIHHI", 8, 1, 0x0112, 3, 1, value, 0, 0)


@pytest.mark.parametrize("value", range(1, 9))
@pytest.mark.parametrize("kind", ["png before", "png behind", "jpeg"])
def test_orientation_is_obeyed_as_viewers_do(kind: str, value: int, tmp_path: Path) -> None:
    path, exif = tmp_path / "a.png", orientation_exif(value, "<>"[value % 2])
    if kind == "jpeg":
        smooth = np.add.outer(np.arange(16) * 8, np.arange(24) * 4).astype(np.uint8)
        Image.fromarray(smooth).save(path, "JPEG", quality=95, exif=b"Exif\0\0" + exif)
    else:
        data, extra = png(COLOR), chunk(b"eXIf", exif)
        place = 33 if kind == "png before" else len(data) - 12
        path.write_bytes(data[:place] + extra + data[place:])
    with Image.open(path) as image:
        image.load()
        expected = np.array(ImageOps.exif_transpose(image).convert("RGB"))
    assert np.array_equal(read_image(path), expected)
    assert images.image_size(path) == expected.shape[1::-1]
    found = transforms.load_image({"img_path": str(path)})["img"]
    assert np.array_equal(found, expected[..., ::-1])


def test_labels_are_turned_like_their_images(tmp_path: Path) -> None:
    data, label = png(GREY % 19), tmp_path / "a.png"
    label.write_bytes(data[:33] + chunk(b"eXIf", orientation_exif(6)) + data[33:])
    assert np.array_equal(labels.read_label(label), np.rot90(GREY % 19, -1))
    found = transforms.load_label({"seg_map_path": str(label), "seg_fields": []})
    assert np.array_equal(found["gt_seg_map"], np.rot90(GREY % 19, -1))


def palette_with_alpha() -> bytes:
    image = Image.fromarray(GREY % 4, mode="P")
    image.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90, 100, 110, 120])
    buffer = io.BytesIO()
    image.save(buffer, "PNG", transparency=bytes([0, 128, 255, 7]))
    return buffer.getvalue()


GREY_AS_COLOR = np.repeat(GREY[..., None], 3, -1)
MODES = {
    "grey": (png(GREY), GREY_AS_COLOR),
    "colour": (png(COLOR), COLOR),
    "alpha is dropped": (png(np.dstack([COLOR, GREY])), COLOR),
    "grey and alpha": (png(np.dstack([GREY, GREY[::-1]])), GREY_AS_COLOR),
    "1 bit": (png(GREY > 99), (GREY_AS_COLOR > 99) * np.uint8(255)),
    "palette with alpha": (
        palette_with_alpha(),
        ((GREY % 4)[..., None] * 30 + np.array([10, 20, 30])).astype(np.uint8),
    ),
}


@pytest.mark.parametrize("kind", MODES)
def test_every_mode_is_read_as_rgb(
    kind: str, tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    data, expected = MODES[kind]
    (tmp_path / "a.png").write_bytes(data)
    found = read_image(tmp_path / "a.png")
    assert found.dtype == np.uint8 and found.flags["C_CONTIGUOUS"]
    assert np.array_equal(found, expected) and not recwarn.list


def test_16_bit_colours_are_scaled_to_8(tmp_path: Path) -> None:
    import cv2

    cv2.imwrite(str(tmp_path / "a.png"), COLOR[..., ::-1].astype(np.uint16) * 257)
    assert np.array_equal(read_image(tmp_path / "a.png"), COLOR)


def test_what_is_left_behind_an_image_is_no_fault(tmp_path: Path) -> None:
    smooth = Image.fromarray(GREY_AS_COLOR)
    for kind in ("PNG", "JPEG"):
        buffer = io.BytesIO()
        smooth.save(buffer, kind)
        path = tmp_path / f"{kind}.jpg"
        path.write_bytes(buffer.getvalue() + b"MotionPhoto_Data" + bytes(20_000))
        assert images.read_header(path).kind == kind and read_image(path).shape == (6, 9, 3)


def cut_behind_header(data: bytes) -> bytes:
    return data[: len(data) // 2]


def stated_size(width: int, height: int) -> bytes:
    data = png(GREY)
    head = b"IHDR" + struct.pack(">II", width, height) + data[24:29]
    return data[:12] + head + struct.pack(">I", zlib.crc32(head)) + data[33:]


def cmyk() -> bytes:
    buffer = io.BytesIO()
    Image.new("CMYK", (8, 8)).save(buffer, "JPEG")
    return buffer.getvalue()


def written(width: int, height: int, kind: int, rows: bytes, interlaced: int = 0) -> bytes:
    """A PNG of 8 bits whose writer put `rows` into it and ended it well."""
    head = struct.pack(">IIBBBBB", width, height, 8, kind, 0, 0, interlaced)
    palette = chunk(b"PLTE", bytes(6)) if kind == 3 else b""
    body = palette + chunk(b"IDAT", zlib.compress(rows))
    return headers.PNG_START + chunk(b"IHDR", head) + body + chunk(b"IEND", b"")


INTERLACED = bytes([0, 1, 0, 5, 0, 2, 0, 6, 0, 3, 4])  # of 2x3 pixels, by ISO/IEC 15948
BAD = {
    "half of the rows": (written(3, 4, 2, bytes([0, *range(9)]) * 2), "rows are missing"),
    "half of the last row": (written(2, 2, 2, bytes(11)), "is truncated"),
    "a pass is missing": (written(2, 3, 0, INTERLACED[:8], 1), "rows are missing"),
    "index beyond the palette": (written(2, 1, 3, bytes([0, 1, 2])), "no colour of its palette"),
    "empty": (b"", "is empty"),
    "text": (b"<html>quota exceeded</html>", "no PNG or JPEG"),
    "cut": (cut_behind_header(png(COLOR)), "is truncated"),
    "no pixel": (stated_size(0, 5), "has 0x5 pixels"),
    "bomb": (stated_size(50_000, 50_000), "has 50000x50000 pixels, more than 40000000"),
    "bomb beyond Pillow": (stated_size(2**31 - 1, 2**31 - 1), "more than 40000000"),
    "16-bit grey": (png(GREY.astype(np.uint16) * 257), "mode I;16; save it as 8-bit RGB"),
    "CMYK": (cmyk(), "mode CMYK; save it as 8-bit RGB"),
    "LFS pointer": (b"version https://git-lfs.github.com/spec/v1\noid x\n", "git lfs pull"),
    "no header chunk": (
        headers.PNG_START + chunk(b"IDAT", b"") + chunk(b"IEND", b""),
        "IHDR",
    ),
    "short header": (headers.PNG_START + chunk(b"IHDR", b"x") + chunk(b"IEND", b""), "IHDR"),
    "pixels damaged": (png(COLOR).replace(b"IDATx", b"IDATy"), "not a readable image"),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_images_are_one_line(kind: str, tmp_path: Path) -> None:
    data, message = BAD[kind]
    (tmp_path / "a.png").write_bytes(data)
    with pytest.raises(UserError, match=f"a.png: .*{message}") as caught:
        read_image(tmp_path / "a.png")
    assert "\n" not in str(caught.value)


def test_rows_that_are_black_or_interlaced_are_no_fault(tmp_path: Path) -> None:
    (tmp_path / "interlaced.png").write_bytes(written(2, 3, 0, INTERLACED, 1))
    assert labels.read_label(tmp_path / "interlaced.png").tolist() == [[1, 2], [3, 4], [5, 6]]
    (tmp_path / "black.png").write_bytes(png(np.zeros((4, 5, 3), np.uint8)))
    assert not read_image(tmp_path / "black.png").any()
    (tmp_path / "road.png").write_bytes(png(np.zeros((4, 5), np.uint8)))
    assert not labels.read_label(tmp_path / "road.png").any()


def test_labels_without_all_rows_are_no_road(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(written(3, 4, 0, bytes([0, 8, 8, 8]) * 2))
    with pytest.raises(UserError, match="a.png: .*rows are missing"):
        labels.read_label(tmp_path / "a.png")


def test_only_regular_files_are_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "gone.png").symlink_to("nowhere")
    (tmp_path / "zero.png").symlink_to("/dev/zero")
    for name in ("pipe", "folder", "gone", "zero", "absent"):
        for read in (read_image, labels.read_label, images.read_header):
            with pytest.raises(UserError, match=f"{name}.png: "):
                read(tmp_path / f"{name}.png")


def test_jpeg_labels_are_refused(tmp_path: Path) -> None:
    Image.fromarray(GREY).save(tmp_path / "a.png", "JPEG")
    with pytest.raises(UserError, match="is a JPEG, which changes ids"):
        labels.read_label(tmp_path / "a.png")


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_damaged_bytes_are_an_image_or_one_line(tmp_path: Path, data: st.DataObject) -> None:
    buffer = io.BytesIO()
    Image.fromarray(COLOR).save(buffer, "JPEG", exif=b"Exif\0\0" + orientation_exif(6))
    whole = bytearray(data.draw(st.sampled_from([png(COLOR), png(GREY), buffer.getvalue()])))
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(whole) - 1))
        whole[place : place + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=4))
    (tmp_path / "a.png").write_bytes(whole)
    for read in (read_image, labels.read_label, images.read_header):
        try:
            found = read(tmp_path / "a.png")
        except UserError as error:
            assert "\n" not in str(error) and str(tmp_path) in str(error)
        else:
            assert read is images.read_header or found.dtype == np.uint8


@settings(deadline=None)
@given(st.binary(max_size=80))
def test_exif_of_strangers_gives_an_orientation(data: bytes) -> None:
    for tiff in (data, b"II*\0" + data, b"MM\0*" + data):
        assert headers.exif_orientation(tiff) in range(1, 9)


def test_hidden_files_are_left_out_and_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ("a.PNG", "b/c.Jpeg", "._a.png", ".ipynb_checkpoints/a.png", "b/.DS_Store", "n.txt")
    for name in names:
        (tmp_path / "set" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "set" / name).write_bytes(png(COLOR))
    found = find_images(tmp_path / "set")
    assert [str(p.relative_to(tmp_path / "set")) for p in found] == ["a.PNG", "b/c.Jpeg"]
    (line,) = capsys.readouterr().err.splitlines()
    assert "left out: ._a.png, .ipynb_checkpoints, b/.DS_Store" in line


def test_images_of_other_kinds_are_left_out_and_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("b.webp", "c.TIF", "d.tif"):
        (tmp_path / name).write_bytes(b"x")
    with pytest.raises(UserError, match=r"no PNG or JPEG file; it holds 3 files .*.tif, .webp"):
        find_images(tmp_path)
    (tmp_path / "a.png").write_bytes(png(COLOR))
    assert [p.name for p in find_images(tmp_path)] == ["a.png"]
    said = capsys.readouterr().err
    assert "left out are 3 files of kinds that are not read (.tif, .webp)" in said


def test_linked_folders_are_followed_once_and_never_upwards(tmp_path: Path) -> None:
    for name in ("set/day/a.png", "elsewhere/b.png", "above.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(png(COLOR))
    (tmp_path / "set/night").symlink_to("../elsewhere")
    (tmp_path / "set/night again").symlink_to("../elsewhere")
    (tmp_path / "elsewhere/loop").symlink_to("../set")
    (tmp_path / "set/up").symlink_to("..")
    (tmp_path / "set/root").symlink_to("/")
    found, hidden = find_files(tmp_path / "set", (".png",))
    assert [p.name for p in found] == ["a.png", "b.png"] and not hidden


def test_a_verdict_is_taken_once_for_each_content() -> None:
    looked_at = []
    check = by_content(lambda data: looked_at.append(data) or len(data))
    assert [check(bytes(data)) for data in (b"aa", b"b", bytearray(b"aa"), b"")] == [2, 1, 2, 0]
    assert looked_at == [b"aa", b"b", b""]
