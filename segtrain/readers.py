"""The first steps of a recipe's transforms, with the reader that all other programs use.

mmsegmentation's own steps read pictures by OpenCV, which turns out other pixels for some files
(16-bit, alpha, files that are cut) and reads labels of any kind without a word.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from pipeline import labels
from pipeline.images import read_image


def load_image(results: dict[str, Any]) -> dict[str, Any]:
    """Do what LoadImageFromFile does: add `img`, HxWx3 uint8 BGR, and its shape."""
    image = np.ascontiguousarray(read_image(results["img_path"])[..., ::-1])
    shape = image.shape[:2]
    return {**results, "img": image, "img_shape": shape, "ori_shape": shape}


def load_label(results: dict[str, Any]) -> dict[str, Any]:
    """Do what LoadAnnotations does: add `gt_seg_map`, HxW uint8 train ids, 255 for void."""
    label = labels.read_label(results["seg_map_path"])
    return {**results, "gt_seg_map": label, "seg_fields": [*results["seg_fields"], "gt_seg_map"]}


READERS = {"LoadImageFromFile": load_image, "LoadAnnotations": load_label}


def with_reader(pipeline: Sequence[Any]) -> list[Any]:
    """Return a recipe's transforms with our reader for stock loading steps without options."""
    return [
        READERS.get(step["type"], step) if isinstance(step, dict) and len(step) == 1 else step
        for step in pipeline
    ]
