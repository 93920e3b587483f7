"""How a target is tested: the scale of its images and its classes, as in published protocols.

A prepared folder keeps both in `run.json`, from its entry in datasets/ and its label space. A
recipe says by `test_resolution` whether its networks work at the low or the high resolution of the
protocol. A folder without a protocol is tested by the recipe's own `test_pipeline`.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline import label_spaces, labels, origins
from pipeline.catalogue import specs
from pipeline.dataset import Sample
from pipeline.errors import UserError
from pipeline.images import MAX_PIXELS, image_size

Size = tuple[int, int]
RESOLUTIONS = ("low", "high")
LARGEST_PX = 16384
KEEPS_SHAPE = "StreetforgeResize"
RESIZING = (KEEPS_SHAPE, "Resize", "ResizeShortestEdge")
LARGEST_WHOLE = 2**23  # pixels that a network may see at once, 3840x2160 and a little more
SMALLER = "scale it down, or test with sliding windows (model.test_cfg mode=slide in the recipe)"


@dataclass(frozen=True)
class Protocol:
    """Sizes are height and width that images are scaled into, their aspect kept."""

    low_px: Size | None = None
    high_px: Size | None = None
    classes: label_spaces.MergedClasses | None = None
    """None: the 19 of Cityscapes"""

    @property
    def class_names(self) -> tuple[str, ...]:
        """The classes that are scored."""
        return self.classes.names if self.classes else labels.CLASS_NAMES

    def merge(self, ids: np.ndarray) -> np.ndarray:
        """Return HxW indices of `class_names` for train ids; what is none of them is beyond."""
        return self.classes.merge(ids) if self.classes else ids

    def size_px(self, recipe: dict[str, Any]) -> Size | None:
        """Return the size for networks of a recipe, None for that of its `test_pipeline`."""
        return self.high_px if recipe.get("test_resolution") == "high" else self.low_px


def protocol_of(folder: Path) -> Protocol:
    """Return the protocol of a folder; one that pipeline/prepare.py did not write has none."""
    path, sizes = folder / "run.json", origins.sizes_of(folder)
    return Protocol(
        low_px=_size(sizes.get("eval_low_px"), f"{path}: protocol.eval_low_px"),
        high_px=_size(sizes.get("eval_high_px"), f"{path}: protocol.eval_high_px"),
        classes=label_spaces.classes_of_folder(folder),
    )


def require_catalogued(names: Sequence[str], setting: str) -> None:
    """Raise `UserError` for a name that is not one of our own catalogue."""
    known = specs.known_datasets()
    for name in names:
        if name not in known:
            raise UserError(f"{setting} {name}: is not in the catalogue; known: {', '.join(known)}")


def _size(value: Any, where: str) -> Size | None:
    if value is None:
        return None
    sound = isinstance(value, list) and len(value) == 2
    if not sound or not all(type(n) is int and 0 < n <= LARGEST_PX for n in value):
        raise UserError(f"{where}: is not a height and width within 1..{LARGEST_PX}")
    return value[0], value[1]


def require_size(size: Size | None, setting: str) -> None:
    """Raise `UserError` unless a height and width on the command line are in reason."""
    if size is not None and not all(0 < n <= LARGEST_PX for n in size):
        raise UserError(f"{setting} {size[0]} {size[1]}: must lie within 1..{LARGEST_PX}")


def require_sight(height: int, width: int, recipe: dict[str, Any]) -> None:
    """Raise a nameless `UserError` for an image that is too large for a network."""
    limit = LARGEST_WHOLE if recipe["model"]["test_cfg"]["mode"] == "whole" else MAX_PIXELS
    if height * width > limit:
        raise UserError(
            f"reaches the network as {width}x{height} pixels, more than {limit}; {SMALLER}"
        )


def require_images(
    images: Iterable[Path | Sample], recipe: dict[str, Any], size_px: Size | None
) -> None:
    """Raise `UserError` for the first image that cannot be read or that is too large.

    Only headers are read, and not those of samples whose rows say their size. Nothing of torch is
    needed.
    """
    for one in images:
        path = one if isinstance(one, Path) else one.image
        row = {} if isinstance(one, Path) else one.row
        height, width = row.get("height", 0), row.get("width", 0)
        if not all(type(n) is int and n > 0 for n in (height, width)):
            width, height = image_size(path)
        try:
            require_sight(*tested_size(height, width, recipe, size_px), recipe)
        except UserError as error:
            raise UserError(f"{path}: {error}") from None


def tested_size(height: int, width: int, recipe: dict[str, Any], size_px: Size | None) -> Size:
    """Return the height and width at which an image reaches the network.

    `size_px` stands in place of the recipe's own scaling, of which `Resize` to a scale and
    `StreetforgeResize` are foreseen; after any other the size is checked when the image is there.
    """
    resizing = [step for step in recipe["test_pipeline"] if step["type"] in RESIZING]
    if size_px is None and resizing:
        scale, factor = resizing[0].get("scale"), resizing[0].get("scale_factor")
        if len(resizing) == 1 and resizing[0]["type"] == KEEPS_SHAPE and type(factor) is float:
            return int(height * factor + 0.5), int(width * factor + 0.5)
        if len(resizing) > 1 or not isinstance(scale, list) or len(scale) != 2:
            return 0, 0
        if not resizing[0].get("keep_ratio", False):
            return int(scale[1]), int(scale[0])
        size_px = min(scale), max(scale)  # the longer edge into the larger number
    if size_px is None:
        return height, width
    factor = min(max(size_px) / max(height, width), min(size_px) / min(height, width))
    return int(height * factor + 0.5), int(width * factor + 0.5)
