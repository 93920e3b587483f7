"""The tables of a score file: mIoU by target, further measures, IoU by class."""

from collections.abc import Mapping
from functools import reduce
from operator import getitem
from typing import Any

from pipeline.markdown import plain
from segtrain.evaluation.tables import Table, interval, number

NOTE = (
    "In brackets: the number of classes in the mean. A dash is a class that is neither in the "
    "labels nor predicted; it is left out. One that is predicted but in no label counts as 0."
)
MEASURES = (
    "Interval: 95 %, over images (bootstrap). Boundary: Boundary IoU within 2 % of the image's "
    "diagonal. Small: components of at most 0.1 % of the image. ECE: expected calibration error."
)
Keys = tuple[str, ...]


def score_tables(scores: dict[str, Any]) -> str:
    """Return the scores of a file as Markdown."""
    parts = [_by_target(scores).markdown()]
    measured = _measures(scores)
    if measured.rows:
        parts += [measured.markdown(), MEASURES]
    parts += [_by_class(scores).markdown(), NOTE]
    notes = selection_notes(
        {result["name"]: result["selection"] for result in scores["checkpoints"]
         if "selection" in result}
    )  # fmt: skip
    return "\n\n".join([*parts, *notes])


def columns_of(scores: dict[str, Any]) -> list[tuple[str, Keys]]:
    """Return the targets and their conditions: title, and where their scores lie in an entry."""
    columns: list[tuple[str, Keys]] = []
    for target in scores["targets"]:
        columns.append((target, (target,)))
        for condition in scores["checkpoints"][0]["targets"][target].get("conditions", {}):
            columns.append((f"{target}/{condition}", (target, "conditions", condition)))
    return columns


def _by_target(scores: dict[str, Any]) -> Table:
    columns = columns_of(scores)
    rows = []
    for result in scores["checkpoints"]:
        found = [reduce(getitem, keys, result["targets"]) for _, keys in columns]
        cells = [f"{number(score['miou'])} ({score['num_classes']})" for score in found]
        rows.append([result["name"], *cells, number(result["mean_miou"])])
    return Table("mIoU", ["mIoU % (classes)", *[name for name, _ in columns], "mean"], rows)


def _measures(scores: dict[str, Any]) -> Table:
    rows = []
    for result in scores["checkpoints"]:
        for target, score in result["targets"].items():
            if "boundary" not in score:  # of a file that an earlier version wrote
                continue
            small = score["small_objects"]
            sure = (result.get("calibration") or {}).get(target)
            rows.append(
                [f"{result['name']}: {target}", number(score["miou"]), interval(score["interval"])]
                + [number(score["boundary"]["miou"]), number(small["miou"])]
                + [number(small["recall"]), number(sure["ece"] if sure else None)]
            )
    header = ["%", "mIoU", "interval", "boundary mIoU", "small mIoU", "small found", "ECE"]
    return Table("Further measures", header, rows)


def _by_class(scores: dict[str, Any]) -> Table:
    columns, results = columns_of(scores), scores["checkpoints"]
    found = [reduce(getitem, keys, r["targets"])["iou"] for r in results for _, keys in columns]
    names = dict.fromkeys(name for iou in found for name in iou)
    header = ["IoU %", *[f"{r['name']}: {name}" for r in results for name, _ in columns]]
    rows = [[name, *[number(iou.get(name)) for iou in found]] for name in names]
    return Table("IoU by class", header, rows)


def selection_notes(selections: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return how the networks of a table were chosen, in words, for the notes below it.

    A table with a network that was chosen on a target opens its notes with a warning.
    """
    notes = []
    for text, names in _grouped(selections).items():
        notes.append(f"Selection of {plain(', '.join(names))}: {plain(text)}.")
    touched = [name for name, chosen in selections.items() if chosen.get("is_target")]
    if touched:
        notes.insert(
            0,
            f"**Not target-blind**: {plain(', '.join(touched))} chosen on a target; these scores "
            "do not measure generalization.",
        )
    return notes


def _grouped(selections: Mapping[str, Mapping[str, Any]]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name, chosen in selections.items():
        found.setdefault(selection_text(chosen), []).append(name)
    return found


def selection_text(chosen: Mapping[str, Any]) -> str:
    """Return how one network was chosen."""
    if chosen.get("rule") != "best":
        return str(chosen.get("rule", "not recorded"))
    text = f"best of {len(chosen['candidates'])} on {chosen['on']}"
    if chosen.get("is_target"):
        text += ", which is a target"
    if broken := [name for name, score in chosen["candidates"].items() if score is None]:
        text += f", without {', '.join(broken)}, whose probabilities are not numbers"
    return text
