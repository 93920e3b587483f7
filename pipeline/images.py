"""The one reader of image files, and of the pixels of label files: every program uses it.

PNG and JPEG, recognised by their content. What a viewer shows is what is read: the EXIF
orientation is applied, 16-bit colours are scaled to 8 bits, palettes are expanded, and alpha is
dropped, as the readers of the field do. What cannot be read rightly is refused by name: CMYK,
16-bit grey, files cut short, more than `MAX_PIXELS`, and whatever is no regular file.
"""

import contextlib
import io
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal, cast

import numpy as np
from PIL import Image, JpegImagePlugin, PngImagePlugin

from pipeline.errors import UserError
from pipeline.jpeg_damage import find_damage
from pipeline.png_rows import holds_all_rows
from pipeline.reading import open_regular, pointer_remedy, read_bytes, shortened

SUFFIXES = (".png", ".jpg", ".jpeg")  # of files that are looked for, in any case of letters
OTHER_SUFFIXES = (
    ".bmp", ".tif", ".tiff", ".webp", ".gif", ".jfif", ".jp2", ".heic", ".avif", ".ppm", ".exr",
)  # fmt: skip
"""Of image files that are not read, which is to be said."""
MAX_PIXELS = 40_000_000  # refuse decompression bombs well below Pillow's own limit
MAX_BYTES = 512 << 20  # more than MAX_PIXELS of 16-bit RGBA need
PNG_START, JPEG_START = b"\x89PNG\r\n\x1a\n", b"\xff\xd8"
PNG_MODES = {0: "L", 2: "RGB", 3: "P", 4: "LA", 6: "RGBA"}  # by colour type
JPEG_END = b"\xff\xd9"  # never within compressed data, where ff is followed by 00
END_BYTES = 64  # of a JPEG in which its end mark is looked for before it is decoded
MAX_CHUNKS = 1_000_000  # of a PNG; a chunk is 8 kB and more in real files
ORIENTATION = 0x0112  # EXIF tag
RENEW = "re-create or download it again"


@dataclass(frozen=True)
class Header:
    """What a PNG or JPEG says of itself."""

    kind: Literal["PNG", "JPEG"]
    width: int
    """as shown, that is after the orientation"""
    height: int
    mode: str
    """Pillow's; other than 8 bits a channel are marked, as in "RGB;16", palettes never"""
    orientation: int
    """of EXIF: 1 is upright, 3 turned by half, 5 to 8 have width and height exchanged"""


@contextlib.contextmanager
def naming(path: Path | str, kind: str) -> Iterator[None]:
    """Turn what goes wrong over the bytes of a file into one line that names it.

    A `UserError` within the block says rule and remedy without the name.
    """
    try:
        yield
    except UserError as error:
        raise UserError(f"{shortened(path)}: {error}") from None
    except Exception as error:  # decoders raise all kinds over a stranger's or a damaged file
        hint = pointer_remedy(Path(path)) or f"not a readable {kind} ({_reason(error)}); {RENEW}"
        raise UserError(f"{shortened(path)}: {hint}") from None


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if text.isprintable() and text else type(error).__name__


def read_image(path: Path | str) -> np.ndarray:
    """Read an image file as HxWx3 uint8 RGB, upright, or raise `UserError` naming it."""
    return decode_image(read_file(path), path)


def read_file(path: Path | str) -> bytes:
    """Return the bytes of an image or label file, which must be regular and of sane size."""
    return read_bytes(Path(path), MAX_BYTES, "check the path or re-create the file")


def decode_image(data: bytes, name: Path | str) -> np.ndarray:
    """Return the HxWx3 uint8 RGB pixels of image bytes; `name` is the file for messages."""
    with naming(name, "image"):
        header = _read_header(io.BytesIO(data))
        check_size(header)
        check_image_mode(header.mode)
        check_compressed(header, data)
        return _upright(_rgb(_decoded(data)), header.orientation)


