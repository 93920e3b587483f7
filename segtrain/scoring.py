"""Per-class IoU and mIoU of a trained network on labelled target folders.

Areas are counted and turned into scores by mmsegmentation's own `IoUMetric` functions. Pictures
go one by one through the network, so a score does not depend on batches or processes; each
process takes every k-th picture and areas are summed, so no picture is counted twice. A class
without a pixel in the ground truth has no IoU (null) and is left out of the mean.
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

from pipeline import labels
from pipeline.dataset import Sample, read_pair
from pipeline.errors import UserError
from pipeline.markdown import plain

Predict = Callable[[Path, np.ndarray], np.ndarray]
"""From a picture's path and HxWx3 RGB to HxW train ids."""
AREAS = 4  # intersection, union, prediction, ground truth


def areas_of(prediction: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
    """Return the pixel areas of one picture, 4x19 float64; void pixels are not counted."""
    from mmseg.evaluation import IoUMetric

    areas = IoUMetric.intersect_and_union(prediction, label, labels.NUM_CLASSES, labels.VOID)
    return torch.stack([area.double().cpu() for area in areas])


def score_of(areas: torch.Tensor, pictures: int) -> dict[str, Any]:
    """Turn summed areas 4x19 into percentages: `miou`, `iou` by class, and classes left out."""
    from mmseg.evaluation import IoUMetric

    metrics = IoUMetric.total_area_to_metrics(*areas, metrics=["mIoU"])
    iou = np.where(areas[3].numpy() > 0, np.asarray(metrics["IoU"]) * 100, np.nan)
    present = iou[~np.isnan(iou)]
    named = dict(zip(labels.CLASS_NAMES, iou.tolist(), strict=True))
    return {
        "miou": float(present.mean()) if present.size else None,
        "iou": {name: None if np.isnan(value) else value for name, value in named.items()},
        "absent": [name for name, value in named.items() if np.isnan(value)],
        "pictures": pictures,
    }


def score_target(
    predict: Predict, samples: Sequence[Sample], accelerator: Accelerator, name: str
) -> dict[str, Any]:
    """Score one target folder, and each condition in it where its rows name several."""
    conditions = sorted({str(s.row.get("condition") or "") for s in samples})
    total = torch.zeros(len(conditions), AREAS, labels.NUM_CLASSES, dtype=torch.float64)
    mine = samples[accelerator.process_index :: accelerator.num_processes]
    for sample in tqdm(mine, desc=name, disable=not accelerator.is_main_process, leave=False):
        assert sample.label is not None
        image, ids = read_pair(sample)
        found = predict(sample.image, image)
        if found.shape != ids.shape:
            raise UserError(f"{sample.label}: has shape {ids.shape}, its prediction {found.shape}")
        prediction, label = (torch.from_numpy(a.astype(np.int64)) for a in (found, ids))
        place = conditions.index(str(sample.row.get("condition") or ""))
        total[place] += areas_of(prediction, label)
    total = accelerator.reduce(total.to(accelerator.device), reduction="sum").cpu()
    score = score_of(total.sum(0), len(samples))
    if len(conditions) > 1:
        score["conditions"] = {
            condition or "none": score_of(
                areas, sum(str(s.row.get("condition") or "") == condition for s in samples)
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


def table(scores: dict[str, Any]) -> str:
    """Return the scores as two markdown tables: mIoU by target, and IoU by class."""
    results = scores["checkpoints"]
    columns: list[tuple[str, tuple[str, ...]]] = []
    for target in scores["targets"]:
        columns.append((target, (target,)))
        for condition in results[0]["targets"][target].get("conditions", {}):
            columns.append((f"{target}/{condition}", (target, "conditions", condition)))
    rows = [["mIoU %", *[name for name, _ in columns], "mean"]]
    for result in results:
        cells = [_cell(reduce(getitem, keys, result["targets"])["miou"]) for _, keys in columns]
        rows.append([result["name"], *cells, _cell(result["mean_miou"])])
    by_class = [["IoU %", *[f"{r['name']}: {n}" for r in results for n, _ in columns]]]
    found = [reduce(getitem, keys, r["targets"])["iou"] for r in results for _, keys in columns]
    for name in labels.CLASS_NAMES:
        by_class.append([name, *[_cell(iou[name]) for iou in found]])
    note = "A dash is a class without a pixel in the ground truth; it is left out of the mean."
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
