"""Transforms of recipes: the readers, the resize that keeps shapes, and the checks of pipelines.

mmsegmentation's own loading steps read images by OpenCV, which decodes some files differently
(16-bit, alpha, truncated ones), and accept labels of any kind. Ours read as all other programs do.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import cv2
import numpy as np
from mmcv.transforms import BaseTransform

from pipeline import labels
from pipeline.errors import UserError
from pipeline.images import read_image

RESIZE = "StreetforgeResize"
STOCK_RESIZES = ("Resize", "RandomResize", "RandomChoiceResize")
SCALES = (0.02, 16.0)  # beyond these a factor is a slip of the pen
Steps = Sequence[dict[str, Any]]


class Resize(BaseTransform):
    """Resize image and label by one factor for both axes, so that shapes stay as they are.

    `scale_factor`: pixels at the network for one pixel in the file; of a range (low, high) each
    sample gets its own. The factor does not depend on the size of a frame, unlike the box of
    mmcv's `Resize(scale=...)`: objects of frames of any size and aspect appear at one scale.
    The label takes the pixel whose centre is nearest, so it lies exactly under the image.
    """

    def __init__(self, scale_factor: float | Sequence[float] = 1.0) -> None:
        self.low, self.high = scale_range(scale_factor, RESIZE)

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """Resize `img` and all `seg_fields`; set `scale_factor` to the factors in x and y."""
        factor = self.low
        if self.high > self.low:
            factor += np.random.random_sample() * (self.high - self.low)
        height, width = results["img"].shape[:2]
        size = tuple(max(1, math.floor(side * factor + 0.5)) for side in (width, height))
        resized = {"img": cv2.resize(results["img"], size, interpolation=cv2.INTER_LINEAR)}
        for name in results.get("seg_fields", []):
            resized[name] = cv2.resize(results[name], size, interpolation=cv2.INTER_NEAREST_EXACT)
        factors = (size[0] / width, size[1] / height)
        sizes = {"scale": size, "img_shape": size[::-1], "scale_factor": factors}
        return {**results, **resized, **sizes, "keep_ratio": True}


def scale_range(scale_factor: Any, where: str) -> tuple[float, float]:
    """Return (low, high) of a factor or a range of factors, or raise `UserError`."""
    pair = scale_factor if isinstance(scale_factor, list | tuple) else (scale_factor, scale_factor)
    numbers = [n for n in pair if isinstance(n, int | float) and not isinstance(n, bool)]
    if len(pair) == len(numbers) == 2 and SCALES[0] <= numbers[0] <= numbers[1] <= SCALES[1]:
        return float(numbers[0]), float(numbers[1])
    raise UserError(
        f"{where}: scale_factor {scale_factor!r} must be a number in {SCALES[0]}..{SCALES[1]:g}, "
        "or a range (low, high) of two such numbers"
    )


def all_steps(steps: Any) -> Iterator[dict[str, Any]]:
    """Yield every transform of a pipeline, those inside others too."""
    if isinstance(steps, dict):
        if "type" in steps:
            yield steps
        steps = list(steps.values())
    if isinstance(steps, list | tuple):
        for step in steps:
            yield from all_steps(step)


def require_shapes_kept(steps: Steps, where: str) -> None:
    """Raise `UserError` if a resize of the pipeline may change the aspect of objects."""
    for step in all_steps(steps):
        factor = step.get("scale_factor")
        if step["type"] == RESIZE:
            scale_range(step.get("scale_factor", 1.0), f"{where} {RESIZE}")
        elif step["type"] not in STOCK_RESIZES:
            continue
        elif "scale" not in step and isinstance(factor, list | tuple) and len({*factor}) > 1:
            raise UserError(
                f"{where} {step['type']}: scale_factor {factor} stretches objects; "
                f"give one number, or use {RESIZE}"
            )
        elif ("scale" in step or "scales" in step) and not step.get("keep_ratio", False):
            raise UserError(
                f"{where} {step['type']}: without keep_ratio=True objects change their "
                f"shape; add it, or use {RESIZE}(scale_factor=...)"
            )


def prepare(
    steps: Steps, scale_factor: Any = None, where: str = "pipeline"
) -> list[dict[str, Any]]:
    """Return a pipeline, with `scale_factor` in its resize if it is given.

    Raises `UserError` if objects would change their shape, or if there is no resize to set.
    """
    require_shapes_kept(steps, where)
    if scale_factor is not None:
        scale_range(scale_factor, where)
        if sum(_kind(step) == RESIZE for step in steps) != 1:
            raise UserError(
                f"{where}: scale_factor needs exactly one {RESIZE} in the pipeline; "
                "add it, or give the set a pipeline of its own"
            )
    resize = {"type": RESIZE, "scale_factor": scale_factor}
    return [
        resize if _kind(step) == RESIZE and scale_factor is not None else step for step in steps
    ]


def _kind(step: Any) -> Any:
    return step.get("type") if isinstance(step, dict) else None


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
