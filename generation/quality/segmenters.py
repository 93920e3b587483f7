"""Networks that judge: any trained segmentation network, named on the command line.

A segmenter is a class with `from_pretrained(folder, device=...)` and `costs(images)`. Ours is that
of the segmentation stage. It is named, not imported: stages do not depend on each other, and
another class (`package.module:Class`) does as well.
"""

import importlib
import importlib.util
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from generation.quality.score_rows import read_arrays
from pipeline.errors import UserError
from pipeline.labels import NUM_CLASSES
from pipeline.model_files import is_transformers

TRAINED = "segtrain.segmenter:Segmenter"
TRANSFORMERS = "pipeline.transformers_segmenter:TransformersSegmenter"
STEPS = 16  # of a stored cost per nat: uint8 holds costs up to 15.9
MOST_OVERHEAD = 1 << 16  # bytes of a file of costs beside them


class Segmenter(Protocol):
    """What a class needs to be named by `--segmenter-class`."""

    @classmethod
    def from_pretrained(cls, folder: str | Path, *, device: Any = "cpu") -> "Segmenter":
        """Load the network of a folder."""
        ...

    def costs(self, images: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Return -log probability 19xHxW float32 of each class, for HxWx3 images of one size."""
        ...


def class_for(folder: Path, named: str) -> str:
    """Return the class that loads a folder; without a name its config.json decides.

    Raises `UserError` unless there is a folder and such a class; nothing is loaded.
    """
    if not folder.is_dir():
        raise UserError(
            f"--segmenters {folder}: no such folder; give output folders of segtrain/train.py or "
            "folders of transformers"
        )
    spec = named or TRAINED
    if not named and is_transformers(folder):
        spec = TRANSFORMERS
    module, colon, name = spec.partition(":")
    try:
        known = bool(colon and name and importlib.util.find_spec(module))
    except (ImportError, ValueError):
        known = False
    if not known:
        raise UserError(f"--segmenter-class {spec}: is not an installed package.module:Class")
    return spec


def load(folder: Path, named: str, device: Any) -> Segmenter:
    """Load a segmentation network."""
    spec = class_for(folder, named)
    module, _, name = spec.partition(":")
    found: Any = getattr(importlib.import_module(module), name, None)
    if not hasattr(found, "from_pretrained") or not hasattr(found, "costs"):
        raise UserError(f"--segmenter-class {spec}: has no from_pretrained and costs")
    return found.from_pretrained(folder, device=device)


def costs_by_size(segmenter: Segmenter, images: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Return the costs of images of any sizes, those of one size computed together."""
    found: dict[int, np.ndarray] = {}
    for shape in dict.fromkeys(image.shape for image in images):
        numbers = [i for i, image in enumerate(images) if image.shape == shape]
        found |= zip(numbers, segmenter.costs([images[i] for i in numbers]), strict=True)
    return [found[i] for i in range(len(images))]


def encode_costs(costs: np.ndarray, stride: int) -> bytes:
    """Encode costs KxHxW as a compressed array of sixteenths of nats, one pixel of each cell."""
    middle = stride // 2
    sampled = costs[:, middle::stride, middle::stride]
    buffer = io.BytesIO()
    values = np.clip(np.rint(sampled * STEPS), 0, 255).astype(np.uint8)
    np.savez_compressed(buffer, costs=values, stride=np.uint16(stride))
    return buffer.getvalue()


def decode_costs(path: Path, size: tuple[int, int]) -> np.ndarray:
    """Return the costs 19xHxW float32 of a file for an image of `size` (height, width).

    Cells are interpolated linearly. Raises `UserError` for a missing or wrong file.
    """
    import cv2

    remedy = "run generation/score.py again with --costs into another --output"
    limit = NUM_CLASSES * size[0] * size[1] + MOST_OVERHEAD
    values, steps = read_arrays(path, ("costs", "stride"), limit, remedy)
    stride = int(steps) if steps.shape == () and steps.dtype.kind in "iu" else 0
    cells = [len(range(stride // 2, side, stride)) for side in size] if stride > 0 else []
    if values.dtype != np.uint8 or values.shape != (NUM_CLASSES, *cells) or 0 in values.shape:
        raise UserError(f"{path}: does not fit the label of {size[1]}x{size[0]} px; {remedy}")
    planes = values.astype(np.float32) / STEPS
    if stride == 1:
        return planes
    return np.stack([cv2.resize(plane, size[::-1]) for plane in planes])
