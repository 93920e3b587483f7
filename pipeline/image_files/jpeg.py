"""Damage inside the compressed data of a JPEG, which decoders pass over.

The library behind every decoder of JPEG decodes any bytes to something, and says on stderr alone
that it had to guess. Pillow drops even that; OpenCV lets it through, so it is listened to here.
"""

import os
import re
import tempfile
import threading

import numpy as np

from pipeline.image_files.verdicts import by_content

END = b"\xff\xd9"
DAMAGE = re.compile(rb"(?:Corrupt JPEG data|Premature end of JPEG)[^\n]*\n?")
SURPLUS = re.compile(rb"(\d+) extraneous bytes before marker 0xd9")
_STDERR = threading.Lock()  # of the process, so that one thread at a time may exchange it


@by_content
def find_damage(data: bytes) -> str:
    """Return what is wrong with the compressed data of a JPEG, empty if nothing is known.

    Zeros before the end mark, with which some cameras fill up a file, are no damage. The data is
    decoded at an eighth of its size, which reads all of it.
    """
    match = DAMAGE.search(_warnings(data))
    if match is None:
        return ""
    surplus = SURPLUS.search(match[0])
    if surplus and _is_padding(data, int(surplus[1])):
        return ""
    return match[0].decode("ascii", "replace").strip()


def _is_padding(data: bytes, length: int) -> bool:
    """Tell whether `length` equal bytes stand before an end mark."""
    return any(data.find(bytes([fill]) * length + END) >= 0 for fill in (0, 255))


def _warnings(data: bytes) -> bytes:
    """Return what decoding writes to stderr; what others write meanwhile reaches it later."""
    import cv2

    with _STDERR, tempfile.TemporaryFile() as heard:
        try:
            stderr = os.dup(2)
        except OSError:  # a process without it
            return b""
        try:
            os.dup2(heard.fileno(), 2)
            cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_REDUCED_GRAYSCALE_8)
        except cv2.error:
            pass  # whoever reads the pixels says it
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)
        heard.seek(0)
        text = heard.read()
        if others := DAMAGE.sub(b"", text):
            os.write(2, others)
        return text
