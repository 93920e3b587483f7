"""Relate the label fidelity of generated images to their effect on the development target.

    python experiments/fidelity_gain.py --data GENERATED --quality QUALITY \\
        --checkpoints DIR [...] --development DEV --first N --output influence.json

The effect of an image is the first-order change of the development loss by one small update on it
(as TracIn, Pruthi et al., NeurIPS 2020, but with the final weights alone): the product of the
gradient of the loss on the image and that of the mean loss on the development target, divided by
the squared length of the latter, averaged over the networks. An update on an image of effect 1
lowers the development loss as much as one on the target itself; a negative effect raises it.

An image that a network was trained on has hardly a gradient left, and its effect says little;
`--first` leaves such images out. The effect is that of one further image at the end of a training,
not that of a training with or without it. Networks, their number of updates and development images
are held fixed, so the intervals say nothing about others. A correlation over images is not a proof
that a filter helps: other properties of an image may change both fidelity and effect.

Fidelity is the accuracy that generation/score.py measured, relative to what is usual for classes
and condition of the image, as in `generation/filter.py --reject-below`. Intervals are bootstraps
over label maps, as images of one label map depend on one another. Those of the conditions hold
together with 95 % (Bonferroni). Writes OUTPUT, and its tables as Markdown beside it.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.structures import PixelData
from tqdm import tqdm

if sys.path and sys.path[0] == str(Path(__file__).resolve().parent):  # see CONTRIBUTING.md
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from generation.quality import repair, score_rows
from generation.quality.filter_rules import FilterRules
from pipeline import files
from pipeline.dataset import Sample, open_dataset, read_pair
from pipeline.errors import UserError, guard
from pipeline.markdown import table
from pipeline.seeding import numpy_generator
from segtrain.evaluation.correlation import ranks
from segtrain.segmenter import Segmenter

FEWEST = 8  # images of a condition with a correlation of its own
RESAMPLES = 4000
LEVEL = 0.05  # share of intervals that miss
ALL = "all"
NOTE = (
    "Intervals: bootstrap over label maps; those of the conditions together hold with 95 %. Held "
    "fixed: networks and development images. Effect: first-order change by one further update."
)


def gradient(segmenter: Segmenter, sample: Sample) -> torch.Tensor:
    """Return the gradient of the loss on a sample, one vector over all trained weights."""
    model = segmenter.model
    image, label = read_pair(sample)
    inputs, records = segmenter.prepare([image])
    ids = torch.from_numpy(label.astype(np.int64))[None].to(segmenter.device)
    records[0].gt_sem_seg = PixelData(data=ids)
    loss, _ = model.parse_losses(model.loss(inputs, records))
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    parts = torch.autograd.grad(loss, weights, allow_unused=True)
    return torch.cat([p.flatten() for p in parts if p is not None])


def effects(
    segmenter: Segmenter, samples: Sequence[Sample], development: Sequence[Sample]
) -> np.ndarray:
    """Return the effect of each sample by one network, N numbers."""
    gradients = (gradient(segmenter, s) for s in tqdm(development, desc="target", leave=False))
    wanted = sum(gradients) / len(development)
    products = [
        float(gradient(segmenter, s) @ wanted) for s in tqdm(samples, desc="images", leave=False)
    ]
    return np.array(products) / float(wanted @ wanted)


def fidelities(quality: Path, samples: Sequence[Sample]) -> tuple[np.ndarray, list[str]]:
    """Return the relative accuracy of each sample, N numbers, and its condition."""
    rows = score_rows.current_rows(quality, "data", samples)
    remedy = "run generation/score.py with --segmenters on this set first"
    if missing := [sample.id for sample in samples if sample.id not in rows]:
        raise UserError(f"{quality}: {len(missing)} samples have no scores; {remedy}")
    names = sorted(set.intersection(*(set(row.get("fidelity", {})) for row in rows.values())))
    if len(names) != 1:
        raise UserError(f"{quality}: has scores of {len(names)} networks and not of one; {remedy}")
    _, recalls = repair.mean_losses(list(rows.values()), names[0], FilterRules().min_pixels)
    values = [repair.relative_score(rows[sample.id], names[0], recalls) for sample in samples]
    return np.array(values), [rows[sample.id]["condition"] for sample in samples]


def interval(
    statistic: Callable[[np.ndarray], float], maps: np.ndarray, level: float = LEVEL
) -> tuple[float, float] | None:
    """Return the bootstrap interval of a statistic of image numbers, None with one label map.

    Whole label maps are drawn, each with all of its images. `maps`: the label map of each image, N
    names. `level`: share of such intervals that miss.
    """
    names = np.unique(maps)
    if len(names) < 2:
        return None
    members = [np.flatnonzero(maps == name) for name in names]
    rng = numpy_generator(0, "fidelity gain", len(maps))
    drawn = rng.integers(len(names), size=(RESAMPLES, len(names)))
    found = [statistic(np.concatenate([members[number] for number in row])) for row in drawn]
    low, high = np.nanquantile(found, (level / 2, 1 - level / 2))
    return float(low), float(high)


def spearman(one: np.ndarray, other: np.ndarray) -> float:
    """Return Spearman's coefficient, NaN where one side has one value only."""
    a, b = ranks(one), ranks(other)
    a, b = a - a.mean(), b - b.mean()
    scale = float(np.sqrt((a * a).sum() * (b * b).sum()))
    return float((a * b).sum()) / scale if scale else float("nan")


