"""Rows of a scoring in progress, so that a stopped one continues where it was.

    scores.rows.jsonl.part-000 (of the first process), scores.rows.jsonl.part-001, ...

A line is the key of an image under a network, a digest of the row, and the row. A key is a digest
of all that the row follows from: network, settings, classes of the set, files of the image. An
image whose row is there under its key is not predicted again, by whichever number of processes. The
files are removed when the scores are written.
"""

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pipeline import files
from pipeline.config import digest
from pipeline.errors import UserError
from pipeline.metadata import repair_tail
from pipeline.reading import open_regular
from pipeline.score_rows import state_of
from segtrain.evaluation.rows import LONGEST_ROW, REMEDY, Row, parse_row, rows_file
from segtrain.evaluation.targets import Target

LINE = re.compile(rb"([0-9a-f]{16}) ([0-9a-f]{16}) (.+)\n")
ALL_IDS = np.arange(256, dtype=np.uint8)


class Place(NamedTuple):
    """Where a row lies: `num_bytes` from `start` on in a file."""

    path: Path
    start: int
    num_bytes: int


def part_file(scores: Path, index: int) -> Path:
    """Return where process `index` collects its rows until all are merged."""
    path = rows_file(scores)
    return path.with_name(f"{path.name}.part-{index:03d}")


def part_files(scores: Path) -> list[Path]:
    """Return the files of all processes, of an earlier start too."""
    path = rows_file(scores)
    return sorted(p for p in path.parent.iterdir() if p.name.startswith(f"{path.name}.part-"))


def row_keys(
    network: Mapping[str, Any], target: Target, predicted: Mapping[Path, Path]
) -> dict[str, str]:
    """Return the keys of a target's images under a network, by sample id.

    `network` is what identifies network and settings, `predicted` the file of each image where
    predictions are scored.
    """
    protocol = target.protocol
    classes = [protocol.class_names, protocol.merge(ALL_IDS).tolist()]
    of_set = digest([network, target.name, classes, protocol.low_px, protocol.high_px])
    keys = {}
    for sample in target.samples:
        found = predicted[sample.image].stat() if predicted else None
        prediction = [found.st_size, found.st_mtime_ns] if found else []
        condition = sample.condition
        state = sample.state or state_of(sample)
        keys[sample.id] = digest([of_set, sample.id, condition, state, prediction])
    return keys


class Part:
    """The rows of all processes by key, of which process `index` adds to its own file; a context.

    A file without any row is removed.
    """

    def __init__(self, scores: Path, index: int) -> None:
        self.scores, self.path = scores, part_file(scores, index)

    def __enter__(self) -> "Part":
        files.make_folder(self.path.parent)
        repair_tail(self.path)
        self._places = index_parts(self.scores)
        self._handle = open(self.path, "ab")
        return self

    def find(self, key: str, num_classes: dict[str, int]) -> Row | None:
        """Return the row under a key, None where there is none; `num_classes` of each target."""
        place = self._places.get(key)
        return parse_row(_read(place), num_classes) if place else None

    def append(self, key: str, row: Row) -> None:
        """Write a row."""
        data = json.dumps(row.to_json(), sort_keys=True).encode()
        self._handle.write(f"{key} {_digest(data)} ".encode() + data + b"\n")
        self._handle.flush()  # so that a kill loses no row

    def __exit__(self, *_: object) -> None:
        self._handle.close()
        if not self.path.stat().st_size:
            self.path.unlink()


def _digest(data: bytes) -> str:
    return files.sha256(data)[:16]


def index_parts(scores: Path) -> dict[str, Place]:
    """Return where rows lie, by key; a line that is cut or damaged is none."""
    places: dict[str, Place] = {}
    for path in part_files(scores):
        start = 0
        with open_regular(path, REMEDY) as handle:
            for line in iter(lambda: handle.readline(LONGEST_ROW), b""):
                match = LINE.fullmatch(line)
                if match and match[2].decode() == _digest(match[3]):
                    place = Place(path, start + match.start(3), len(match[3]))
                    places[match[1].decode()] = place
                start += len(line)
    return places


def _read(place: Place) -> bytes:
    with open(place.path, "rb") as handle:
        handle.seek(place.start)
        return handle.read(place.num_bytes)


def merge(scores: Path, keys: Iterable[str]) -> None:
    """Put the rows of all processes into one file, in the order of their keys."""
    places = index_parts(scores)
    with files.replacing(rows_file(scores)) as temporary, open(temporary, "wb") as whole:
        for key in keys:
            if key not in places:
                raise UserError(
                    f"{rows_file(scores)}: a row of another process is not there; give all "
                    "processes the same folder for --output, and repeat the command"
                )
            whole.write(_read(places[key]) + b"\n")


def remove_parts(scores: Path) -> None:
    """Remove the files of all processes, once the scores are written."""
    for path in part_files(scores):
        path.unlink()
