"""The pixels of each class in each label, written in our form and in that of DAFormer's readers."""

import contextlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipeline import files, labels
from pipeline.errors import UserError

NUM_LOOKED_AT = 8


def count_some(paths: Sequence[Path], table: np.ndarray | None = None) -> tuple[int, int]:
    """Return (pixels of a class, all pixels) of a few labels, spread over `paths`.

    `table` is that of their label space. Labels that cannot be read are left to the full check.
    """
    classes = total = 0
    for path in paths[:: max(1, len(paths) // NUM_LOOKED_AT)][:NUM_LOOKED_AT]:
        with contextlib.suppress(UserError):
            label = labels.read_label(path, table)
            total += label.size
            classes += int(labels.count_classes(label).sum())
    return classes, total


def require_classes(paths: Sequence[Path]) -> None:
    """Raise `UserError` if a few labels, spread over `paths`, are void alone: nothing to learn."""
    classes, total = count_some(paths)
    if total and not classes:
        raise UserError(
            f"{paths[0]} and others: no pixel is of a class, all are void; were these labels "
            "converted with the right --label-space of pipeline/prepare.py?"
        )


def write_class_stats(folder: Path, rows: list[dict[str, Any]]) -> None:
    """Write the class pixels of all samples together and of each one."""
    counts = {row["id"]: row["class_pixels"] for row in rows}
    stats = {
        "classes": list(labels.CLASS_NAMES),
        "pixels": [sum(column) for column in zip(*counts.values(), strict=True)],
        "samples": counts,
    }
    files.write_changed(folder / "class_stats.json", json.dumps(stats).encode())


def write_field_stats(folder: Path, counts: Iterable[tuple[str, Sequence[int]]]) -> None:
    """Write the three JSONs that DAFormer, HRDA and DGInStyle sample rare classes from.

    `counts` has the name of each label below `folder` and its pixels of the 19 classes. The
    readers match samples by the last part of a name.
    """
    stats, by_file, holders = [], {}, {}
    for name, class_pixels in counts:
        pixels = {str(c): int(n) for c, n in enumerate(class_pixels) if n}
        stats.append({**pixels, "file": name})
        by_file[name] = pixels
        for c, n in pixels.items():
            holders.setdefault(c, []).append([name, n])
    for stem, value in (
        ("sample_class_stats", stats),
        ("sample_class_stats_dict", by_file),
        ("samples_with_class", holders),
    ):
        files.write_changed(folder / f"{stem}.json", json.dumps(value).encode())
