"""Rows of an evaluation: one per network, target and image, from which all scores follow.

    scores.json  scores.md  scores.rows.jsonl

A row names its network, target, image id and condition, and holds the counts of the image without
their zeros: `confusion` as [label's class, predicted class, pixels], `boundary` and `objects` as
[class, ...], `calibration` as [bin, ...]. K stands for "other": no class of the target. `label` are
the first digits of the SHA-256 of the label's train ids; two rows of one image agree in it.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline import files
from pipeline.errors import UserError
from pipeline.iou import AREAS
from pipeline.reading import open_regular, parse_json
from pipeline.small_objects import NUM_COUNTS
from segtrain.evaluation.counts import BINS, CALIBRATION, Counts, empty

LONGEST_ROW = 1 << 20  # bytes
MOST_PIXELS = 1 << 40
REMEDY = "run segtrain/score.py again"
DIGITS = 16  # of a label's digest


@dataclass(frozen=True)
class Row:
    """The counts of one image."""

    network: str
    target: str
    id: str
    condition: str
    label: str
    counts: Counts

    def to_json(self) -> dict[str, Any]:
        """Return the row as JSON values without zeros."""
        truth, found = np.nonzero(self.counts.confusion)
        pixels = self.counts.confusion[truth, found]
        return {
            "network": self.network,
            "target": self.target,
            "id": self.id,
            "condition": self.condition,
            "label": self.label,
            "confusion": np.stack([truth, found, pixels], 1).tolist(),
            "boundary": _sparse(self.counts.boundary),
            "objects": _sparse(self.counts.objects),
            "calibration": _sparse(self.counts.calibration.round(3)),
        }


def label_digest(label: np.ndarray) -> str:
    """Return what tells a label's train ids HxW from others."""
    return files.sha256(repr(label.shape).encode() + label.tobytes())[:DIGITS]


def rows_file(scores: Path) -> Path:
    """Return where the rows of a score file lie."""
    return scores.with_name(f"{scores.stem}.rows.jsonl")


def figures_of(scores: Path) -> Path:
    """Return the folder of the figures of a score file."""
    return scores.with_name(f"{scores.stem}.figures")


def _sparse(table: np.ndarray) -> list[list[float]]:
    """Return [column, its values ...] for the columns of a table that are not all zero."""
    kept = np.flatnonzero(table.any(0))
    return [[int(column), *table[:, column].tolist()] for column in kept]


def _dense(entries: Any, depth: int, width: int) -> np.ndarray:
    """Return the table of `_sparse`, or raise `ValueError`."""
    table = np.zeros((depth, width))
    values = np.array(entries, dtype=np.float64).reshape(-1, depth + 1)
    columns = values[:, 0].astype(np.intp)
    sound = np.isfinite(values).all() and (values >= 0).all() and (values < MOST_PIXELS).all()
    if not sound or (columns >= width).any() or len(set(columns.tolist())) < len(columns):
        raise ValueError("counts are not those of its classes")
    table[:, columns] = values[:, 1:].T
    return table


def parse_row(line: bytes, num_classes: dict[str, int]) -> Row:
    """Return a row that may come from strangers; `num_classes` of each target.

    Raises `ValueError` for one that is not what `Row.to_json` gives.
    """
    row = parse_json(line, dict)
    names = ("network", "target", "id", "condition", "label")
    if not all(isinstance(row.get(name), str) for name in names):
        raise ValueError("names of network, target, image or condition are missing")
    if row["target"] not in num_classes:
        raise ValueError(f"target {row['target'][:60]!r} is not in the score file")
    width = num_classes[row["target"]]
    try:
        counts = empty(width)
        pairs = np.array(row["confusion"], dtype=np.int64).reshape(-1, 3)
        if (pairs < 0).any() or (pairs[:, :2] > width).any() or (pairs >= MOST_PIXELS).any():
            raise ValueError("confusion is not that of its classes")
        np.add.at(counts.confusion, (pairs[:, 0], pairs[:, 1]), pairs[:, 2])
        boundary = _dense(row["boundary"], AREAS, width).astype(np.int64)
        objects = _dense(row["objects"], NUM_COUNTS, width).astype(np.int64)
        calibration = _dense(row["calibration"], CALIBRATION, BINS)
    except (KeyError, TypeError, OverflowError) as error:
        raise ValueError(f"counts are missing ({error})") from None
    found = Counts(counts.confusion, boundary, objects, calibration)
    return Row(row["network"], row["target"], row["id"], row["condition"], row["label"], found)


def read_rows(path: Path, num_classes: dict[str, int]) -> Iterator[Row]:
    """Yield the rows of a file, one in memory at a time; raises `UserError` for a broken one."""
    with open_regular(path, REMEDY) as handle:
        for number, line in enumerate(iter(lambda: handle.readline(LONGEST_ROW + 1), b""), 1):
            try:
                if len(line) > LONGEST_ROW:
                    raise ValueError("it is longer than any row")
                yield parse_row(line, num_classes)
            except ValueError as error:
                raise UserError(f"{path}:{number}: broken row ({error}); {REMEDY}") from None
