"""The named sets of a training: where each comes from, how often, at which scale.

A recipe's `sets` names what it knows to handle: `source`, `generated`, `target` (unlabelled
images of self-training) and any other. A set's entry says what differs from `train_pipeline`:

    sets = dict(source=dict(scale_factor=1280 / 1914), generated=dict(scale_factor=1.0))

`scale_factor` is the scale at which objects of the set appear, a factor on the pixels of its files
or a range of factors; `pipeline` gives the set a geometry and augmentation of its own. The command
line says which folder a name stands for, and its share.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from pipeline.errors import UserError

SOURCE, GENERATED, TARGET = "source", "generated", "target"
OPTIONS = ("pipeline", "scale_factor")


@dataclass(frozen=True)
class NamedSet:
    """A labelled folder, and the probability that a sample comes from it."""

    name: str
    folder: Path
    share: float


@dataclass(frozen=True)
class SelfTraining:
    """Settings of the training on unlabelled images."""

    target: Path | None = None
    """folder of unlabelled images; each batch has as many of them as labelled ones"""
    start: int = 0
    """updates on labelled images only, before the EMA teacher assigns pseudo-labels"""
    ema_decay: float = 0.999
    """decay of the moving average of the trained weights, which is the teacher"""
    confidence: float = 0.968
    """smallest probability of the teacher's prediction at which a pixel gets a pseudo-label"""

    def check(self) -> None:
        """Raise `UserError` for a value out of range, or one that nothing reads."""
        for name in ("ema_decay", "confidence"):
            if not 0 <= getattr(self, name) < 1:
                setting = f"--self-training.{name.replace('_', '-')}"
                raise UserError(f"{setting}: must be at least 0 and below 1")
        if self.start < 0:
            raise UserError(f"--self-training.start {self.start}: must be 0 or more")
        changed = [
            field.name for field in fields(self) if getattr(self, field.name) != field.default
        ]
        if changed and self.target is None:
            setting = f"--self-training.{changed[0].replace('_', '-')}"
            raise UserError(f"{setting} needs --self-training.target DIR")


def named_sets(
    source: Path, generated: Path | None, generated_share: float, more: Sequence[str]
) -> list[NamedSet]:
    """Return the sets of a training, the source, which takes the rest of the shares, last.

    `more`: further sets as NAME=FOLDER:SHARE. Raises `UserError` unless shares and sets agree.
    """
    _check_generated(generated, generated_share)
    sets = [NamedSet(GENERATED, generated, generated_share)] if generated else []
    sets += [_parse(text) for text in more]
    names = [one.name for one in sets]
    for one in sets:
        if one.name in (SOURCE, TARGET) or names.count(one.name) > 1:
            raise UserError(f"--sets {one.name}: the name is taken; give each set its own")
    rest = 1 - math.fsum(one.share for one in sets)
    if rest < -1e-9:
        shares = ", ".join(f"{one.name} {one.share:g}" for one in sets)
        raise UserError(f"shares {shares}: must add up to 1 or less; the source takes the rest")
    return [*sets, NamedSet(SOURCE, source, max(rest, 0.0))]


def _check_generated(generated: Path | None, share: float) -> None:
    if not 0 <= share <= 1:
        raise UserError(f"--generated-share {share}: must be within 0..1")
    if generated is None and share > 0:
        raise UserError(f"--generated-share {share} needs --generated DIR")
    if generated is not None and share == 0:
        raise UserError("--generated is given but --generated-share is 0; raise it or drop the set")


def _parse(text: str) -> NamedSet:
    name, equals, place = text.partition("=")
    folder, colon, number = place.rpartition(":")
    try:
        share = float(number)
    except ValueError:
        share = math.nan
    if not (name.isidentifier() and equals and colon and folder and 0 < share <= 1):
        raise UserError(
            f"--sets {text}: must be NAME=FOLDER:SHARE, the share above 0 and at most 1, for "
            "example urbansyn=runs/data/urbansyn:0.25"
        )
    return NamedSet(name, Path(folder), share)


def set_options(recipe: Any, name: str) -> dict[str, Any]:
    """Return the `pipeline` (and `scale_factor`, if the set has one) of a named set.

    Raises `UserError` if the recipe says nothing about the set: objects at a wrong scale would go
    unnoticed.
    """
    sets = recipe.get("sets")
    if sets is None and name == SOURCE:
        return {"pipeline": recipe["train_pipeline"]}
    if not isinstance(sets, dict) or not isinstance(sets.get(name), dict):
        known = ", ".join(sets) if isinstance(sets, dict) else "none"
        raise UserError(
            f"recipe: sets has no {name} (known: {known}); add {name}=dict(scale_factor=...), the "
            "size of its objects at the network by that in its files"
        )
    if unknown := sorted(set(sets[name]) - set(OPTIONS)):
        raise UserError(
            f"recipe: sets.{name}: unknown key {unknown[0]!r}; known: {', '.join(OPTIONS)}"
        )
    return {"pipeline": recipe["train_pipeline"], **sets[name]}


def set_pipeline(recipe: Any, name: str) -> list[dict[str, Any]]:
    """Return the transforms of a named set, with its own scale."""
    from segtrain import transforms

    options = set_options(recipe, name)
    steps, scale_factor = options["pipeline"], options.get("scale_factor")
    return transforms.prepare(steps, scale_factor, f"recipe: sets.{name}")


def declared_scale(steps: Sequence[dict[str, Any]]) -> tuple[float, float] | None:
    """Return (low, high) of the factor of a pipeline's resize; None where a stock one decides."""
    from segtrain import transforms

    found = [
        step
        for step in transforms.all_steps(list(steps))
        if step["type"] in (transforms.RESIZE, *transforms.STOCK_RESIZES)
    ]
    if not found:
        return (1.0, 1.0)
    if len(found) > 1 or found[0]["type"] != transforms.RESIZE:
        return None
    return transforms.scale_range(found[0].get("scale_factor", 1.0), transforms.RESIZE)
