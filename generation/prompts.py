"""The prompt grammar: classes, weather, time and place, with a target share per condition.

Words follow the captions the pocket model was trained on; a YAML file replaces them for other
base models.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from pipeline.errors import UserError
from pipeline.labels import CLASS_NAMES, NUM_CLASSES

PLACEHOLDERS = {"classes", "condition", "time", "place"}


@dataclass(frozen=True)
class Condition:
    """One weather or light condition."""

    phrase: str = ""
    """Words put where the template says {condition}."""
    share: float = 1.0
    """Relative share of the samples."""
    times: tuple[str, ...] = ("",)
    """Times of day to choose from, evenly; empty text says nothing."""
    template: str = ""
    """Template of this condition alone; empty is the grammar's."""


def _pocket_conditions() -> dict[str, Condition]:
    day = ("by day",)
    return {
        "clear": Condition("in sunny weather", times=day),
        "overcast": Condition("in overcast weather", times=day),
        "rain": Condition("in rainy weather", times=day),
        "fog": Condition("in foggy weather", times=day),
        "snow": Condition("in snowy weather", times=day),
        "autumn": Condition("in autumn weather", times=day, share=0.5),
        "dusty": Condition("in dusty weather", times=day, share=0.5),
        "film": Condition("as an old photograph", times=day, share=0.5),
        "dawn": Condition("in hazy weather", times=("at dawn",)),
        "dusk": Condition("in clear weather", times=("at dusk",)),
        "night": Condition("in clear weather", times=("at night",)),
        "rainy_night": Condition("in rainy weather", times=("at night",), share=0.5),
        "snowy_night": Condition("in snowy weather", times=("at night",), share=0.5),
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
    places: tuple[str, ...] = POCKET_PLACES
    """Places to choose from, evenly; empty text says nothing."""

    def check(self) -> None:
        """Raise `UserError` for a grammar that cannot be used."""
        if self.max_classes < 0:
            raise UserError(f"prompt.max_classes {self.max_classes}: must be 0 or more")
        if not self.conditions or not self.places:
            raise UserError("prompt: conditions and places must each hold at least one entry")
        for name, condition in self.conditions.items():
            if condition.share < 0 or not condition.times:
                raise UserError(f"prompt.conditions.{name}: share must be 0 or more, times not []")
            template = condition.template or self.template
            used = set(re.findall(r"{(.*?)}", template))
            if used - PLACEHOLDERS:
                raise UserError(
                    f"prompt template {template!r}: knows only {sorted(PLACEHOLDERS)} in braces"
                )
        if sum(c.share for c in self.conditions.values()) <= 0:
            raise UserError("prompt.conditions: at least one share must be above 0")


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


def quota_sequence(shares: Mapping[str, float], n: int, order: np.ndarray) -> list[str]:
    """Deal `n` names so that every prefix is as close to `shares` as whole numbers allow.

    Each step takes the name with the largest deficit, ties by `order` (a permutation of the
    names' positions). Item i does not depend on `n`.
    """
    names = list(shares)
    weights = np.array([shares[name] for name in names], dtype=np.float64)
    weights /= weights.sum()
    rank = np.empty(len(names))
    rank[order] = np.arange(len(names))
    given = np.zeros(len(names))
    dealt = []
    for index in range(n):
        deficit = np.round(weights * (index + 1) - given, 9)
        deficit[weights == 0] = -np.inf
        best = np.flatnonzero(deficit == deficit.max())
        chosen = int(best[np.argmin(rank[best])])
        given[chosen] += 1
        dealt.append(names[chosen])
    return dealt
