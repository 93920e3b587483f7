"""The prompt grammar: classes, weather, time and place, each with target shares.

Words follow the captions the pocket model was trained on; a YAML file replaces them for other
base models.
"""

import re
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np

from pipeline.errors import UserError
from pipeline.labels import CLASS_NAMES, NUM_CLASSES

PLACEHOLDERS = {"classes", "condition", "time", "place"}
Name = TypeVar("Name", bound=Hashable)


@dataclass(frozen=True)
class Condition:
    """One weather or light condition."""

    phrase: str = ""
    """Words put where the template says {condition}."""
    share: float = 1.0
    """Relative share of the samples."""
    times: dict[str, float] = field(default_factory=lambda: {"": 1.0})
    """Times of day and their relative shares; a list means even ones, empty text says nothing."""
    template: str = ""
    """Template of this condition alone; empty is the grammar's."""


def _pocket_conditions() -> dict[str, Condition]:
    day = {"by day": 1.0}
    return {
        "clear": Condition("in sunny weather", times=day),
        "overcast": Condition("in overcast weather", times=day),
        "rain": Condition("in rainy weather", times=day),
        "fog": Condition("in foggy weather", times=day),
        "snow": Condition("in snowy weather", times=day),
        "autumn": Condition("in autumn weather", times=day, share=0.5),
        "dusty": Condition("in dusty weather", times=day, share=0.5),
        "film": Condition("as an old photograph", times=day, share=0.5),
        "dawn": Condition("in hazy weather", times={"at dawn": 1.0}),
        "dusk": Condition("in clear weather", times={"at dusk": 1.0}),
        "night": Condition("in clear weather", times={"at night": 1.0}),
        "rainy_night": Condition("in rainy weather", times={"at night": 1.0}, share=0.5),
        "snowy_night": Condition("in snowy weather", times={"at night": 1.0}, share=0.5),
    }


POCKET_PLACES = (
    "in a city centre", "in a suburb", "in a mountain village", "in an industrial area",
)  # fmt: skip


@dataclass(frozen=True)
class Grammar:
    """How a prompt is put together. Empty parts vanish with their comma."""

    template: str = "a city street scene with {classes}, {condition} {time}, {place}"
    """May name {classes}, {condition}, {time} and {place}."""
    class_separator: str = ", "
    """Between class names."""
    class_last: str = " and "
    """Before the last class name."""
    class_min_share: float = 0.0
    """Classes covering less than this share of the crop are not named."""
    max_classes: int = 4
    """Name at most this many classes, drawn at random per sample; 0 names all."""
    conditions: dict[str, Condition] = field(default_factory=_pocket_conditions)
    """Conditions by name."""
    places: dict[str, float] = field(default_factory=lambda: dict.fromkeys(POCKET_PLACES, 1.0))
    """Places and their relative shares; a list means even ones, empty text says nothing."""

    def check(self) -> None:
        """Raise `UserError` for a grammar that cannot be used."""
        if self.max_classes < 0:
            raise UserError(f"prompt.max_classes {self.max_classes}: must be 0 or more")
        shares = {name: condition.share for name, condition in self.conditions.items()}
        _check_shares("prompt.conditions", shares)
        _check_shares("prompt.places", self.places)
        for name, condition in self.conditions.items():
            _check_shares(f"prompt.conditions.{name}.times", condition.times)
            template = condition.template or self.template
            used = set(re.findall(r"{(.*?)}", template))
            if used - PLACEHOLDERS:
                raise UserError(
                    f"prompt template {template!r}: knows only {sorted(PLACEHOLDERS)} in braces"
                )


def _check_shares(where: str, shares: Mapping[str, float]) -> None:
    for name, share in shares.items():
        if not 0 <= share < float("inf"):
            raise UserError(f"{where}: the share of {name!r} is {share}; it must be 0 or more")
    if sum(shares.values()) <= 0:
        raise UserError(f"{where}: at least one share must be above 0")


def join_classes(label: np.ndarray, grammar: Grammar, rng: np.random.Generator) -> str:
    """Return the class part for an HxW map of train ids: names in train id order, void skipped."""
    counts = np.bincount(label.ravel(), minlength=256)[:NUM_CLASSES]
    present = np.flatnonzero((counts > 0) & (counts >= grammar.class_min_share * label.size))
    if grammar.max_classes and present.size > grammar.max_classes:
        present = np.sort(rng.choice(present, grammar.max_classes, replace=False))
    names = [CLASS_NAMES[i] for i in present]
    if len(names) < 2:
        return "".join(names)
    return grammar.class_separator.join(names[:-1]) + grammar.class_last + names[-1]


def render_prompt(grammar: Grammar, classes: str, *, condition: str, time: str, place: str) -> str:
    """Fill the template of condition `condition` (a name) with the other parts (words)."""
    chosen = grammar.conditions[condition]
    parts = {"classes": classes, "condition": chosen.phrase, "time": time, "place": place}
    text = re.sub(r"{(\w+)}", lambda found: parts[found[1]], chosen.template or grammar.template)
    text = re.sub(r"\s+", " ", text)
    text = re.sub(r"( ?,)+", ",", text)
    return text.strip(" ,")


def quota_sequence(shares: Mapping[Name, float], n: int, order: np.ndarray) -> list[Name]:
    """Deal `n` names so that every prefix is as close to `shares` as whole numbers allow.

    The k-th turn of a name with share w is due at (k + 1/2) / w, ties go by `order` (a permutation
    of the names' positions). Item i does not depend on `n`. Webster's method of apportionment.
    """
    names = list(shares)
    weights = np.array([shares[name] for name in names], dtype=np.float64)
    weights /= weights.sum()
    rank = np.argsort(order)
    turns = [np.arange(int(w * (n + len(names))) + 2 if w else 0) for w in weights]
    due = np.concatenate([(k + 0.5) / w for k, w in zip(turns, weights, strict=True)])
    whose = np.repeat(np.arange(len(names)), [k.size for k in turns])
    first = np.lexsort((rank[whose], np.round(due, 6)))[:n]
    return [names[i] for i in whose[first].tolist()]
