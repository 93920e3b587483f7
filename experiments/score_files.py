"""What tables read from the score files of segtrain/score.py."""

from collections.abc import Iterable
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from pipeline.reading import read_json

Scores = dict[str, dict[str, Any]]
"""Entries of a score file, by the name of the network."""


def load(path: Path) -> Scores:
    """Return the entries of a score file by name; empty if the file is absent."""
    return {e["name"]: e for e in read_json(path)["checkpoints"]} if path.exists() else {}


def spread(values: Iterable[float]) -> str:
    """Return `mean ± standard deviation (min to max)`."""
    values = list(values)
    if len(values) == 1:
        return f"{values[0]:.1f}"
    return f"{mean(values):.1f} ± {stdev(values):.1f} ({min(values):.1f} to {max(values):.1f})"
