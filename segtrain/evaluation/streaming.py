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
from pipeline.iou import AREAS, areas_of, image_miou
from segtrain.evaluation.counts import measure
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
    areas = np.zeros((AREAS, len(names)), np.int64)
    poorest: list[tuple[float, str]] = []  # a heap with the best of them first
    mine = target.samples[accelerator.process_index :: accelerator.num_processes]
    hidden = not accelerator.is_main_process
    for sample in tqdm(mine, desc=f"{network}: {target.name}", disable=hidden, leave=False):
        found, ids, confidence = predict_pair(predict, sample, target, network)
        if part:
            counts = measure(found, ids, confidence, target.protocol)
            condition = str(sample.row.get("condition") or "")
            part.append(Row(network, target.name, sample.id, condition, label_digest(ids), counts))
            own = counts.areas
        else:
            merge = target.protocol.merge
            own = areas_of(merge(found), merge(ids), len(names))
        areas += own
        if worst and (miou := image_miou(own)) is not None:
            heapq.heappush(poorest, (-miou, sample.id))
            if len(poorest) > worst:
                heapq.heappop(poorest)
    return _sum(areas, accelerator), [(-miou, key) for miou, key in poorest]


def predict_pair(
    predict: Predict, sample: Sample, target: Target, network: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Predict one image; return prediction and label HxW of train ids, confidences HxW if known.

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
    return found, ids, confidence


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
