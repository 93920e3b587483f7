"""Predicts the images of targets one by one and writes what is counted of each.

Images go one by one through the network, so a score does not depend on batches or processes; each
process takes every k-th image. Nothing grows with the number of images but the files.
"""

import heapq
from collections.abc import Mapping
from typing import Any

import numpy as np
from tqdm import tqdm

from pipeline.dataset import Sample, read_pair
from pipeline.errors import UserError
from pipeline.iou import AREAS, image_miou
from segtrain.evaluation.counts import measure
from segtrain.evaluation.parts import Part
from segtrain.evaluation.rows import Row, label_digest
from segtrain.evaluation.segmenters import Predict
from segtrain.evaluation.targets import Target


class NotFiniteError(UserError):
    """A network gives probabilities that are not numbers."""


def score_images(
    predict: Predict,
    target: Target,
    network: str,
    accelerator: Any,
    part: Part,
    keys: Mapping[str, str],
    worst: int = 0,
) -> tuple[np.ndarray, list[tuple[float, str]]]:
    """Write a row for each image of this process that has none under its key.

    Returns the areas 3xK of this process's images, and (mIoU, id) of the `worst` of them, which do
    not include images without a class.
    """
    num_classes = {target.name: len(target.protocol.class_names)}
    areas = np.zeros((AREAS, num_classes[target.name]), np.int64)
    poorest: list[tuple[float, str]] = []  # a heap with the best of them first
    mine = target.samples[accelerator.process_index :: accelerator.num_processes]
    hidden = not accelerator.is_main_process
    for sample in tqdm(mine, desc=f"{network}: {target.name}", disable=hidden, leave=False):
        row = part.find(keys[sample.id], num_classes)
        if row is None:
            row = score_image(predict, sample, target, network)
            part.append(keys[sample.id], row)
        areas += row.counts.areas
        if worst and (miou := image_miou(row.counts.areas)) is not None:
            heapq.heappush(poorest, (-miou, sample.id))
            if len(poorest) > worst:
                heapq.heappop(poorest)
    return areas, [(-miou, key) for miou, key in poorest]


def score_image(predict: Predict, sample: Sample, target: Target, network: str) -> Row:
    """Predict one image and count what is right in it.

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
        raise NotFiniteError(
            f"{network}: its probabilities for {sample.image} are not numbers, so its weights are "
            "damaged or its training diverged; train it again or leave it out"
        )
    counts = measure(found, ids, confidence, target.protocol)
    condition = sample.condition
    return Row(network, target.name, sample.id, condition, label_digest(ids), counts)


def worst_samples(
    target: Target, poorest: list[tuple[float, str]], number: int
) -> list[tuple[float, Sample]]:
    """Return mIoU and sample of the poorest images among those of all processes, worst first."""
    samples = {sample.id: sample for sample in target.samples}
    return [(miou, samples[key]) for miou, key in sorted(poorest)[:number]]


def sum_over_processes(numbers: np.ndarray, accelerator: Any) -> np.ndarray:
    """Return the sum of an array over processes."""
    if accelerator.num_processes == 1:
        return numbers
    import torch

    summed = torch.from_numpy(numbers).to(accelerator.device)
    return accelerator.reduce(summed, reduction="sum").cpu().numpy()
