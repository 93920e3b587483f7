"""A batch as an image: one row per sample, its image as the network gets it, beside its label."""

from pathlib import Path
from typing import Any

import numpy as np

from pipeline import files
from pipeline.images import encode_png
from pipeline.labels import colorize
from segtrain.sets import TARGET


def batch_sheet(network: Any, samples: list[Any]) -> np.ndarray:
    """Return HxWx3 uint8: a row for each packed sample, image left, label in colours right.

    The image went through the transforms and the network's own preprocessing, padding included,
    whose mean and deviation are taken back.
    """
    preprocessor = network.data_preprocessor
    data = preprocessor(
        {
            "inputs": [sample["inputs"] for sample in samples],
            # copies: padding grows their labels
            "data_samples": [sample["data_samples"].clone() for sample in samples],
        },
        training=True,
    )
    pixels = data["inputs"].float()
    if getattr(preprocessor, "_enable_normalize", False):
        pixels = pixels * preprocessor.std + preprocessor.mean
    images = pixels.round().clamp(0, 255).byte().permute(0, 2, 3, 1).cpu().numpy()
    rows = []
    for image, sample in zip(images, data["data_samples"], strict=True):
        label = sample.gt_sem_seg.data[0].cpu().numpy().astype(np.uint8)
        rows.append(np.concatenate([image, colorize(label)], axis=1))
    return np.concatenate(rows)


def describe_samples(samples: list[Any]) -> list[str]:
    """Return one line for each packed sample: its row in the sheet, its set, its image file."""
    return [
        f"row {row}: {sample['data_samples'].get('set', TARGET)}, "
        f"{sample['data_samples'].get('img_path')}"
        for row, sample in enumerate(samples, start=1)
    ]


def write_first_batch(path: Path, task: Any) -> None:
    """Write the samples of the first micro-batch of one process to a PNG file."""
    labelled, unlabelled = next(task.batches(0, 0, 1))[0]
    batch = [*labelled, *unlabelled]
    files.write_bytes(path, encode_png(batch_sheet(task.network, batch)))
    print("\n".join([f"{path}: images and labels", *describe_samples(batch)]))
