"""A row: one line of JSON about one sample, what it may hold, and how it is written.

Whether a sample is finished is decided by `is_ok` alone: its status is `ok`, or it has none.
"""

import json
from collections.abc import Callable
from typing import Any

from pipeline import files, images, labels
from pipeline.paths import check_relative, check_stem
from pipeline.reading import parse_json, whole_text

MAX_ROW_BYTES = 1 << 20
KINDS = ("label", "image")
STATUSES = ("ok", "failed", "withdrawn")
GUIDE = "datasets/README.md says what a row holds"


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1e15


def _is_count(value: Any) -> bool:
    return _is_number(value) and isinstance(value, int)


def _is_size(value: Any) -> bool:
    return _is_count(value) and 0 < value <= images.MAX_PIXELS


def _is_digest(value: Any) -> bool:
    return isinstance(value, str) and len(value) == 64 and not value.strip("0123456789abcdef")


def _are_class_pixels(value: Any) -> bool:
    whole = isinstance(value, list) and len(value) == labels.NUM_CLASSES
    whole = whole and all(type(n) is int and n >= 0 for n in value)  # the fastest way
    return whole and sum(value) <= images.MAX_PIXELS


def _are_label_changes(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 3 and all(map(_are_class_pixels, value))


def _is_crop(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 4 and all(map(_is_count, value))


FIELDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    **{
        name: (_is_text, "text")
        for name in (
            "prompt", "condition", "look", "error", "digest", "source_label", "original_image",
            "original_label", "row_sha256",
        )
    },
    **{f"{kind}_sha256": (_is_digest, "64 hexadecimal digits") for kind in KINDS},
    **{name: (_is_size, "a number of pixels") for name in ("height", "width")},
    "class_pixels": (_are_class_pixels, f"a list of {labels.NUM_CLASSES} numbers of pixels"),
    "crop": (_is_crop, "a list of top, left, height and width in pixels"),
    "seconds": (_is_number, "a number, 0 or more"),
    **{
        name: (_is_count, "a whole number, 0 or more")
        for name in ("evaluations", "attempt", "round")
    },
    "label_changes": (
        _are_label_changes, f"3 lists of {labels.NUM_CLASSES} numbers of pixels",
    ),
}  # fmt: skip
"""What is read of a row beside id, status and file names; each may be absent or null."""


def parse_row(line: bytes) -> dict[str, Any]:
    """Return the row of a line, or raise `ValueError` that says what is wrong with it."""
    if len(line) > MAX_ROW_BYTES:
        raise ValueError(f"is longer than {MAX_ROW_BYTES} bytes")
    if not line.strip(b" \t\r\0"):
        raise ValueError("is empty")
    try:
        row = parse_json(line, dict)
    except ValueError as error:
        raise ValueError(f"is not a row in JSON ({error})") from None
    check_row(row)
    return row


def check_row(row: dict[str, Any]) -> None:
    """Raise `ValueError` unless the fields that programs read are what they must be.

    An `ok` row names its image; names are plain relative paths and the id is a plain stem.
    """
    if "id" not in row:
        foreign = "file_name" in row or "image" in row
        hint = ", as those of a Hugging Face imagefolder, which is not a dataset folder"
        raise ValueError(f"has no id{hint if foreign else ''}")
    named = {"id": check_stem}
    if row.get("label_file_name") is not None:
        named["label_file_name"] = check_relative
    if is_ok(row):
        if row.get("image_file_name") is None:
            raise ValueError("has no image_file_name")
        named["image_file_name"] = check_relative
    elif row["status"] not in STATUSES:
        raise ValueError(f"has a status other than {', '.join(STATUSES)}")
    for name, check in named.items():
        try:
            check(row[name])
        except ValueError as error:
            raise ValueError(f"has an unfit {name}: {error}") from None
    for name, (fits, what) in FIELDS.items():
        if row.get(name) is not None and not fits(row[name]):
            raise ValueError(f"has an unfit {name}: must be {what}")


def is_ok(row: dict[str, Any]) -> bool:
    """Tell whether a row stands for a finished sample; rows of others may have no status."""
    return row.get("status", "ok") == "ok"


def seal(row: dict[str, Any]) -> dict[str, Any]:
    """Return `row` as JSON gives it back, with a hash of all its other values."""
    text = json.dumps({k: v for k, v in row.items() if k != "row_sha256"})
    plain = json.loads(text)
    if "\\ud" in text:  # a pair of halves, or one alone, which no reader would take
        plain = whole_text(plain)
    return plain | {"row_sha256": files.sha256(json.dumps(plain, sort_keys=True).encode())}


def encode_row(row: dict[str, Any]) -> str:
    """Return the line of a row; a row that no reader would take is a fault of the program."""
    check_row(row)
    return json.dumps(row, sort_keys=True) + "\n"


def is_sealed(row: dict[str, Any]) -> bool:
    """Tell whether the hash of a row is right; rows of others may have none."""
    return "row_sha256" not in row or seal(row)["row_sha256"] == row["row_sha256"]


def is_torn(line: bytes, ended: bool) -> bool:
    """Tell whether a line is the beginning of a row, whose writer was killed."""
    if ended:
        return False
    try:
        json.loads(line)
    except RecursionError:
        return False
    except ValueError:
        return True
    return False


def sample_id(index: int) -> str:
    """Return the file stem of sample `index`."""
    return f"{index:08d}"
