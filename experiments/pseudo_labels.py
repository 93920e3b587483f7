"""Measure the quality of the pseudo-labels from which segtrain/adapt.py learns a scene prompt.

    python experiments/pseudo_labels.py --checkpoint DIR [...] --targets DIR [...] [--limit N]

A pixel has a pseudo-label if the confidence of the prediction is at least `--confidence`. Reports
coverage (share of pixels above the threshold), pixel accuracy and mean per-class precision on
labelled targets. The ground truth is used for this measurement only.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional
from tqdm import tqdm

if sys.path and sys.path[0] == str(Path(__file__).resolve().parent):  # see CONTRIBUTING.md
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from pipeline.dataset import Sample, open_dataset, read_pair
from pipeline.errors import UserError, guard
from pipeline.labels import NUM_CLASSES, VOID
from segtrain.segmenter import Segmenter


@torch.no_grad()
def count(segmenter: Segmenter, sample: Sample, confidence: float) -> tuple[np.ndarray, int]:
    """Return the confusion matrix (truth, prediction), 19x19, and the number of labelled pixels."""
    network = segmenter.model
    image, label = read_pair(sample)
    inputs, _ = segmenter.prepare([image])
    logits = network.decode_head(network.extract_feat(inputs))
    shares = functional.interpolate(logits, label.shape, mode="bilinear").softmax(1)[0]
    sure, ids = (found.cpu().numpy() for found in shares.max(0))
    trusted = (label != VOID) & (sure >= confidence)
    pairs = label[trusted].astype(np.int64) * NUM_CLASSES + ids[trusted]
    table = np.bincount(pairs, minlength=NUM_CLASSES**2).reshape(NUM_CLASSES, NUM_CLASSES)
    return table, int((label != VOID).sum())


def row(segmenter: Segmenter, samples: list[Sample], confidence: float) -> str:
    """Return coverage, pixel accuracy and mean precision per class, in percent."""
    counted = [count(segmenter, sample, confidence) for sample in tqdm(samples, leave=False)]
    table = sum(found for found, _ in counted)
    pixels = sum(number for _, number in counted)
    named = table.sum(0)
    precision = np.diag(table)[named > 0] / named[named > 0]
    shares = (table.sum() / pixels, np.trace(table) / max(table.sum(), 1), precision.mean())
    return " | ".join(f"{100 * share:.1f}" for share in shares)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument(
        "--checkpoint",
        type=Path,
        nargs="+",
        required=True,
        help="output folders of segtrain/train.py",
    )
    parser.add_argument(
        "--targets", type=Path, nargs="+", required=True, help="labelled dataset folders"
    )
    parser.add_argument(
        "--confidence", type=float, default=0.3, help="smallest confidence of a pseudo-label"
    )
    parser.add_argument("--limit", type=int, help="use only the first N images of each target")
    options = parser.parse_args()
    if options.limit is not None and options.limit < 1:
        raise UserError(f"--limit {options.limit}: must be 1 or more")
    targets = {t: open_dataset(t, labelled=True)[: options.limit] for t in options.targets}
    print("| network | target | coverage | accuracy | mean precision |\n|---|---|---|---|---|")
    for folder in options.checkpoint:
        segmenter = Segmenter.from_pretrained(folder)
        for target, samples in targets.items():
            found = row(segmenter, samples, options.confidence)
            print(f"| {folder.name} | {target.name} | {found} |", flush=True)


if __name__ == "__main__":
    guard(main)
