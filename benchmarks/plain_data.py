"""The data path of the published programs, without optimization, for comparison.

Converter: one mask per class and one pass per count, as in the converters of DAFormer and HRDA. The
published code reads labels with mmcv and writes PNG files with Pillow's defaults. Loader: the whole
image and label are decoded for every crop, and the condition is a float64 identity matrix indexed
by the label, as in DGInStyle's dataset class.
"""

import json
from collections.abc import Mapping
from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image


def convert_label(label: np.ndarray, mapping: Mapping[int, int]) -> tuple[np.ndarray, dict]:
    """Return train ids HxW and the pixels of each class, for HxW ids of another label space."""
    converted = np.full(label.shape, 255, dtype=np.uint8)
    counts = {}
    for source, target in mapping.items():
        mask = label == source
        converted[mask] = target
        number = int(np.sum(mask))
        if number > 0:
            counts[target] = counts.get(target, 0) + number
    return converted, counts


def convert_file(source: Path, target: Path, mapping: Mapping[int, int]) -> dict:
    """Convert one label file; return its class statistics, written beside it as JSON."""
    label = np.array(Image.open(source))
    converted, counts = convert_label(label, mapping)
    Image.fromarray(converted, mode="L").save(target)
    statistics = {**counts, "file": str(target)}
    target.with_suffix(".json").write_text(json.dumps(statistics))
    return statistics


def one_hot(label: np.ndarray) -> torch.Tensor:
    """Return the condition 20xHxW float32 of HxW train ids; void is channel 19."""
    ids = np.where(label == 255, 19, label)
    return torch.from_numpy(np.eye(20)[ids].transpose(2, 0, 1)).float()


def training_sample(
    image_path: Path, label_path: Path, crop_px: tuple[int, int], rng: np.random.Generator
) -> dict:
    """Return image 3xHxW in [-1, 1] and condition 20xHxW of a random crop of a pair."""
    image = np.array(Image.open(image_path).convert("RGB"))
    label = np.array(Image.open(label_path))
    top = int(rng.integers(label.shape[0] - crop_px[0] + 1))
    left = int(rng.integers(label.shape[1] - crop_px[1] + 1))
    window = (slice(top, top + crop_px[0]), slice(left, left + crop_px[1]))
    pixels = torch.from_numpy(np.ascontiguousarray(image[window])).permute(2, 0, 1)
    return {"image": pixels.float() / 127.5 - 1, "condition": one_hot(label[window])}


def large_components(label: np.ndarray, min_share: float) -> np.ndarray:
    """Return the bool mask HxW of 8-connected regions of one class above a share of the map."""
    mask = np.zeros(label.shape, dtype=bool)
    for class_id in set(np.unique(label).tolist()) - {255}:
        count, regions, statistics, _ = cv2.connectedComponentsWithStats(
            np.uint8(label == class_id), connectivity=8
        )
        for region in range(1, count):
            if statistics[region, cv2.CC_STAT_AREA] > min_share * label.size:
                mask[regions == region] = True
    return mask
