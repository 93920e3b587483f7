"""Per-class IoU and mIoU of a trained network on labelled target folders.

The rule is that of `pipeline.iou`. Pictures go one by one through the network, so a score does not
depend on batches or processes; each process takes every k-th picture.
"""

from collections.abc import Callable, Sequence
from functools import reduce
from operator import getitem
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from tqdm import tqdm

from pipeline.dataset import Sample, read_pair
from pipeline.errors import UserError
from pipeline.iou import AREAS, areas_of, score_of
from pipeline.markdown import plain
from segtrain.protocol import Protocol

Predict = Callable[[Path, np.ndarray], np.ndarray]
"""From a picture's path and HxWx3 RGB to HxW train ids."""


def score_target(
    predict: Predict,
    samples: Sequence[Sample],
    accelerator: Accelerator,
    name: str,
    protocol: Protocol | None = None,
) -> dict[str, Any]:
    """Score one target folder, and each condition in it where its rows name several.

    A set that has fewer classes than 19 is scored in its own: `protocol` says what they hold.
    """
    protocol = protocol or Protocol()
    names = protocol.class_names
    conditions = sorted({str(s.row.get("condition") or "") for s in samples})
    total = np.zeros((len(conditions), AREAS, len(names)), dtype=np.int64)
    mine = samples[accelerator.process_index :: accelerator.num_processes]
    for sample in tqdm(mine, desc=name, disable=not accelerator.is_main_process, leave=False):
        assert sample.label is not None
        image, ids = read_pair(sample)
        found = predict(sample.image, image)
        if found.shape != ids.shape:
            raise UserError(
                f"{sample.label}: has shape {ids.shape}, its prediction {found.shape}; predict the "
                "pictures of this folder again"
            )
        place = conditions.index(str(sample.row.get("condition") or ""))
        total[place] += areas_of(protocol.merge(found), protocol.merge(ids), len(names))
    summed = torch.from_numpy(total).to(accelerator.device)
    total = accelerator.reduce(summed, reduction="sum").cpu().numpy()
    score = score_of(total.sum(0), len(samples), names)
    if len(conditions) > 1:
        score["conditions"] = {
            condition or "none": score_of(
                areas, sum(str(s.row.get("condition") or "") == condition for s in samples), names
            )
            for condition, areas in zip(conditions, total, strict=True)
        }
    return score


def mean_miou(targets: dict[str, Any]) -> float | None:
    """Return the mean mIoU over target folders; each counts once, conditions do not count."""
    values = [score["miou"] for score in targets.values() if score["miou"] is not None]
    return sum(values) / len(values) if values else None


def unique_names(folders: Sequence[Path]) -> list[str]:
    """Name folders by their last part, or by the whole path where that is not unique."""
    names = [folder.resolve().name for folder in folders]
    return [
        name if names.count(name) == 1 else str(folder)
        for name, folder in zip(names, folders, strict=True)
    ]


def _cell(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def _mean_cell(score: dict[str, Any]) -> str:
    """Return an mIoU with the number of classes it is a mean of."""
    return f"{_cell(score['miou'])} ({score['num_classes']})"


def table(scores: dict[str, Any]) -> str:
    """Return the scores as two markdown tables: mIoU by target, and IoU by class."""
    results = scores["checkpoints"]
    columns: list[tuple[str, tuple[str, ...]]] = []
    for target in scores["targets"]:
        columns.append((target, (target,)))
        for condition in results[0]["targets"][target].get("conditions", {}):
            columns.append((f"{target}/{condition}", (target, "conditions", condition)))
    rows = [["mIoU % (classes)", *[name for name, _ in columns], "mean"]]
    for result in results:
        cells = [_mean_cell(reduce(getitem, keys, result["targets"])) for _, keys in columns]
        rows.append([result["name"], *cells, _cell(result["mean_miou"])])
    by_class = [["IoU %", *[f"{r['name']}: {n}" for r in results for n, _ in columns]]]
    found = [reduce(getitem, keys, r["targets"])["iou"] for r in results for _, keys in columns]
    for name in dict.fromkeys(name for iou in found for name in iou):
        by_class.append([name, *[_cell(iou.get(name)) for iou in found]])
    note = (
        "In brackets: the number of classes in the mean. A dash is a class that is neither in the "
        "labels nor predicted; it is left out. One that is predicted but in no label counts as 0."
    )
    return f"{_markdown(rows)}\n\n{_markdown(by_class)}\n\n{note}"


def _markdown(rows: list[list[str]]) -> str:
    """Return a table; names of folders and conditions, first in rows and columns, stay text."""
    rows = [[plain(names[0]), *names[1:]] for names in rows]
    rows[0] = [rows[0][0], *map(plain, rows[0][1:])]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]

    def line(cells: list[str]) -> str:
        first = cells[0].ljust(widths[0])
        rest = [cell.rjust(width) for cell, width in zip(cells[1:], widths[1:], strict=True)]
        return "| " + " | ".join([first, *rest]) + " |"

    rule = "|" + "|".join("-" * (w + 1) + (":" if i else "-") for i, w in enumerate(widths)) + "|"
    return "\n".join([line(rows[0]), rule, *[line(row) for row in rows[1:]]])
