"""Numbers of the report: the table over the targets and the bars per class."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

from pipeline import labels
from pipeline.errors import UserError
from pipeline.reading import read_json

REMEDY = "score again, or move the file away"
BASELINE = "source_only"
ARM_TITLES = {
    "source_only": "source only",
    "source_generated": "source + generated",
    "diffusion": "diffusion backbone, source + generated",
}
BAR_PX, GAP_PX, HEIGHT_PX = 14, 10, 150


@dataclass(frozen=True)
class Cell:
    """A score in percent and its distance to the baseline in points; None is unknown."""

    value: float | None
    delta: float | None


@dataclass(frozen=True)
class Row:
    """One line of the table; `level` 1 is a part of the line above it."""

    name: str
    level: int
    cells: list[Cell]


def read_scores(path: Path) -> dict[str, Any]:
    """Read a score file of segtrain/score.py by arm (checkpoint name); the baseline comes first."""
    if not path.exists():
        return {}
    found: dict[str, Any] = {}
    entries = read_json(path, dict, remedy=REMEDY).get("checkpoints")
    for entry in entries if isinstance(entries, list) and entries else [None]:
        if not _is_checkpoint(entry):
            raise UserError(f"{path}: is not what segtrain/score.py writes; {REMEDY}")
        found[entry["name"]] = entry
    order = [*ARM_TITLES, *found]
    return {arm: found[arm] for arm in dict.fromkeys(order) if arm in found}


def _is_checkpoint(entry: Any) -> TypeGuard[dict[str, Any]]:
    """Tell whether an entry has a name and scores of targets, each a percentage or unknown."""
    if not isinstance(entry, dict) or not isinstance(entry.get("name"), str):
        return False
    targets = entry.get("targets")
    if not isinstance(targets, dict) or not _is_score(entry.get("mean_miou")):
        return False
    parts: list[Any] = list(targets.values())
    for target in targets.values():
        conditions = target.get("conditions") if isinstance(target, dict) else None
        if conditions is not None and not isinstance(conditions, dict):
            return False
        parts += (conditions or {}).values()
    return all(
        isinstance(part, dict)
        and _is_score(part.get("miou"))
        and isinstance(part.get("iou", {}), dict)
        and all(map(_is_score, part.get("iou", {}).values()))
        for part in parts
    )


def _is_score(value: Any) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return value is None or (number and 0 <= value <= 100)


def table(scores: dict[str, Any]) -> list[Row]:
    """Return a line per target, its conditions below it, and the mean over the targets last."""
    rows = []
    names = list(dict.fromkeys(name for s in scores.values() for name in s["targets"]))
    for name in names:
        entries = [s["targets"].get(name, {}) for s in scores.values()]
        rows.append(_row(name, 0, scores, [e.get("miou") for e in entries]))
        parts = dict.fromkeys(part for e in entries for part in e.get("conditions") or {})
        for part in parts if len(parts) > 1 else ():
            values = [(e.get("conditions") or {}).get(part, {}).get("miou") for e in entries]
            rows.append(_row(part, 1, scores, values))
    if rows:
        rows.append(_row("mean", 0, scores, [s.get("mean_miou") for s in scores.values()]))
    return rows


def _row(name: str, level: int, scores: dict[str, Any], values: list[float | None]) -> Row:
    base = values[list(scores).index(BASELINE)] if BASELINE in scores else None
    cells = []
    for arm, value in zip(scores, values, strict=True):
        if value is None or base is None or arm == BASELINE:
            cells.append(Cell(value, None))
        else:
            cells.append(Cell(value, value - base))
    return Row(name, level, cells)


def mean_class_iou(score: dict[str, Any]) -> dict[str, float]:
    """Return the mean IoU of each class in percent over the targets that have it."""
    result = {}
    for name in labels.CLASS_NAMES:
        values = [t.get("iou", {}).get(name) for t in score["targets"].values()]
        known = [v for v in values if v is not None]
        if known:
            result[name] = sum(known) / len(known)
    return result


def class_bars(scores: dict[str, Any], recolored: bool = False) -> dict[str, Any] | None:
    """Lay out one group of bars per class, one bar per arm; sizes in SVG units."""
    if not scores:
        return None
    values = {arm: mean_class_iou(score) for arm, score in scores.items()}
    group_px = BAR_PX * len(scores) + GAP_PX
    bars, names = [], []
    for index, name in enumerate(labels.CLASS_NAMES):
        left = 34 + index * group_px
        names.append({"x": left + (group_px - GAP_PX) / 2, "text": name})
        for number, arm in enumerate(scores):
            value = values[arm].get(name)
            if value is None:
                continue
            height = HEIGHT_PX * value / 100
            bars.append(
                {
                    "x": left + number * BAR_PX,
                    "y": 10 + HEIGHT_PX - height,
                    "height": height,
                    "arm": number,
                    "text": f"{name}, {title(arm, recolored)}: {value:.1f}",
                }
            )
    lines = [{"y": 10 + HEIGHT_PX * (1 - v / 100), "text": v} for v in (0, 25, 50, 75, 100)]
    return {
        "bars": bars, "names": names, "lines": lines, "bar_px": BAR_PX - 2,
        "width": 34 + len(names) * group_px, "height": HEIGHT_PX + 100, "floor": 10 + HEIGHT_PX,
    }  # fmt: skip


def title(arm: str, recolored: bool = False) -> str:
    """Return how an arm is called in the report; `recolored` says what was added to the source."""
    name = ARM_TITLES.get(arm, arm.replace("_", " "))
    return name.replace("+ generated", "+ recoloured source") if recolored else name
