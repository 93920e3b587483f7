"""Marks that people give to samples of a dataset folder: marks.json, by sample id.

    {"samples": {"00000017": {"excluded": true, "marked": false, "comment": "blurred bus"}}}

`pipeline/browse.py` writes it. Every program that opens the folder leaves excluded samples out.
Rows, images and labels stay as they are, so that an exclusion can be taken back.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipeline import files
from pipeline.errors import UserError
from pipeline.paths import Enclosure, check_stem
from pipeline.reading import read_json

NAME = "marks.json"
REMEDY = "correct it, or move it away to have no marks"
MAX_COMMENT = 2000  # characters


@dataclass(frozen=True)
class Mark:
    """What a person said about one sample."""

    excluded: bool = False
    marked: bool = False
    comment: str = ""


def parse_mark(value: Any) -> Mark:
    """Return the mark of a JSON value, or raise `ValueError` that says what is wrong with it."""
    if not isinstance(value, dict) or not set(value) <= {"excluded", "marked", "comment"}:
        raise ValueError("a mark has the keys excluded, marked and comment")
    mark = Mark(**value)
    if not isinstance(mark.excluded, bool) or not isinstance(mark.marked, bool):
        raise ValueError("excluded and marked are true or false")
    if not isinstance(mark.comment, str) or len(mark.comment) > MAX_COMMENT:
        raise ValueError(f"a comment is text of at most {MAX_COMMENT} characters")
    return mark


def read_marks(folder: Path) -> dict[str, Mark]:
    """Return the marks of a dataset folder by sample id; none where it has no marks.json."""
    path = folder / NAME
    if not path.exists() and not path.is_symlink():
        return {}
    try:
        Enclosure(folder).find(NAME)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    return parse_marks(read_json(path, dict, remedy=REMEDY), str(path))


def parse_marks(content: Mapping[str, Any], where: str) -> dict[str, Mark]:
    """Return the marks of the JSON value of a marks.json; `where` names it in errors."""
    samples = content.get("samples")
    if not isinstance(samples, dict):
        raise UserError(f"{where}: has no mapping `samples`; {REMEDY}")
    marks = {}
    for key, value in samples.items():
        try:
            check_stem(key)
            marks[key] = parse_mark(value)
        except ValueError as error:
            raise UserError(f"{where}: sample {key[:60]!r}: {error}; {REMEDY}") from None
    return marks


def write_marks(folder: Path, marks: Mapping[str, Mark]) -> None:
    """Write the marks of a dataset folder; the file is whole or unchanged.

    What other programs keep beside `samples` stays.
    """
    path = folder / NAME
    others = read_json(path, dict, remedy=REMEDY) if path.exists() else {}
    samples = {key: asdict(mark) for key, mark in sorted(marks.items()) if mark != Mark()}
    files.write_json(path, {**others, "samples": samples})


def excluded(marks: Mapping[str, Mark]) -> frozenset[str]:
    """Return the ids of the samples that marks exclude."""
    return frozenset(key for key, mark in marks.items() if mark.excluded)


def excluded_ids(folder: Path) -> frozenset[str]:
    """Return the ids of the samples of a dataset folder that are excluded."""
    return excluded(read_marks(folder))
