"""What filters dropped and gave another class: shares by condition and class, from the rows.

A row of a filtered sample has `label_changes`, 3xK pixels of each class of the label before: all,
set to void, given another class. A rejected image (status `withdrawn`) counts as dropped pixels.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from pipeline import labels
from pipeline.iou import percent
from pipeline.rows import is_ok

Row = dict[str, Any]
DIGITS = 2


def by_condition(rows: Iterable[Mapping[str, Any]]) -> dict[str, Row]:
    """Return the shares in percent over `all` rows and for each condition; nothing without rows.

    Rows that no filter wrote are left out.
    """
    filtered = [row for row in rows if row.get("label_changes") is not None]
    groups: dict[str, list[Mapping[str, Any]]] = {"all": filtered} if filtered else {}
    for row in filtered:
        groups.setdefault(str(row.get("condition") or "none"), []).append(row)
    return {name: _group(part) for name, part in groups.items()}


def _group(rows: Sequence[Mapping[str, Any]]) -> Row:
    rejected = [not is_ok(dict(row)) for row in rows]
    changed = np.array([row["label_changes"] for row in rows], np.int64)
    lost = changed[:, 1].copy()
    lost[rejected] = changed[rejected, 0]
    other = changed[:, 2].copy()
    other[rejected] = 0
    whole = changed[:, 0].sum(0)

    def shares(part: np.ndarray) -> dict[str, float | None]:
        pairs = zip(labels.CLASS_NAMES, part.sum(0), whole, strict=True)
        return {name: _rounded(percent(a, b)) for name, a, b in pairs}

    return {
        "images": len(rows),
        "rejected": sum(rejected),
        "dropped": _rounded(percent(lost.sum(), whole.sum())),
        "changed": _rounded(percent(other.sum(), whole.sum())),
        "dropped_by_class": shares(lost),
        "changed_by_class": shares(other),
    }


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, DIGITS)
