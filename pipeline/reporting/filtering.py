"""What a filter dropped, and the rounds of a top-up, by condition, from the rows."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from pipeline import label_changes, labels
from pipeline.reporting.sets import MOST_ROWS
from pipeline.rows import is_ok

MOST_ROUNDS = 8  # columns of a table; the last one holds all further rounds

Row = dict[str, Any]


def section(rows: Sequence[Mapping[str, Any]]) -> Row | None:
    """Return what the page shows of filters and top-ups; None for a set without either."""
    found: Row = {"changes": changes(rows), "rounds": rounds(rows)}
    return found if any(found.values()) else None


def changes(rows: Sequence[Mapping[str, Any]]) -> list[Row]:
    """Return one line for all samples and one per condition: images and pixels that fell.

    `cells` are the dropped pixels of each class in percent.
    """
    groups = label_changes.by_condition(rows)
    largest = sorted(groups, key=lambda name: (name != "all", -groups[name]["images"], name))
    kept = sorted(largest[: MOST_ROWS + 1], key=lambda name: (name != "all", name))
    return [
        groups[name]
        | {
            "name": name,
            "cells": [groups[name]["dropped_by_class"][c] for c in labels.CLASS_NAMES],
        }
        for name in kept
    ]


def rounds(rows: Sequence[Mapping[str, Any]]) -> Row | None:
    """Return how many samples each round of a top-up accepted, by condition.

    `lines` hold the numbers of the rounds of `numbers`, then samples that are missing. None if no
    row names a later round than 0.
    """
    known = [row for row in rows if isinstance(row.get("round"), int)]
    highest = max((row["round"] for row in known if is_ok(dict(row))), default=0)
    if not highest:
        return None
    columns = min(highest, MOST_ROUNDS - 1) + 1
    counts: dict[str, Counter[int | str]] = {}
    for row in known:
        what = min(row["round"], columns - 1) if is_ok(dict(row)) else "missing"
        for name in ("all", str(row.get("condition") or "none")):
            counts.setdefault(name, Counter())[what] += 1
    numbers = [str(number) for number in range(columns)]
    if highest >= columns:
        numbers[-1] += " and more"
    largest = sorted(counts, key=lambda name: (name != "all", -counts[name].total(), name))
    lines = [
        {
            "name": name,
            "counts": [counts[name][number] for number in range(columns)],
            "missing": counts[name]["missing"],
        }
        for name in sorted(largest[: MOST_ROWS + 1], key=lambda name: (name != "all", name))
    ]
    return {"numbers": numbers, "lines": lines}
