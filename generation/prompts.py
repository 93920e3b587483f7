"""The prompt grammar: classes, weather, time and place, each with target shares.

The defaults are for Stable Diffusion with a ControlNet trained on bare class names. A base model
may bring words of its own (`pipeline/base_defaults.py`), a YAML file may replace them.
"""

import re
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np

from pipeline.captions import CaptionSettings, check_template, drop_empty_parts
from pipeline.errors import UserError

PLACEHOLDERS = ("classes", "condition", "time", "place")
STYLE_TEMPLATE = "{condition} {time}, {place}"
MAX_SHARE = 1e6
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


def _conditions() -> dict[str, Condition]:
    """Return twelve conditions; a quarter of the samples says no weather."""
    return {
        "plain": Condition(share=5.0, template="{classes}"),  # the captions of training
        "sunny": Condition(
            "in sunny weather", 2.0, {"": 2.0, "in the morning": 1.0, "at noon": 1.0}
        ),
        "overcast": Condition("in overcast weather", 2.0),
        "rain": Condition("in rainy weather", 2.0, {"": 3.0, "in the evening": 1.0}),
        "fog": Condition("in foggy weather", 2.0, {"": 3.0, "in the early morning": 1.0}),
        "snow": Condition("in snowy weather", 2.0, {"": 3.0, "in the evening": 1.0}),
        "dawn": Condition("in clear weather", 1.0, {"at dawn": 1.0}),
        "dusk": Condition("in clear weather", 1.0, {"at dusk": 1.0}),
        "night": Condition("in clear weather", 2.0, {"at night": 1.0}),
        "rainy_night": Condition("in rainy weather", 1.0, {"at night": 1.0}),
        "foggy_night": Condition("in foggy weather", 0.5, {"at night": 1.0}),
        "snowy_night": Condition("in snowy weather", 0.5, {"at night": 1.0}),
    }


PLACES = {
    "": 4.0, "in a city centre": 2.0, "in a suburb": 2.0, "in a village": 1.0,
    "on a motorway": 1.0, "in an industrial area": 1.0, "in a mountain town": 1.0,
}  # fmt: skip


@dataclass(frozen=True)
class Grammar(CaptionSettings):
    """How a prompt is put together. Empty parts vanish with their comma."""

    template: str = "a city street scene with {classes}, {condition} {time}, {place}"
    """May name {classes}, {condition}, {time} and {place}."""
    conditions: dict[str, Condition] = field(default_factory=_conditions)
    """Conditions by name."""
    places: dict[str, float] = field(default_factory=lambda: dict(PLACES))
    """Places and their relative shares; a list means even ones, empty text says nothing."""

    def check(self, prefix: str = "prompt.") -> None:
        """Raise `UserError` for a grammar that cannot be used."""
        super().check(prefix)
        shares = {name: condition.share for name, condition in self.conditions.items()}
        _check_shares("prompt.conditions", shares)
        _check_shares("prompt.places", self.places)
        for name, condition in self.conditions.items():
            _check_shares(f"prompt.conditions.{name}.times", condition.times)
            check_template("prompt template", condition.template or self.template, PLACEHOLDERS)


def _check_shares(where: str, shares: Mapping[str, float]) -> None:
    for name, share in shares.items():
        if not isinstance(name, str):
            raise UserError(f"{where}: {name!r}: names are text; put it in quotes")
        if not 0 <= share <= MAX_SHARE:
            raise UserError(
                f"{where}: the share of {name!r} is {share}; it must be 0..{MAX_SHARE:g}"
            )
    if sum(shares.values()) <= 0:
        raise UserError(f"{where}: at least one share must be above 0")


def join_classes(label: np.ndarray, grammar: Grammar, rng: np.random.Generator) -> str:
    """Return the class part for an HxW map of train ids: names in train id order, void skipped."""
    return grammar.join_class_names(grammar.sample_classes(label, rng))


def render_prompt(grammar: Grammar, classes: str, *, condition: str, time: str, place: str) -> str:
    """Fill the template of condition `condition` (a name) with the other parts (words)."""
    chosen = grammar.conditions[condition]
    template = chosen.template or grammar.template
    if not classes:  # void alone: nothing is there to be "with"
        template = re.sub(r"\bwith {classes}", "", template)
    return _fill(template, classes=classes, condition=chosen.phrase, time=time, place=place)


def render_style(grammar: Grammar, *, condition: str, time: str, place: str) -> str:
    """Return what the prompt of condition `condition` (a name) says of weather, time and place.

    What its template does not name is left out.
    """
    chosen = grammar.conditions[condition]
    parts = {"condition": chosen.phrase, "time": time, "place": place}
    template = chosen.template or grammar.template
    named = {name: text if f"{{{name}}}" in template else "" for name, text in parts.items()}
    return _fill(STYLE_TEMPLATE, **named)


def _fill(template: str, **parts: str) -> str:
    return drop_empty_parts(re.sub(r"{(\w+)}", lambda found: parts[found[1]], template))


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
