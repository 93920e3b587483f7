"""What is scored: trained networks of ours, networks of transformers, or predicted label maps."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipeline import label_spaces, labels
from pipeline.errors import UserError
from pipeline.identity import file_digest, part_digest
from pipeline.model_files import is_transformers, require_stock_classes
from pipeline.reading import read_json
from segtrain.checkpoints import RECIPE_FILE, WEIGHTS_FILE, require_scene, require_trained
from segtrain.evaluation.targets import Target
from segtrain.protocol import Size, require_images, tested_size

Predict = Callable[[Path, np.ndarray], tuple[np.ndarray, np.ndarray | None]]
"""From an image's path and HxWx3 RGB to HxW train ids and, if known, HxW confidences of 0..1."""
WHOLE: dict[str, Any] = {"model": {"test_cfg": {"mode": "whole"}}, "test_pipeline": []}
"""Stands for the recipe of a network of transformers."""


def read_recipe(folder: Path) -> dict[str, Any]:
    """Return the recipe of the network in a folder; raises `UserError` where there is none."""
    if is_transformers(folder):
        require_stock_classes(folder)
        return WHOLE
    return require_trained(folder)["recipe"]


def require_sizes(recipe: dict[str, Any], targets: Sequence[Target], size_px: Size | None) -> None:
    """Raise `UserError` unless the network of a recipe takes the images of the targets."""
    for target in targets:
        require_images(target.samples, recipe, size_px or target.protocol.size_px(recipe))


def identify(folder: Path, scene: Path | None) -> dict[str, str]:
    """Return digests of all files that the predictions of a network follow from."""
    if is_transformers(folder):
        return {"network": part_digest(folder)}
    found = {name: file_digest(folder / name) for name in (RECIPE_FILE, WEIGHTS_FILE)}
    return found | ({"scene": part_digest(scene)} if scene else {})


def describe(folder: Path, scene: Path | None = None) -> dict[str, Any]:
    """Return what a score file says of a network: its kind, weights, seed and how it was chosen.

    `scene` is the result of segtrain/adapt.py that it is scored with.
    """
    entry: dict[str, Any] = {"checkpoint": str(folder)}
    if is_transformers(folder):
        return entry | {"kind": "transformers", "selection": {"rule": "not recorded"}}
    imported = "imported" in read_json(folder / RECIPE_FILE, dict)  # by segtrain/import_network.py
    kind = "mmsegmentation" if imported else "trained"
    entry |= {"kind": kind, "weights": file_digest(folder / WEIGHTS_FILE)}
    path = folder / "config.json"
    config = read_json(path, dict).get("config") if path.is_file() else None
    seed = config.get("seed") if isinstance(config, dict) else None
    if type(seed) is int:
        entry["seed"] = seed
    rule = "last iterate" if isinstance(config, dict) else "not recorded"
    if scene:
        seen = require_scene(scene)["config"].get("target")
        rule += f"; scene learned on unlabelled images of {Path(str(seen)).name}"
    return entry | {"selection": {"rule": rule}}


def describe_predictions(folder: Path) -> dict[str, Any]:
    """Return what a score file says of predicted label maps."""
    unknown = {"rule": "not recorded"}
    return {"checkpoint": str(folder), "kind": "predictions", "selection": unknown}


def load(
    folder: Path, targets: Sequence[Target], size_px: Size | None, device: Any, **options: Any
) -> list[Predict]:
    """Load a network and return how it predicts the images of each target.

    `options` are those of `Segmenter.from_pretrained`: scene and base.
    """
    if is_transformers(folder):
        return _load_transformers(folder, targets, size_px, device)
    from segtrain.segmenter import Segmenter

    segmenter = Segmenter.from_pretrained(folder, device=device, **options)

    def at(size: Size | None) -> Predict:
        return lambda path, image: segmenter.with_confidence(image, size_px=size, name=path)

    return [at(size_px or target.protocol.size_px(segmenter.recipe)) for target in targets]


def _load_transformers(
    folder: Path, targets: Sequence[Target], size_px: Size | None, device: Any
) -> list[Predict]:
    """Do what `load` does for transformers; sizes are those of the protocol's low resolution."""
    from pipeline.transformers_segmenter import TransformersSegmenter

    segmenter = TransformersSegmenter.from_pretrained(folder, device=device)

    def at(size: Size | None) -> Predict:
        return lambda _, image: _from_costs(segmenter, image, size)

    return [at(size_px or target.protocol.low_px) for target in targets]


def _from_costs(
    segmenter: Any, image: np.ndarray, size_px: Size | None
) -> tuple[np.ndarray, np.ndarray]:
    """Predict an image scaled into `size_px`; costs are scaled back, as logits of ours are."""
    import cv2

    height, width = image.shape[:2]
    inside = tested_size(height, width, WHOLE, size_px)
    scaled = image if inside == (height, width) else cv2.resize(image, inside[::-1])
    (costs,) = segmenter.costs([scaled])
    if inside != (height, width):
        costs = np.stack([cv2.resize(plane, (width, height)) for plane in costs])
    return costs.argmin(0).astype(np.uint8), np.exp(-costs.min(0)).clip(0, 1)


def of_predictions(paths: Mapping[Path, Path], space: str) -> Predict:
    """Return how predicted label maps are read: the file of each image, in a label space."""
    table = label_spaces.label_space(space) if space else None

    def read(path: Path, _: np.ndarray) -> tuple[np.ndarray, None]:
        try:
            return labels.read_label(paths[path], table), None
        except UserError as error:
            if "outside 0.." not in str(error):
                raise
            raise UserError(
                f"{paths[path]}: holds ids that are not train ids; give --prediction-space "
                "cityscapes_ids, or another label space"
            ) from None

    return read
