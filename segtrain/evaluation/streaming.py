"""Predicts the images of targets one by one and writes what is counted of each.

Images go one by one through the network, so a score does not depend on batches or processes; each
process takes every k-th image. Nothing grows with the number of images but the files.
"""

import heapq
from typing import Any

import numpy as np
from tqdm import tqdm

from pipeline.dataset import Sample, read_pair
from pipeline.errors import UserError
from segtrain.evaluation.counts import Counts, measure
from segtrain.evaluation.rows import Part, Row, label_digest
from segtrain.evaluation.segmenters import Predict
from segtrain.evaluation.targets import Target


def score_images(
    predict: Predict, target: Target, network: str, accelerator: Any, part: Part | None, worst: int
) -> tuple[np.ndarray, list[tuple[float, str]]]:
    """Write a row for each image of this process; without `part` no row is written.

    Returns the areas 3xK of all processes' images, and (mIoU, id) of the `worst` images of this
    process, which do not include images without a class.
    """
    names = target.protocol.class_names
    areas = np.zeros((3, len(names)), np.int64)
    poorest: list[tuple[float, str]] = []  # a heap with the best of them first
    mine = target.samples[accelerator.process_index :: accelerator.num_processes]
    hidden = not accelerator.is_main_process
    for sample in tqdm(mine, desc=f"{network}: {target.name}", disable=hidden, leave=False):
        counts, digest = count_image(predict, sample, target, network)
        areas += counts.areas
        if part:
            condition = str(sample.row.get("condition") or "")
            part.append(Row(network, target.name, sample.id, condition, digest, counts))
        if (miou := image_miou(counts.areas)) is not None and worst:
            heapq.heappush(poorest, (-miou, sample.id))
            if len(poorest) > worst:
                heapq.heappop(poorest)
    return _sum(areas, accelerator), [(-miou, key) for miou, key in poorest]


def count_image(
    predict: Predict, sample: Sample, target: Target, network: str
) -> tuple[Counts, str]:
    """Predict and count one image; returns the digest of its label too.

    Raises `UserError` for what is no prediction; `network` is named then.
    """
    assert sample.label is not None
    image, ids = read_pair(sample)
    found, confidence = predict(sample.image, image)
    if found.shape != ids.shape:
        raise UserError(
            f"{sample.label}: has shape {ids.shape}, its prediction {found.shape}; predict the "
            "images of this folder again"
        )
    if confidence is not None and not np.isfinite(confidence).all():
        raise UserError(
            f"{network}: its probabilities for {sample.image} are not numbers, so its weights are "
            "damaged or its training diverged; train it again or leave it out"
        )
    return measure(found, ids, confidence, target.protocol), label_digest(ids)


def image_miou(areas: np.ndarray) -> float | None:
    """Return the mean IoU in percent over the classes that the label of an image holds.

    A class that is predicted but not in the label has no IoU of its own here: in one image a single
    stray pixel would cost as much as a whole class.
    """
    both, predicted, labelled = areas.astype(np.float64)
    held = labelled > 0
    if not held.any():
        return None
    return float(100 * (both[held] / (predicted + labelled - both)[held]).mean())


def worst_samples(
    target: Target, poorest: list[tuple[float, str]], number: int
) -> list[tuple[float, Sample]]:
    """Return mIoU and sample of the poorest images among those of all processes, worst first."""
    samples = {sample.id: sample for sample in target.samples}
    return [(miou, samples[key]) for miou, key in sorted(poorest)[:number]]


def _sum(areas: np.ndarray, accelerator: Any) -> np.ndarray:
    """Return the sum over processes."""
    if accelerator.num_processes == 1:
        return areas
    import torch

    summed = torch.from_numpy(areas).to(accelerator.device)
    return accelerator.reduce(summed, reduction="sum").cpu().numpy()