def decode_codes(data: bytes, header: Header, *, colors: bool) -> np.ndarray:
    """Return the HxW or HxWxC pixels of PNG label bytes, upright, as the file holds them.

    Palette indices and grey values are uint8, those of "I;16" and "RGB;16" uint16, never scaled.
    With `colors`: HxW uint32 of r + 256 g + 65536 b. Raises whatever the decoder does;
    `pipeline.labels.read_label` names the file.
    """
    if header.kind != "PNG":
        raise UserError("label is a JPEG, which changes ids; labels are PNG files")
    if header.mode == "RGB;16":  # Pillow keeps the high bytes only
        import cv2

        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
        if pixels is None or not holds_all_rows(data):
            raise ValueError("damaged")
        codes = pixels[..., 2::-1]  # OpenCV has blue first
    elif colors:
        rgba = np.array(_decoded(data).convert("RGBA"))
        codes = rgba.view("<u4")[..., 0] & 0xFFFFFF
    else:
        codes = np.array(_decoded(data))
    return _upright(codes, header.orientation)


def palette_of(data: bytes) -> np.ndarray | None:
    """Return the Nx3 uint8 colours of the bytes of a palette PNG; None: they have no palette."""
    image = _decoder(data)
    colors = image.getpalette() if image.mode == "P" else None
    return np.array(colors, np.uint8).reshape(-1, 3) if colors else None


def read_header(path: Path | str, kind: str = "image") -> Header:
    """Return the header of a whole PNG or JPEG, which is not decoded unless its end is unclear.

    Raises `UserError` naming the file if it is unreadable, cut short, or too large.
    """
    with open_regular(Path(path), "restore or re-create it") as handle, naming(path, kind):
        header = _read_header(handle)
        check_size(header)
        if _end_is_unclear(handle):  # a camera's trailer, or a file that is cut
            handle.seek(0)
            _decoder(handle.read(MAX_BYTES)).load()
    return header


def header_of(data: bytes) -> Header:
    """Return the header of the bytes of a PNG or JPEG; decoders raise all kinds, see `naming`."""
    return _read_header(io.BytesIO(data))


def image_size(path: Path | str) -> tuple[int, int]:
    """Return the (width, height) of an image as it is shown, by its header.

    Raises `UserError` naming it for what `read_image` would refuse by the header.
    """
    header = read_header(path)
    with naming(path, "image"):
        check_image_mode(header.mode)
    return header.width, header.height


def size_of(data: bytes, name: Path | str) -> tuple[int, int]:
    """Return the (width, height) of image bytes as shown; `name` is the file for messages."""
    with naming(name, "image"):
        header = header_of(data)
        check_size(header)
        check_image_mode(header.mode)
    return header.width, header.height


def check_size(header: Header) -> None:
    """Raise a nameless `UserError` for an image of no pixel or of too many."""
    size = f"has {header.width}x{header.height} pixels"
    if header.width * header.height > MAX_PIXELS:
        raise UserError(f"{size}, more than {MAX_PIXELS}; scale it down or remove it")
    if not header.width * header.height:
        raise UserError(f"{size}; {RENEW}")


def check_image_mode(mode: str) -> None:
    """Raise a nameless `UserError` for a mode whose values do not say their colours.

    Those of CMYK need a profile. 16-bit grey comes from cameras of 10 to 16 bits: nobody knows
    which value is white.
    """
    if mode.partition(";")[0] not in PNG_MODES.values():
        raise UserError(f"image has mode {mode}; save it as 8-bit RGB")


def check_compressed(header: Header, data: bytes) -> None:
    """Raise a nameless `UserError` for a JPEG that decoders only guess at; PNGs carry checksums."""
    if header.kind == "JPEG" and (damage := find_damage(data)):
        raise UserError(f"is damaged inside ({damage}); {RENEW}")


def _decoder(data: bytes) -> Image.Image:
    """Return a Pillow image that decodes when it is used.

    Not `Image.open`: it warns of large sizes on stderr, and reads the other images in some JPEGs.
    """
    plugin = (
        PngImagePlugin.PngImageFile if data.startswith(PNG_START) else JpegImagePlugin.JpegImageFile
    )
    return plugin(io.BytesIO(data))


def _decoded(data: bytes) -> Image.Image:
    """Return a decoded Pillow image, all of whose rows are in the file.

    Rows that a PNG lacks stay empty, so that only an empty last row has to be looked into; in an
    interlaced one any rows may be lacking.
    """
    image = _decoder(data)
    image.load()
    if data.startswith(PNG_START):
        last = image.crop((0, image.height - 1, image.width, image.height))
        empty = last.getbbox(alpha_only=False) is None
        if (empty or data[28]) and not holds_all_rows(data):
            raise ValueError("is truncated, rows are missing")
    return image


