"""What a filter dropped and how often samples were generated again, by condition, from the rows."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from pipeline import label_changes, labels
from pipeline.reporting.sets import MOST_ROWS
from pipeline.rows import is_ok

MOST_ATTEMPTS = 8  # columns of a table; the last one holds all further attempts

Row = dict[str, Any]


def section(rows: Sequence[Mapping[str, Any]]) -> Row | None:
    """Return what the page shows of filters and top-ups; None for a set without either."""
    found: Row = {"changes": changes(rows), "attempts": attempts(rows)}
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


def attempts(rows: Sequence[Mapping[str, Any]]) -> Row | None:
    """Return how many samples each attempt gave, by condition; None if all are of the first.

    `lines` hold the numbers of the attempts of `numbers`, then samples that are missing.
    """
    known = [row for row in rows if isinstance(row.get("attempt"), int)]
    highest = max((row["attempt"] for row in known if is_ok(dict(row))), default=0)
    if not highest:
        return None
    columns = min(highest, MOST_ATTEMPTS - 1) + 1
    counts: dict[str, Counter[int | str]] = {}
    for row in known:
        what = min(row["attempt"], columns - 1) if is_ok(dict(row)) else "missing"
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
