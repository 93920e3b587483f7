"""Numbers of one dataset folder: classes, conditions, timings, failures, provenance."""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipeline import labels
from pipeline.dataset import Sample
from pipeline.errors import UserError
from pipeline.reading import read_json
from pipeline.reporting.images import condition_of
from pipeline.sample_views import spread

MOST_LABELS_READ = 1000  # where rows do not hold the pixels of their classes
MOST_REASONS = 12
MOST_ROWS = 60  # conditions in a table
RECORD_CHARACTERS = 60_000
LEAST_SHARE = 1e-6  # of pixels; bars are on a logarithmic scale

Row = dict[str, Any]


def class_pixels(samples: Sequence[Sample]) -> tuple[list[Sample], np.ndarray]:
    """Return samples and NxK pixels of each class in them; all of them if the rows say so.

    Else labels are read, of `MOST_LABELS_READ` samples at even distances.
    """
    labelled = [sample for sample in samples if sample.label is not None]
    known = [sample for sample in labelled if sample.row.get("class_pixels") is not None]
    if known and len(known) == len(labelled):
        counts = [sample.class_pixels for sample in known]
        return known, np.array(counts, np.int64)
    chosen, counted = [], []
    for sample in spread(labelled, MOST_LABELS_READ):
        try:
            counted.append(sample.class_pixels)
        except UserError:
            continue  # the sheets say which files cannot be read
        chosen.append(sample)
    return chosen, np.array(counted, np.int64).reshape(-1, labels.NUM_CLASSES)


def _bar(share: float) -> float:
    """Return the width of a bar in percent, logarithmic from `LEAST_SHARE` to 1."""
    if share <= LEAST_SHARE:
        return 0.0
    return round(100 * (1 - np.log10(share) / np.log10(LEAST_SHARE)), 1)


def histogram(pixels: np.ndarray, source: np.ndarray | None) -> list[Row]:
    """Return per class its share of pixels and of images, in the set and in its source.

    Both NxK pixels of the classes; `source` None where none is known.
    """
    sets = [part for part in (pixels, source) if part is not None and len(part)]
    columns = []
    for part in sets:
        share = part.sum(0) / max(1, part.sum())
        held = (part > 0).mean(0)
        columns.append((share, held))
    return [
        {
            "name": name,
            "bars": [
                {"share": float(s[i]), "images": float(h[i]), "width": _bar(float(s[i]))}
                for s, h in columns
            ],
        }
        for i, name in enumerate(labels.CLASS_NAMES)
    ]


def occurrence(samples: Sequence[Sample], pixels: np.ndarray) -> list[Row]:
    """Return per condition the share of its images that hold each class."""
    names = [condition_of(sample) for sample in samples]
    counts = Counter(names)
    kept = sorted(name for name, _ in counts.most_common(MOST_ROWS))
    index = np.array([kept.index(n) if n in counts and n in kept else -1 for n in names])
    return [
        {
            "name": name,
            "images": counts[name],
            "cells": [100 * float(v) for v in (pixels[index == position] > 0).mean(0)],
        }
        for position, name in enumerate(kept)
    ]


def failures(rows: Sequence[Row]) -> list[Row]:
    """Return why rows stand for no finished sample: status, reason, number, most frequent first."""
    counts = Counter(
        (str(row["status"]), str(row.get("error") or "no reason given")[:200])
        for row in rows
        if row.get("status", "ok") != "ok"
    )
    found: list[Row] = [
        {"status": status, "reason": reason, "count": number}
        for (status, reason), number in counts.most_common(MOST_REASONS)
    ]
    if rest := counts.total() - sum(entry["count"] for entry in found):
        found.append({"status": "", "reason": "other reasons", "count": rest})
    return found


def timings(samples: Sequence[Sample]) -> Row | None:
    """Return the time that samples took, in seconds, and when they were generated."""
    known = [(condition_of(s), float(s.row["seconds"])) for s in samples if s.row.get("seconds")]
    if not known:
        return None
    seconds = np.array([value for _, value in known])
    groups: dict[str, list[float]] = {}
    for name, value in known:
        groups.setdefault(name, []).append(value)
    times = sorted(str(s.row["generated_at"]) for s in samples if s.row.get("generated_at"))
    means = {name: float(np.mean(values)) for name, values in groups.items()}
    longest = max(means.values())
    return {
        "samples": len(known),
        "mean": float(seconds.mean()),
        "median": float(np.median(seconds)),
        "slowest": float(np.quantile(seconds, 0.99)),
        "total_h": float(seconds.sum() / 3600),
        "first": times[0] if times else "",
        "last": times[-1] if times else "",
        "conditions": [
            {"name": n, "mean": means[n], "bar": 100 * means[n] / longest}
            for n in sorted(means, key=lambda n: (-len(groups[n]), n))[:MOST_ROWS]
        ],
    }


def provenance(folder: Path, samples: Sequence[Sample]) -> Row:
    """Return what run.json and the rows say about where a set comes from."""
    path = folder / "run.json"
    record = read_json(path, dict) if path.is_file() else {}
    fields = {
        name: str(record[name])[:200]
        for name in ("streetforge", "digest", "commit", "protocol")
        if record.get(name)
    }
    revisions = Counter(
        f"{part} {value}"[:120]
        for sample in samples
        for part, value in _mapping(sample.row.get("revisions")).items()
    )
    text = json.dumps(record.get("config", record), indent=2, sort_keys=True)
    cut = text if len(text) <= RECORD_CHARACTERS else text[:RECORD_CHARACTERS] + "\n..."
    return {
        "fields": {"folder": str(folder), **fields},
        "revisions": revisions.most_common(MOST_REASONS),
        "config": cut if record else "",
    }


def _mapping(value: Any) -> Row:
    return value if isinstance(value, dict) else {}
