"""Scores of a dataset folder on the page: ranking, groups by condition, IoU of class x condition.

They are what generation/score.py wrote; scores of files that have changed since are left out.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline import labels
from pipeline.dataset import Sample
from pipeline.iou import score_of
from pipeline.reading import expecting, read_json
from pipeline.reporting.images import condition_of
from pipeline.score_rows import Row, rows_of

REMEDY = "run generation/score.py again, into another --output"
STATISTICS = ("brightness", "contrast", "sharpness")
BINS = 20


@dataclass(frozen=True)
class Scores:
    """Scores of samples under one or more segmentation networks."""

    samples: list[Sample]
    """those that have scores"""
    rows: list[Row]
    """one per sample"""
    networks: list[str]
    """that judged every sample"""
    miou: np.ndarray
    """NxS mIoU of each image under each network, percent; NaN where the label is void"""
    areas: np.ndarray
    """SxNx3xK pixels: in both, predicted, labelled"""
    summary: Row
    """what summary.json says, empty without one"""

    @property
    def score(self) -> np.ndarray:
        """N means over the networks; NaN without any."""
        if not self.networks:
            return np.full(len(self.samples), np.nan)
        return self.miou.mean(axis=1)


def read_scores(folder: Path, samples: Sequence[Sample]) -> Scores | None:
    """Read the scores of samples from an output folder of generation/score.py; None if it has none.

    Raises `UserError` for rows that are no scores.
    """
    if not folder.is_dir():
        return None
    rows = rows_of(folder, "data", samples)
    if not rows:
        return None
    current, chosen = [s for s in samples if s.id in rows], list(rows.values())
    with expecting(folder / "data.jsonl", REMEDY):
        networks = sorted(set.intersection(*({*row.get("fidelity", {})} for row in chosen)))
        judged = [[row["fidelity"][name] for name in networks] for row in chosen]
        miou = np.array([[_percent(one["miou"]) for one in row] for row in judged], float)
        areas = np.array([[one["areas"] for one in row] for row in judged], np.int64)
        areas = areas.reshape(len(chosen), len(networks), 3, labels.NUM_CLASSES)
        if (areas < 0).any():
            raise ValueError("negative numbers of pixels")
        for row in chosen:
            if not all(np.isfinite(float(row[name])) for name in STATISTICS):
                raise ValueError("a statistic that is not a number")
            for seen in row.get("attributes", {}).values():
                seen["seen"]
    path = folder / "summary.json"
    summary = read_json(path, dict) if path.is_file() else {}
    return Scores(current, chosen, networks, miou, areas.swapaxes(0, 1), summary)


def _percent(value: Any) -> float:
    """Return a score, NaN for None; `ValueError` unless it lies between 0 and 100."""
    if value is None:
        return float("nan")
    if not 0 <= value <= 100:
        raise ValueError(f"a score of {value}")
    return float(value)


def ranking(scores: Scores, count: int) -> tuple[list[int], list[int]]:
    """Return the positions of the best and of the worst samples, best and worst first."""
    order = np.argsort(scores.score, kind="stable")
    order = order[~np.isnan(scores.score[order])]
    count = min(count, len(order) // 2)
    return order[::-1][:count].tolist(), order[:count].tolist()


def caption(scores: Scores, position: int) -> str:
    """Return the scores of one image in words."""
    parts = [f"{n} {m:.1f}" for n, m in zip(scores.networks, scores.miou[position], strict=True)]
    row = scores.rows[position]
    parts += [f"{name} looks like {a['seen']}" for name, a in row.get("attributes", {}).items()]
    return "mIoU " + ", ".join(parts)


def distribution(scores: Scores) -> list[Row]:
    """Return a histogram of the image scores: from, to, number, height of the bar in percent."""
    known = scores.score[~np.isnan(scores.score)]
    if not known.size:
        return []
    counts, edges = np.histogram(known, BINS, (0, 100))
    bounds = zip(edges[:-1], edges[1:], counts, strict=True)
    return [
        {"low": float(a), "high": float(b), "count": int(n), "bar": 100 * n / counts.max()}
        for a, b, n in bounds
    ]


def groups(scores: Scores, most: int) -> list[Row]:
    """Return one line for all samples and one per condition: means, mIoU, IoU of each class."""
    names = np.array([condition_of(sample) for sample in scores.samples])
    found, counts = np.unique(names, return_counts=True)
    largest = sorted(found[np.argsort(-counts, kind="stable")][:most].tolist())
    lines = [_group("all", np.full(len(names), True), scores)]
    return lines + [_group(name, names == name, scores) for name in largest]


def _group(name: str, members: np.ndarray, scores: Scores) -> Row:
    positions = np.flatnonzero(members).tolist()
    networks = []
    for index, network in enumerate(scores.networks):
        found = score_of(scores.areas[index][members].sum(0), len(positions))
        images = scores.miou[members, index]
        images = images[~np.isnan(images)]
        networks.append(
            {
                "name": network,
                "iou": list(found["iou"].values()),
                "miou": found["miou"],
                "image_mean": float(images.mean()) if images.size else None,
                "image_deviation": float(images.std()) if images.size else None,
                "share": ceiling_share(scores.summary, name, network),
            }
        )
    means = {
        key: float(np.mean([scores.rows[position][key] for position in positions]))
        for key in STATISTICS
    }
    shown = _shown_share(scores, positions)
    return {"name": name, "images": len(positions), "networks": networks, **means, "shown": shown}


def _shown_share(scores: Scores, positions: Sequence[int]) -> dict[str, float]:
    """Return per attribute the percentage of images that show what their row says."""
    correct: dict[str, list[bool]] = {}
    for position in positions:
        row = scores.samples[position].row
        for name, seen in scores.rows[position].get("attributes", {}).items():
            if row.get(name) is not None:
                correct.setdefault(name, []).append(str(row[name]) == seen["seen"])
    return {name: 100 * float(np.mean(values)) for name, values in correct.items()}


def ceiling_share(summary: Mapping[str, Any], group: str, network: str) -> float | None:
    """Return the mIoU of a group as a percentage of the source's, where summary.json says it."""
    part: Any = summary.get("all") if group == "all" else summary.get("conditions")
    for key in (*(() if group == "all" else (group,)), "fidelity", network, "share_of_ceiling"):
        part = part.get(key) if isinstance(part, dict) else None
    return float(part) if isinstance(part, int | float) else None


def distances(summary: Mapping[str, Any]) -> str:
    """Return the distances to a reference set as JSON text, empty if none were measured."""
    found = summary.get("distances")
    return json.dumps(found, indent=2, sort_keys=True)[:20_000] if found else ""