def _rgb(image: Image.Image) -> np.ndarray:
    if image.mode == "P":  # its transparent colours are colours still
        _, highest = cast("tuple[int, int]", image.getextrema())
        if highest >= len(image.getpalette() or ()) // 3:
            raise ValueError("pixels are of no colour of its palette")
        return np.array(image.convert("RGBA"))[..., :3]
    return np.array(image if image.mode == "RGB" else image.convert("RGB"))  # spares a copy


def _upright(array: np.ndarray, orientation: int) -> np.ndarray:
    """Turn and mirror HxW(xC) stored pixels as EXIF says (CIPA DC-008, tag Orientation)."""
    if orientation >= 5:
        array = array.swapaxes(0, 1)  # 5: mirrored at the main diagonal
    if orientation in (3, 4, 7, 8):  # the first row is at the bottom
        array = array[::-1]
    if orientation in (2, 3, 6, 7):  # the first column is at the right
        array = array[:, ::-1]
    return np.ascontiguousarray(array)


def _read_header(handle: BinaryIO) -> Header:
    start = handle.read(8)
    if start == PNG_START:
        kind: Literal["PNG", "JPEG"] = "PNG"
        width, height, mode, orientation = _walk_png(handle)
    elif start.startswith(JPEG_START):
        handle.seek(0)
        kind = "JPEG"
        image = JpegImagePlugin.JpegImageFile(handle)
        (width, height), mode = image.size, image.mode
        exif = image.info.get("exif", b"")
        orientation = exif_orientation(exif.removeprefix(b"Exif\0\0"))
    else:
        raise ValueError("is empty" if not start else "no PNG or JPEG by its first bytes")
    if orientation >= 5:
        width, height = height, width
    return Header(kind, width, height, mode, orientation)


def _walk_png(handle: BinaryIO) -> tuple[int, int, str, int]:
    """Return width, height, mode and orientation of a PNG, all of whose chunks must be there.

    The orientation may stand behind the pixels. `handle` is behind the signature.
    """
    size = handle.seek(0, os.SEEK_END)
    offset, orientation, found = len(PNG_START), 1, None
    for _ in range(MAX_CHUNKS):
        handle.seek(offset)
        head = handle.read(8)
        if len(head) < 8:
            break
        length, kind = struct.unpack(">I4s", head)
        offset += 12 + length
        if offset > size or not kind.isalpha():
            break
        if (kind == b"IHDR") != (found is None):
            raise ValueError("its first chunk, and no other, must be IHDR")
        if kind == b"IHDR":
            found = _read_png_head(handle.read(length))
        elif kind == b"eXIf":
            orientation = exif_orientation(handle.read(length))
        elif kind == b"IEND":
            assert found is not None
            return *found, orientation
    raise ValueError("is truncated, its end is missing")


def _read_png_head(data: bytes) -> tuple[int, int, str]:
    if len(data) != 13:
        raise ValueError("damaged IHDR")
    width, height, bits, kind = struct.unpack(">IIBB", data[:10])
    mode = PNG_MODES.get(kind, "unknown")
    if bits != 8 and mode != "P":
        mode = "I;16" if (mode, bits) == ("L", 16) else f"{mode};{bits}"
    return width, height, mode


def _end_is_unclear(handle: BinaryIO) -> bool:
    """Tell whether a JPEG's end mark is not among its last bytes; a PNG was walked to its end."""
    handle.seek(0)
    if handle.read(2) != JPEG_START:
        return False
    handle.seek(max(0, handle.seek(0, os.SEEK_END) - END_BYTES))
    return JPEG_END not in handle.read()


def exif_orientation(tiff: bytes) -> int:
    """Return the orientation 1..8 of EXIF data, 1 where it says none or is damaged."""
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(tiff[:4])
    if order is None:
        return 1
    try:
        (offset,) = struct.unpack_from(f"{order}I", tiff, 4)
        (count,) = struct.unpack_from(f"{order}H", tiff, offset)
        for entry in range(offset + 2, offset + 2 + 12 * count, 12):
            tag, kind, number, value = struct.unpack_from(f"{order}HHIH", tiff, entry)
            if tag == ORIENTATION:
                return value if (kind, number) == (3, 1) and 1 <= value <= 8 else 1
    except struct.error:
        pass
    return 1


def encode_png(array: np.ndarray) -> bytes:
    """Encode HxW ids or HxWx3 RGB (uint8) as PNG bytes that depend on the pixels alone."""
    import io

    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, format="PNG", compress_level=4)
    return buffer.getvalue()
