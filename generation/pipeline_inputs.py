"""What a call of `StreetPipeline` may be given, brought into one form each."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from PIL import Image

from pipeline import labels
from pipeline.errors import UserError
from pipeline.images import read_image

Label: TypeAlias = np.ndarray | Image.Image | str | Path
SourceImage: TypeAlias = np.ndarray | Image.Image | str | Path
Seed: TypeAlias = torch.Generator | int | np.integer[Any] | None
PLAIN_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr")  # 8 bits a channel


def broadcast(
    label: Label | Sequence[Label], prompt: str | Sequence[str], generator: Seed | Sequence[Seed]
) -> tuple[list[np.ndarray], list[str], list[int]]:
    """Return equally many labels HxW of train ids, prompts and seeds; a single one serves all."""
    given, prompts, generators = (as_list(value) for value in (label, prompt, generator))
    lengths = [len(given), len(prompts), len(generators)]
    count = max(lengths)
    if count == 0 or any(length not in (1, count) for length in lengths):
        raise UserError(
            f"{lengths[0]} labels, {lengths[1]} prompts and {lengths[2]} generators; give one of "
            "each, or equally many"
        )
    for text in prompts:
        require_text(text)
    label_maps = [as_label(one) for one in given]
    # A generator that serves all gives each image a seed of its own
    seeds = [as_seed(one) for one in _repeated(generators, count)]
    return _repeated(label_maps, count), _repeated(prompts, count), seeds


def _repeated(values: list[Any], count: int) -> list[Any]:
    return values * (count // len(values))


def require_text(prompt: Any) -> None:
    """Raise `UserError` unless a prompt is text."""
    if not isinstance(prompt, str):
        raise UserError(f"prompt {prompt!r}: must be text")


def as_label(label: Label) -> np.ndarray:
    """Return HxW uint8 train ids of an array, a grey or palette image, or the path of a PNG."""
    if isinstance(label, str | Path):
        return labels.read_label(label)
    if isinstance(label, Image.Image):
        labels.check_label_mode(label.mode, colors=False)
    ids = np.asarray(label)
    if ids.ndim != 2 or not ids.size or ids.dtype.kind not in "iu":
        raise UserError(f"label of shape {ids.shape}, {ids.dtype}: give HxW whole numbers")
    if ids.min() < 0 or ids.max() > labels.VOID:
        raise UserError(f"label: ids {ids.min()} to {ids.max()}; give train ids 0..18, void 255")
    ids = ids.astype(np.uint8)
    labels.check_ids(ids, "label")
    return ids


def as_source(image: SourceImage) -> np.ndarray:
    """Return HxWx3 uint8 RGB of a source image in any of the forms a call takes."""
    if isinstance(image, str | Path):
        return read_image(Path(image))
    if isinstance(image, Image.Image):
        if image.mode not in PLAIN_MODES:
            raise UserError(f"image: has mode {image.mode}; convert it to 8-bit RGB")
        return np.array(image.convert("RGB"))
    values = np.asarray(image)
    grey = values.ndim == 2 or (values.ndim == 3 and values.shape[2] == 1)
    if not (grey or (values.ndim == 3 and values.shape[2] == 3)) or not values.size:
        raise UserError(f"image of shape {values.shape}: give HxWx3 or HxW")
    if values.dtype.kind not in "uif":
        raise UserError(f"image of {values.dtype}: give integers in 0..255 or floats in 0..1")
    highest = 1 if values.dtype.kind == "f" else 255
    low, high = values.min(), values.max()
    if not 0 <= low <= high <= highest:  # not a number is neither
        raise UserError(
            f"image: values {low:g} to {high:g}; give integers in 0..255 or floats in 0..1"
        )
    pixels = np.round(values * (255 / highest)).astype(np.uint8)
    return np.repeat(pixels.reshape(*values.shape[:2], 1), 3, 2) if grey else pixels


def as_source_of(image: SourceImage, labels: Sequence[np.ndarray]) -> np.ndarray:
    """Return HxWx3 uint8 RGB of a source image that has the size of all labels."""
    source = as_source(image)
    height, width = source.shape[:2]
    for label in labels:
        if label.shape != (height, width):
            raise UserError(
                f"image: {width}x{height} px, but its label is {label.shape[1]}x{label.shape[0]}; "
                "both must have the same size"
            )
    return source


def as_list(value: Any) -> list[Any]:
    """Return several values as a list; nested lists of numbers are one label."""
    if isinstance(value, list | tuple) and not (value and isinstance(value[0], list)):
        return list(value)
    return [value]


def as_seed(generator: Seed) -> int:
    """Return the seed an image starts from; a generator moves on, so it never gives one twice."""
    if isinstance(generator, int | np.integer):
        if not 0 <= generator < 2**64:
            raise UserError(f"generator {generator}: a seed must be in 0..{2**64 - 1}")
        return int(generator)
    stream: Any = torch.default_generator if generator is None else generator
    if not isinstance(stream, torch.Generator):
        raise UserError(f"generator {generator!r}: give a seed or a torch.Generator")
    start = stream.initial_seed()
    fresh = torch.Generator(stream.device).manual_seed(start).get_state()
    used = not torch.equal(fresh, stream.get_state())
    following = int(torch.randint(2**62, (1,), generator=stream, device=stream.device))
    return following if used else start