def correlations(
    fidelity: np.ndarray, effect: np.ndarray, conditions: Sequence[str], maps: np.ndarray
) -> dict[str, Any]:
    """Return the correlation of fidelity and effect of all images, and by condition."""
    names = np.array(conditions)
    groups = {name: np.flatnonzero(names == name) for name in sorted(set(conditions))}
    groups = {name: chosen for name, chosen in groups.items() if chosen.size >= FEWEST}
    levels = dict.fromkeys(groups, LEVEL / max(len(groups), 1)) | {ALL: LEVEL}
    found = {}
    for name, chosen in ({ALL: np.arange(len(fidelity))} | groups).items():
        one, other = fidelity[chosen], effect[chosen]

        def statistic(drawn: np.ndarray, one: Any = one, other: Any = other) -> float:
            return spearman(one[drawn], other[drawn])

        value = spearman(one, other)
        known = np.isfinite(value)
        found[name] = {
            "images": len(chosen),
            "label_maps": len(set(maps[chosen])),
            "mean_effect": float(other.mean()),
            "spearman": value if known else None,
            "interval": interval(statistic, maps[chosen], levels[name]) if known else None,
        }
    return found


def quarters_of(fidelity: np.ndarray, effect: np.ndarray, maps: np.ndarray) -> list[dict[str, Any]]:
    """Return the mean effect of the quarters of the images by fidelity, lowest first."""
    found = []
    for chosen in np.array_split(np.argsort(fidelity, kind="stable"), 4):
        values = effect[chosen]

        def mean(drawn: np.ndarray, values: np.ndarray = values) -> float:
            return float(values[drawn].mean())

        found.append(
            {
                "fidelity": float(fidelity[chosen].mean()),
                "effect": float(values.mean()),
                "interval": interval(mean, maps[chosen]),
                "harmful": float((values < 0).mean()),
            }
        )
    return found


def summarise(
    fidelity: np.ndarray, effect: np.ndarray, conditions: Sequence[str], maps: Sequence[str]
) -> dict[str, Any]:
    """Return the correlations, of all images and by condition, and the mean effect by quarter."""
    names = np.array(maps)
    return {
        "correlations": correlations(fidelity, effect, conditions, names),
        "quarters": quarters_of(fidelity, effect, names),
    }


def markdown_of(found: dict[str, Any]) -> str:
    """Return the tables of a summary."""

    def number(value: float | None) -> str:
        return "-" if value is None else f"{value:.2f}"

    def ranged(value: float | None, bounds: Sequence[float] | None) -> str:
        if not bounds:
            return number(value)
        return f"{number(value)} ({number(bounds[0])} to {number(bounds[1])})"

    rows = [
        [name, str(c["images"]), str(c["label_maps"]), number(c["mean_effect"])]
        + [ranged(c["spearman"], c["interval"])]
        for name, c in found["correlations"].items()
    ]
    head = ["images", "n", "label maps", "mean effect", "Spearman of fidelity and effect (95 %)"]
    parts = [
        [
            name,
            number(q["fidelity"]),
            ranged(q["effect"], q["interval"]),
            f"{100 * q['harmful']:.0f}",
        ]
        for name, q in zip(("lowest", "second", "third", "highest"), found["quarters"], strict=True)
    ]
    quarters = ["quarter by fidelity", "fidelity", "effect (95 %)", "% of images below 0"]
    return f"{table(head, rows)}\n{table(quarters, parts)}\n{NOTE}\n"


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="generated dataset folder")
    parser.add_argument(
        "--quality", type=Path, required=True, help="what generation/score.py wrote"
    )
    parser.add_argument(
        "--checkpoints",
        type=Path,
        nargs="+",
        required=True,
        help="networks trained on the data, output folders of segtrain/train.py",
    )
    parser.add_argument(
        "--development", type=Path, required=True, help="labelled development target"
    )
    parser.add_argument(
        "--first",
        type=int,
        default=0,
        help="leave out so many images, those that the networks were trained on (0)",
    )
    parser.add_argument("--limit", type=int, help="use only the next N images of the data")
    parser.add_argument("--output", type=Path, required=True, help="JSON file to write")
    options = parser.parse_args()
    if options.limit is not None and options.limit < 4:
        raise UserError(f"--limit {options.limit}: must be 4 or more")
    if options.first < 0:
        raise UserError(f"--first {options.first}: must be 0 or more")
    samples = open_dataset(options.data, labelled=True)[options.first :][: options.limit]
    if len(samples) < 4:
        raise UserError(
            f"--data {options.data}: has {len(samples)} images after the first {options.first}; "
            "4 or more are needed"
        )
    development = open_dataset(options.development, labelled=True)
    fidelity, conditions = fidelities(options.quality, samples)
    networks = (Segmenter.from_pretrained(folder) for folder in options.checkpoints)
    effect = np.mean([effects(network, samples, development) for network in networks], axis=0)
    maps = [str(sample.row.get("source_label") or sample.id) for sample in samples]
    found = {"first": options.first, **summarise(fidelity, effect, conditions, maps)}
    found["samples"] = {
        sample.id: {"fidelity": float(a), "effect": float(b)}
        for sample, a, b in zip(samples, fidelity, effect, strict=True)
    }
    text = markdown_of(found)
    files.write_json(options.output, found)
    files.write_bytes(options.output.with_suffix(".md"), text.encode())
    print(text)


if __name__ == "__main__":
    guard(main)
