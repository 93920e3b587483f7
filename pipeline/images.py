"""The one reader of image files, and of the pixels of label files: every program uses it.

PNG and JPEG, recognised by their content. What a viewer shows is what is read: the EXIF
orientation is applied, 16-bit colours are scaled to 8 bits, palettes are expanded, and alpha is
dropped, as the readers of the field do. What cannot be read rightly is refused by name: CMYK,
16-bit grey, files cut short, more than `MAX_PIXELS`, and whatever is no regular file.
"""

import contextlib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import numpy as np
from PIL import Image, JpegImagePlugin, PngImagePlugin

from pipeline.errors import UserError
from pipeline.image_files.headers import PNG_MODES, PNG_START, Header, end_is_unclear, parse_header
from pipeline.image_files.jpeg import find_damage
from pipeline.image_files.png import holds_all_rows
from pipeline.reading import open_regular, pointer_remedy, read_bytes, shortened

SUFFIXES = (".png", ".jpg", ".jpeg")  # of files that are looked for, in any case of letters
OTHER_SUFFIXES = (
    ".bmp", ".tif", ".tiff", ".webp", ".gif", ".jfif", ".jp2", ".heic", ".avif", ".ppm", ".exr",
)  # fmt: skip
"""Of image files that are not read, which is to be said."""
MAX_PIXELS = 40_000_000  # refuse decompression bombs well below Pillow's own limit
MAX_BYTES = 512 << 20  # more than MAX_PIXELS of 16-bit RGBA need
RENEW = "re-create or download it again"


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
        header = parse_header(io.BytesIO(data))
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
        header = parse_header(handle)
        check_size(header)
        if end_is_unclear(handle):  # a camera's trailer, or a file that is cut
            handle.seek(0)
            _decoder(handle.read(MAX_BYTES)).load()
    return header


def header_of(data: bytes) -> Header:
    """Return the header of the bytes of a PNG or JPEG; decoders raise all kinds, see `naming`."""
    return parse_header(io.BytesIO(data))


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


def encode_png(array: np.ndarray) -> bytes:
    """Encode HxW ids or HxWx3 RGB (uint8) as PNG bytes that depend on the pixels alone."""
    import io

    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, format="PNG", compress_level=4)
    return buffer.getvalue()
