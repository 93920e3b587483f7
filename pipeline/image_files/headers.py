"""Headers of PNG and JPEG files: kind, size, mode, orientation; and whether a file is whole.

Nothing is decoded. `pipeline.images` is the reader for everybody.
"""

import os
import struct
from dataclasses import dataclass
from typing import BinaryIO, Literal

from PIL import JpegImagePlugin

PNG_START, JPEG_START = b"\x89PNG\r\n\x1a\n", b"\xff\xd8"
PNG_MODES = {0: "L", 2: "RGB", 3: "P", 4: "LA", 6: "RGBA"}  # by colour type
JPEG_END = b"\xff\xd9"  # never within compressed data, where ff is followed by 00
END_BYTES = 64  # of a JPEG in which its end mark is looked for before it is decoded
MAX_CHUNKS = 1_000_000  # of a PNG; a chunk is 8 kB and more in real files
ORIENTATION = 0x0112  # EXIF tag


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


def parse_header(handle: BinaryIO) -> Header:
    """Return the header of an open PNG or JPEG; raises `ValueError` and whatever Pillow raises."""
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


def end_is_unclear(handle: BinaryIO) -> bool:
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
