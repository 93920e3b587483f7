"""A segmentation network of transformers (SegFormer, UperNet, ...).

Its classes are matched by name to the 19 of Cityscapes. Images are normalised by the folder's
preprocessor_config.json and keep their size. Only safetensors are read.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline.errors import UserError
from pipeline.labels import CLASS_NAMES, NUM_CLASSES
from pipeline.reading import read_json
from pipeline.transformers_folder import load_network

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, where a folder says none
UNNAMED = 20.0  # cost of a class that a network does not know


class TransformersSegmenter:
    """A network that `AutoModelForSemanticSegmentation` loads."""

    def __init__(self, model: Any, mean: Sequence[float], std: Sequence[float]) -> None:
        self.model = model.eval()
        self.names = [str(model.config.id2label[i]).lower() for i in range(model.config.num_labels)]
        self._mean, self._std = (
            torch.tensor(values, device=model.device).view(1, 3, 1, 1) for values in (mean, std)
        )

    @classmethod
    def from_pretrained(cls, folder: str | Path, *, device: Any = "cpu") -> "TransformersSegmenter":
        """Load a local folder.

        Raises `UserError` if it is none, lacks weights, or names no street class.
        """
        from transformers import AutoModelForSemanticSegmentation

        model = load_network(
            AutoModelForSemanticSegmentation, folder, name=str(folder), what="segmentation network"
        ).to(device)
        if set(model.config.id2label) != set(range(model.config.num_labels)):
            raise UserError(
                f"{folder}: id2label of its config.json must name the classes 0 to "
                f"{model.config.num_labels - 1}; complete it"
            )
        path = Path(folder) / "preprocessor_config.json"
        config = read_json(path, dict) if path.is_file() else {}
        mean, std = config.get("image_mean", MEAN), config.get("image_std", STD)
        _check_normalisation(path, mean, std)
        segmenter = cls(model, mean, std)
        if not set(segmenter.names) & set(CLASS_NAMES):
            raise UserError(
                f"{folder}: none of its classes ({', '.join(segmenter.names[:4])}) is called like "
                f"one of Cityscapes ({', '.join(CLASS_NAMES[:4])}); name them in its config.json"
            )
        return segmenter

    @torch.no_grad()
    def costs(self, images: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Return -log probability 19xHxW float32 of each class, for HxWx3 images of one size."""
        batch = torch.from_numpy(np.stack(images)).to(self._mean.device).movedim(-1, 1) / 255
        logits = self.model(pixel_values=(batch - self._mean) / self._std).logits
        logits = torch.nn.functional.interpolate(
            logits.float(), images[0].shape[:2], mode="bilinear", align_corners=False
        )
        return [by_train_id(one, self.names) for one in -logits.log_softmax(1).cpu().numpy()]


def _check_normalisation(path: Path, mean: Any, std: Any) -> None:
    for name, values, low in (("image_mean", mean, -math.inf), ("image_std", std, 0.0)):
        is_sound = isinstance(values, list | tuple) and len(values) == 3
        if not is_sound or not all(
            type(v) in (int, float) and math.isfinite(v) and v > low for v in values
        ):
            above = " above 0" if low == 0 else ""
            raise UserError(f"{path}: {name} must be three numbers{above}; restore the file")


def by_train_id(costs: np.ndarray, names: Sequence[str]) -> np.ndarray:
    """Reorder costs CxHxW of classes `names` to the 19 train ids; an unknown class costs much."""
    ordered = np.full((NUM_CLASSES, *costs.shape[1:]), UNNAMED, np.float32)
    for channel, name in enumerate(names):
        if name in CLASS_NAMES:
            ordered[CLASS_NAMES.index(name)] = costs[channel]
    return ordered
