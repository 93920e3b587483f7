"""Published scores, from `published.yaml` beside this file."""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from pipeline.config import from_mapping
from pipeline.errors import UserError
from pipeline.yaml_files import load_yaml

FILE = Path(__file__).with_name("published.yaml")
THREE = ("cityscapes", "bdd100k", "mapillary")
FIVE = (*THREE, "acdc", "dark_zurich")
AVERAGES = {"Avg3": THREE, "Avg5": FIVE}
"""Means of the field: over Cityscapes, BDD100K and Mapillary, and over these and ACDC and Dark
Zurich."""


@dataclass(frozen=True)
class PublishedRow:
    """One row of a paper's table, mIoU in percent by dataset."""

    method: str = ""
    paper: str = ""
    table: str = ""
    read: Literal["authors", "quoted", "recalled", "inferred"] = "quoted"
    scores: dict[str, float] = field(default_factory=dict)
    gains: dict[str, float] = field(default_factory=dict)
    """points over the best method before it, where no score is known"""
    avg3: float | None = None
    avg5: float | None = None

    def value(self, column: str) -> float | None:
        """Return the score of a column: a dataset, Avg3 or Avg5."""
        if column not in AVERAGES:
            return self.scores.get(column)
        stated = self.avg3 if column == "Avg3" else self.avg5
        return average(self.scores, column) if stated is None else stated


@dataclass(frozen=True)
class Group:
    """Rows that share source, backbone and targets."""

    title: str = ""
    rows: tuple[PublishedRow, ...] = ()


@functools.cache
def read_published() -> dict[str, Group]:
    """Return all groups by name."""
    return {
        name: from_mapping(Group, group, f"{FILE}: {name}")
        for name, group in load_yaml(FILE).items()
    }


def groups_of(names: Sequence[str]) -> list[Group]:
    """Return groups by name, or raise `UserError` that lists the known ones."""
    known = read_published()
    if unknown := [name for name in names if name not in known]:
        raise UserError(f"--published {unknown[0]}: not known; use some of {', '.join(known)}")
    return [known[name] for name in names]


def average(scores: Mapping[str, float], column: str) -> float | None:
    """Return Avg3 or Avg5 of scores by dataset, None if one is missing."""
    wanted = AVERAGES[column]
    if any(name not in scores for name in wanted):
        return None
    return sum(scores[name] for name in wanted) / len(wanted)
