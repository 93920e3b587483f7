"""The pixels of each class in each label, written in our form and in that of DAFormer's readers."""

import contextlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipeline import files, label_spaces, labels
from pipeline.errors import UserError

NUM_LOOKED_AT = 8
MANY_CLASSES = 10  # with ids above 18: a street without any of these is none


def doubt(pixels: np.ndarray, total: int, label_space: str, where: str) -> None:
    """Say on stderr if a label space seems not to be that of the labels it converted.

    `pixels` counts the 19 classes, `total` all pixels. Labels that are train ids already look so
    when they are read as the ids of GTA or Cityscapes: most become void, or only classes whose ids
    are below 19 are ever found. Raises `UserError` if no pixel is of a class.
    """
    share, remedy = pixels.sum() / total, "name the right one by --label-space (train_ids, say)"
    if share < 0.5:
        message = (
            f"{where}: {f'only {share:.1%}' if share else 'none'} of the pixels are of a class, "
            f"the rest is void; label space {label_space} may not be that of these labels, {remedy}"
        )
        if not share:
            raise UserError(message)
        print(f"notice: {message}", file=sys.stderr)
        return
    table = label_spaces.label_space(label_space)
    if table.size > 256:
        return
    low, high = (set(part[part < labels.NUM_CLASSES]) for part in (table[:19], table[19:]))
    absent = sorted(high - low)
    if len(absent) >= MANY_CLASSES and not pixels[absent].any():
        names = ", ".join(labels.CLASS_NAMES[i] for i in absent[:4])
        print(
            f"notice: {where}: no pixel is of {names} or any other class whose id in label space "
            f"{label_space} is above 18; if these labels are train ids already, {remedy}",
            file=sys.stderr,
        )


def count_some(paths: Sequence[Path], table: np.ndarray | None = None) -> tuple[np.ndarray, int]:
    """Return (pixels of each of the 19 classes, all pixels) of a few labels, spread over `paths`.

    `table` is that of their label space. Labels that cannot be read are left to the full check.
    """
    classes, total = np.zeros(labels.NUM_CLASSES, dtype=int), 0
    for path in paths[:: max(1, len(paths) // NUM_LOOKED_AT)][:NUM_LOOKED_AT]:
        with contextlib.suppress(UserError):
            label = labels.read_label(path, table)
            total += label.size
            classes += labels.count_classes(label)
    return classes, total


def require_classes(paths: Sequence[Path], folder: Path | None = None) -> None:
    """Raise `UserError` if a few labels, spread over `paths`, are void alone: nothing to learn.

    `folder` is that of the set, None if it is far away.
    """
    classes, total = count_some(paths)
    if total and not classes.any():
        where = f"{folder}: {paths[0].name} and others" if folder else f"{paths[0]} and others"
        raise UserError(
            f"{where}: no pixel is of a class, all are void; prepare the set again with the right "
            "--label-space of pipeline/prepare.py"
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
