"""Figures of an evaluation: confusion matrices, and the images that a network predicts worst."""

import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from pipeline import files, images, labels
from pipeline.dataset import Sample, read_pair
from segtrain.evaluation.rows import figures_of
from segtrain.evaluation.segmenters import Predict
from segtrain.evaluation.summary import Images

SHOWN_PX = 480  # width of an image in the gallery
GAP_PX = 4
TITLE_PX = 18
CELL_INCHES = 0.42
MUCH = 0.55  # share from which a cell is dark, so that its number is white


def path_of(scores: Path, network: str, target: str, kind: str) -> Path:
    """Return the file of a figure, in the folder that belongs to a score file."""
    name = "_".join(re.sub(r"[^\w.-]+", "-", part).strip("-.") for part in (network, target, kind))
    return figures_of(scores) / f"{name}.png"


def plot_confusions(
    scores: Path, found: Mapping[str, Mapping[str, Images]], classes: Mapping[str, Sequence[str]]
) -> None:
    """Plot the confusion matrix of each network on each target, beside a score file."""
    for name, images_of in found.items():
        for target, counts in images_of.items():
            path = path_of(scores, name, target, "confusion")
            plot_confusion(path, counts.total().confusion, classes[target])


def plot_confusion(path: Path, confusion: np.ndarray, names: Sequence[str]) -> None:
    """Plot a confusion matrix (K+1)x(K+1) in percent of the pixels of each class of the label."""
    from matplotlib.figure import Figure

    pixels = confusion.sum(1, keepdims=True)
    shares = np.divide(confusion, pixels, out=np.zeros(confusion.shape), where=pixels > 0)
    kept = [i for i in range(len(names) + 1) if confusion[i].any() or confusion[:, i].any()]
    titles = [(*names, "other")[i] for i in kept]
    side = CELL_INCHES * len(kept) + 2
    figure = Figure(figsize=(side, side), layout="constrained")
    axes = figure.subplots()
    axes.imshow(shares[np.ix_(kept, kept)], cmap="Blues", vmin=0, vmax=1)
    for row, truth in enumerate(kept):
        for column, found in enumerate(kept):
            share = shares[truth, found]
            if share >= 0.005:
                color = "white" if share > MUCH else "black"
                text = f"{100 * share:.0f}"
                axes.text(column, row, text, ha="center", va="center", color=color, fontsize=8)
    axes.set_xticks(range(len(kept)), titles, rotation=90)
    axes.set_yticks(range(len(kept)), titles)
    axes.set_xlabel("predicted")
    axes.set_ylabel("label, each row 100 %")
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=120, metadata={"Software": None})
    files.write_bytes(path, buffer.getvalue())


def plot_worst(path: Path, samples: Sequence[tuple[float, Sample]], predict: Predict) -> None:
    """Draw image, label and prediction of samples, one a row, with their mIoU and id."""
    rows = [_row(miou, sample, predict) for miou, sample in samples]
    if not rows:
        return
    width = max(row.shape[1] for row in rows)
    padded = [np.pad(row, ((0, GAP_PX), (0, width - row.shape[1]), (0, 0))) for row in rows]
    files.write_bytes(path, images.encode_png(np.concatenate(padded)))


def _row(miou: float, sample: Sample, predict: Predict) -> np.ndarray:
    import cv2

    image, label = read_pair(sample)
    found, _ = predict(sample.image, image)
    shown = np.where(label == labels.VOID, labels.VOID, found)  # void of the label is black in both
    height = max(1, round(SHOWN_PX * image.shape[0] / image.shape[1]))
    panels = [
        cv2.resize(panel, (SHOWN_PX, height), interpolation=cv2.INTER_AREA)
        for panel in (image, labels.colorize(label), labels.colorize(shown))
    ]
    gap = np.zeros((height, GAP_PX, 3), np.uint8)
    row = np.concatenate([panels[0], gap, panels[1], gap, panels[2]], axis=1)
    condition = sample.condition
    text = f"{sample.id} {condition}: mIoU {miou:.1f}. Image, label, prediction"
    return np.concatenate([_title(text, row.shape[1]), row])


def _title(text: str, width: int) -> np.ndarray:
    from PIL import Image, ImageDraw

    strip = Image.new("RGB", (width, TITLE_PX))
    shown = text.encode("ascii", "replace").decode()
    ImageDraw.Draw(strip).text((4, 3), shown, fill="white")
    return np.asarray(strip)
