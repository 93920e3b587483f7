"""Relate the label fidelity of generated images to their effect on the development target.

    python experiments/fidelity_gain.py --data GENERATED --quality QUALITY \\
        --checkpoints DIR [...] --development DEV --output influence.json

The effect of leaving an image out is estimated by TracIn (Pruthi et al., NeurIPS 2020): the product
of the gradient of the loss on the image and that of the mean loss on the development target, here
divided by the squared length of the latter and averaged over the networks. An update on an image of
effect 1 lowers the development loss as much as one on the target itself; one with a negative effect
raises it. Each image has a value of its own, and no network is trained again: trainings without
random subsets would need hundreds of runs, as the mean fidelity of random subsets hardly varies.
The estimate is of first order and at the weights of finished trainings. Fidelity is the accuracy
that generation/score.py measured, relative to what is usual for classes and condition of the image,
as in `generation/filter.py --reject-below`. Writes OUTPUT, and its tables as Markdown beside it.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.structures import PixelData
from tqdm import tqdm

if sys.path and sys.path[0] == str(Path(__file__).resolve().parent):  # see CONTRIBUTING.md
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from generation.quality import repair, score_rows
from pipeline import files
from pipeline.dataset import Sample, open_dataset, read_pair
from pipeline.errors import UserError, guard
from pipeline.markdown import table
from pipeline.seeding import numpy_generator
from segtrain.evaluation.correlation import correlate
from segtrain.segmenter import Segmenter

MIN_PIXELS = 10_000  # of a class in a condition, as in generation/filter.py
FEWEST = 8  # images of a condition with a correlation of its own
RESAMPLES = 2000
ALL = "all"


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
    _, recalls = repair.mean_losses(list(rows.values()), names[0], MIN_PIXELS)
    values = [repair.relative_score(rows[sample.id], names[0], recalls) for sample in samples]
    return np.array(values), [rows[sample.id]["condition"] for sample in samples]


def interval(values: np.ndarray) -> tuple[float, float]:
    """Return the 95 % bootstrap interval of the mean."""
    rng = numpy_generator(0, "fidelity gain", len(values))
    means = values[rng.integers(len(values), size=(RESAMPLES, len(values)))].mean(1)
    low, high = np.quantile(means, (0.025, 0.975))
    return float(low), float(high)


def summarise(
    fidelity: np.ndarray, effect: np.ndarray, conditions: Sequence[str]
) -> dict[str, Any]:
    """Return the correlations, of all images and by condition, and the mean effect by quarter."""
    groups = {ALL: np.arange(len(fidelity))}
    for name in sorted(set(conditions)):
        if (chosen := np.flatnonzero(np.array(conditions) == name)).size >= FEWEST:
            groups[name] = chosen
    correlations = {}
    for name, chosen in groups.items():
        found = correlate(fidelity[chosen], effect[chosen])
        correlations[name] = {
            "images": len(chosen),
            "mean_effect": float(effect[chosen].mean()),
            "spearman": found.spearman,
            "p": found.p_spearman,
        }
    quarters = []
    for chosen in np.array_split(np.argsort(fidelity, kind="stable"), 4):
        low, high = interval(effect[chosen])
        quarters.append(
            {
                "fidelity": float(fidelity[chosen].mean()),
                "effect": float(effect[chosen].mean()),
                "interval": [low, high],
                "harmful": float((effect[chosen] < 0).mean()),
            }
        )
    return {"correlations": correlations, "quarters": quarters}


def markdown_of(found: dict[str, Any]) -> str:
    """Return the tables of a summary."""

    def number(value: float | None, digits: int = 2) -> str:
        return "-" if value is None else f"{value:.{digits}f}"

    rows = [
        [name, str(c["images"]), number(c["mean_effect"]), number(c["spearman"]), number(c["p"], 3)]
        for name, c in found["correlations"].items()
    ]
    head = ["images", "n", "mean effect", "Spearman of fidelity and effect", "p"]
    parts = [
        [
            name,
            number(q["fidelity"]),
            f"{number(q['effect'])} ({number(q['interval'][0])} to {number(q['interval'][1])})",
            f"{100 * q['harmful']:.0f}",
        ]
        for name, q in zip(("lowest", "second", "third", "highest"), found["quarters"], strict=True)
    ]
    quarters = ["quarter by fidelity", "fidelity", "effect (95 %)", "% of images below 0"]
    return f"{table(head, rows)}\n{table(quarters, parts)}"


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
    parser.add_argument("--limit", type=int, help="use only the first N images of the data")
    parser.add_argument("--output", type=Path, required=True, help="JSON file to write")
    options = parser.parse_args()
    if options.limit is not None and options.limit < 4:
        raise UserError(f"--limit {options.limit}: must be 4 or more")
    samples = open_dataset(options.data, labelled=True)[: options.limit]
    if len(samples) < 4:
        raise UserError(f"--data {options.data}: has {len(samples)} images; 4 or more are needed")
    development = open_dataset(options.development, labelled=True)
    fidelity, conditions = fidelities(options.quality, samples)
    networks = (Segmenter.from_pretrained(folder) for folder in options.checkpoints)
    effect = np.mean([effects(network, samples, development) for network in networks], axis=0)
    found = summarise(fidelity, effect, conditions)
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
