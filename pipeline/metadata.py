"""Rows of `metadata*.jsonl`: the one parser, and the one rule for what a row may hold.

A row is one line of JSON about one sample. Every reader and writer of rows comes through here:
the strict view `read_rows` of programs that use a dataset folder, the forensic one of
`pipeline.rows`, and generation's incremental one.
"""

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from pipeline import files, images, labels
from pipeline.errors import UserError
from pipeline.paths import Enclosure, check_relative, check_stem
from pipeline.reading import parse_json, read_bytes, shortened, whole_text

MAX_METADATA_BYTES = 8 << 30
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
    "evaluations": (_is_count, "a whole number, 0 or more"),
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
        hint = ", as those of a Hugging Face imagefolder, which is no dataset folder"
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


def metadata_files(folder: Path) -> list[Path]:
    """Return the metadata files of a folder, of which there must be at least one.

    Raises `UserError` where there is none, or where one is a link that leads out of the folder.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such dataset folder; check the path or create it first")
    paths = sorted(folder.glob("metadata*.jsonl"))
    if not paths:
        raise UserError(f"{folder}: has no metadata.jsonl; is this a dataset folder?")
    enclosure = Enclosure(folder)
    for path in paths:
        try:
            enclosure.find(path.name)
        except UserError as error:
            raise UserError(f"{path}: {error}") from None
    return paths


def is_dataset(folder: Path) -> bool:
    """Tell whether a folder has rows, sound or not."""
    return any(folder.glob("metadata*.jsonl"))


def read_lines(path: Path) -> Iterator[tuple[int, bytes, bool]]:
    """Yield number, content, and whether a newline ends it, of the lines of a metadata file."""
    lines = read_bytes(path, MAX_METADATA_BYTES).split(b"\n")
    for number, line in enumerate(lines, start=1):
        if number < len(lines) or line:
            yield number, line, number < len(lines)


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


def read_rows(folder: Path) -> dict[str, dict[str, Any]]:
    """Read the rows of all metadata files, by id; a torn last line is ignored.

    Of several rows with one id, the first `ok` row wins, else the last. Raises `UserError` for a
    broken line elsewhere, and for two `ok` rows of one id that name different images. A folder
    without rows gives none.
    """
    rows: dict[str, dict[str, Any]] = {}
    for path in metadata_files(folder) if is_dataset(folder) else ():
        for number, line, ended in read_lines(path):
            try:
                row = parse_row(line)
            except ValueError as error:
                if is_torn(line, ended) or not line.strip():
                    continue  # the writer died here, the sample does not exist
                raise UserError(
                    f"{path}:{number}: broken row, it {error}; {remedy(folder)}"
                ) from None
            other = rows.setdefault(row["id"], row)
            if not is_ok(other):
                rows[row["id"]] = row
            elif is_ok(row) and row["image_file_name"] != other["image_file_name"]:
                raise UserError(
                    f"{path}:{number}: another row has the id {shortened(row['id'], 60)} too, with "
                    f"the image {other['image_file_name']}; give each sample an id of its own"
                )
    return rows


def remedy(folder: Path) -> str:
    """Return what to do about a broken row; a folder of others is never to be repaired by us."""
    if (folder / "run.json").exists():
        return f"run pipeline/verify.py --data {folder} --repair"
    return f"correct it, {GUIDE}"


def repair_tail(path: Path) -> None:
    """Cut a torn last line that a killed writer left, so that appending starts cleanly."""
    if not path.exists():
        return
    data = path.read_bytes()
    whole = data.rfind(b"\n") + 1
    if whole < len(data):
        os.truncate(path, whole)
        files.sync_file(path)
