"""The summary of a scoring: groups of rows by condition, classes, and their ceiling."""

from collections.abc import Mapping, Sequence

import numpy as np

from generation.quality import fidelity
from generation.quality.fidelity import Counts, rounded
from pipeline.iou import percent, score_of
from pipeline.labels import CLASS_NAMES
from pipeline.score_rows import Row

STATISTICS = ("brightness", "contrast", "sharpness")
WARNING = (
    "No number here predicts how much a segmentation network gains from the images: sets with the "
    "best realism were not the most useful ones. Compare sets by training on them."
)


def spread_of(values: Sequence[float]) -> dict[str, float]:
    """Return mean and deviation."""
    return {
        "mean": round(float(np.mean(values)), 2),
        "deviation": round(float(np.std(values)), 2),
    }


def summed(rows: Sequence[Row], segmenter: str) -> Counts:
    """Return the sum of what a segmenter counted in the images of rows."""
    return fidelity.total(fidelity.from_row(row["fidelity"][segmenter]) for row in rows)


def iou_of(areas: np.ndarray) -> np.ndarray:
    """Return the IoU in percent of each class that is labelled, NaN for the others."""
    both, predicted, labelled = areas.astype(np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(labelled > 0, 100 * both / (predicted + labelled - both), np.nan)


def common_share(areas: np.ndarray, ceiling: np.ndarray) -> float | None:
    """Return the mean IoU as a share in percent of the ceiling's, over classes that both have."""
    own, most = iou_of(areas), iou_of(ceiling)
    both = ~np.isnan(own) & ~np.isnan(most)
    return percent(own[both].sum(), most[both].sum())


def fidelity_of(counts: Counts, ceiling: Counts | None, image_mious: Sequence[float]) -> Row:
    """Return the scores of a group of images under one segmenter, in percent."""
    found = {
        "miou": rounded(score_of(counts.areas, 0)["miou"]),
        "band_miou": rounded(score_of(counts.band, 0)["miou"]),
        "small_recall": rounded(percent(counts.objects[0].sum(), counts.objects[1].sum())),
        "small_objects": int(counts.objects[1].sum()),
        "image_miou": spread_of(image_mious) if image_mious else None,
    }
    if ceiling is not None:
        found |= {
            "ceiling_miou": rounded(score_of(ceiling.areas, 0)["miou"]),
            "share_of_ceiling": rounded(common_share(counts.areas, ceiling.areas)),
            "band_share_of_ceiling": rounded(common_share(counts.band, ceiling.band)),
        }
    return found


def attributes_of(rows: Sequence[Row], named: Mapping[str, Mapping[str, str]]) -> Row:
    """Return per attribute how many images show what their row names. `named`: by sample id."""
    found = {}
    for attribute in rows[0].get("attributes", {}):
        said = [
            named[row["id"]][attribute] == row["attributes"][attribute]["seen"]
            for row in rows
            if attribute in named[row["id"]]
        ]
        found[attribute] = {"accuracy": rounded(percent(sum(said), len(said))), "images": len(said)}
    return found


def group_of(
    rows: Sequence[Row],
    ceilings: Mapping[str, Sequence[Row]],
    named: Mapping[str, Mapping[str, str]],
) -> Row:
    """Return the summary of a group of rows; `ceilings`: the source's rows of each segmenter."""
    group: Row = {"images": len(rows)}
    group |= {name: spread_of([row[name] for row in rows]) for name in STATISTICS}
    group["fidelity"] = {
        name: fidelity_of(
            summed(rows, name),
            summed(ceilings[name], name) if ceilings.get(name) else None,
            [m for row in rows if (m := row["fidelity"][name]["miou"]) is not None],
        )
        for name in rows[0].get("fidelity", {})
    }
    group["attributes"] = attributes_of(rows, named)
    return group


def by_condition(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Return the rows of each condition, in the order of their names."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row["condition"], []).append(row)
    return dict(sorted(groups.items()))


def classes_of(rows: Sequence[Row], source: Sequence[Row], segmenter: str) -> dict[str, Row]:
    """Return the scores of each class that occurs in the labels, in percent."""
    counts = summed(rows, segmenter)
    ceiling = summed(source, segmenter) if source else None
    found = {}
    for i, name in enumerate(CLASS_NAMES):
        if not counts.areas[2, i]:
            continue
        iou = round(float(iou_of(counts.areas)[i]), 2)
        found[name] = {
            "iou": iou,
            "recall": rounded(percent(counts.areas[0, i], counts.areas[2, i])),
            "band_recall": rounded(percent(counts.band[0, i], counts.band[2, i])),
            "small_recall": rounded(percent(counts.objects[0, i], counts.objects[1, i])),
            "small_objects": int(counts.objects[1, i]),
            "loss": rounded(counts.loss[i] / counts.areas[2, i], 4),
            "pixels": int(counts.areas[2, i]),
        }
        if ceiling is not None and ceiling.areas[2, i]:
            most = iou_of(ceiling.areas)[i]
            found[name] |= {
                "ceiling_iou": rounded(most),
                "share_of_ceiling": rounded(percent(iou, most)),
            }
    return found


def summarise(
    rows: Sequence[Row], source: Sequence[Row], named: Mapping[str, Mapping[str, str]]
) -> Row:
    """Return the summary of a scoring.

    The ceiling of a condition is that of the source's images of the condition, or of all of them
    where the source has none. `named`: what the row of a sample says of its attributes, by id.
    """
    names = list(rows[0].get("fidelity", {}))
    of_source = by_condition(source)
    conditions = {}
    for condition, part in by_condition(rows).items():
        ceiling = of_source.get(condition) or source
        conditions[condition] = group_of(part, dict.fromkeys(names, ceiling), named)
    return {
        "all": group_of(rows, dict.fromkeys(names, source), named),
        "conditions": conditions,
        "classes": {name: classes_of(rows, source, name) for name in names},
        "source_images": len(source),
        "warning": WARNING,
    }
