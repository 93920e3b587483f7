"""Whether the compressed data of a PNG holds all of its rows.

Pillow leaves the rows that are not there black, in labels the id of road, and says nothing: the
checksums of such a file are right, only its writer stopped early.
"""

import struct
import zlib
from collections.abc import Iterator

from pipeline.image_files.verdicts import by_content

CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # by colour type
PASSES = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2),
          (0, 1, 1, 2))  # fmt: skip
"""Left, top, and steps to the right and down, of interlaced PNGs (ISO/IEC 15948, 8.2)"""
PIECE = 1 << 20  # bytes that are unpacked at a time


@by_content
def holds_all_rows(data: bytes) -> bool:
    """Tell whether the bytes of a PNG, whose chunks are whole, unpack to all of its rows."""
    wanted, unpacker = _num_bytes(data), zlib.decompressobj()
    for packed in _pixel_data(data):
        while packed and wanted > 0:
            wanted -= len(unpacker.decompress(packed, min(PIECE, wanted)))
            packed = unpacker.unconsumed_tail
    return wanted <= 0 or not wanted - len(unpacker.flush())


def _num_bytes(data: bytes) -> int:
    """Return how many bytes the rows have with their filter types, by the header at byte 16."""
    width, height, bits, kind, _, _, interlaced = struct.unpack(">IIBBBBB", data[16:29])
    size = 0
    for left, top, right, down in PASSES if interlaced else ((0, 0, 1, 1),):
        columns, rows = -(-(width - left) // right), -(-(height - top) // down)
        if columns > 0 and rows > 0:
            size += rows * (1 + -(-columns * bits * CHANNELS[kind] // 8))
    return size


def _pixel_data(data: bytes) -> Iterator[bytes]:
    offset = 8
    while offset + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, offset)
        if kind == b"IDAT":
            yield data[offset + 8 : offset + 8 + length]
        offset += 12 + length
