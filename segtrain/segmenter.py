"""Trained networks for use: a picture in, a label map out.

from segtrain.segmenter import Segmenter
segmenter = Segmenter.from_pretrained("runs/mine/segtrain/generated")
label = segmenter("street.png")  # HxW train ids
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline.dataset import read_image
from pipeline.errors import UserError
from segtrain import recipes

LOADERS = ("LoadImageFromFile", "LoadAnnotations")
Image = np.ndarray | str | Path


class Segmenter:
    """A segmentor in eval mode with the test transforms of its recipe."""

    def __init__(self, model: Any, recipe: dict[str, Any], device: Any = "cpu") -> None:
        from mmengine.dataset import Compose

        self.model, self.recipe = model.to(device).eval(), recipe
        self.device = torch.device(device)
        transforms = [step for step in recipe["test_pipeline"] if step["type"] not in LOADERS]
        self._transform = Compose(transforms)

    @classmethod
    def from_pretrained(
        cls, folder: str | Path, *, scene: str | Path | None = None, base: str = "",
        device: Any = "cpu",
    ) -> "Segmenter":  # fmt: skip
        """Load an output folder of segtrain/train.py, with one of segtrain/adapt.py if given.

        `base`: where the diffusion model is, if it has moved since the training.
        """
        tokens = load_scene(Path(scene), Path(folder)) if scene else None
        segmenter = cls(*recipes.load_trained(Path(folder), base), device)
        if tokens is not None:
            segmenter.model.scene = tokens.to(segmenter.device)
        return segmenter

    @torch.no_grad()
    def __call__(self, image: Image) -> np.ndarray:
        """Return HxW uint8 train ids of an HxWx3 uint8 RGB picture or a picture file."""
        inputs, samples = self.prepare([image])
        result = self.model.predict(inputs, samples)
        return result[0].pred_sem_seg.data[0].byte().cpu().numpy()

    def prepare(self, images: Sequence[Image]) -> tuple[torch.Tensor, list[Any]]:
        """Return the network's inputs BxCxhxw of pictures of one size, and their records."""
        return self._stack(self._pack(images))

    def prepare_by_size(self, images: Sequence[Image]) -> list[tuple[torch.Tensor, list[Any]]]:
        """Return what `prepare` does for each group of pictures that reach the network alike."""
        groups: dict[tuple[int, ...], list[Any]] = {}
        for one in self._pack(images):
            groups.setdefault(tuple(one["inputs"].shape), []).append(one)
        return [self._stack(group) for group in groups.values()]

    def _pack(self, images: Sequence[Image]) -> list[Any]:
        packed = []
        for image in images:
            pixels = image if isinstance(image, np.ndarray) else read_image(Path(image))
            size = pixels.shape[:2]
            facts = {"img_shape": size, "ori_shape": size, "seg_fields": []}
            packed.append(
                self._transform({"img": np.ascontiguousarray(pixels[..., ::-1]), **facts})
            )
        return packed

    def _stack(self, packed: list[Any]) -> tuple[torch.Tensor, list[Any]]:
        data = self.model.data_preprocessor(
            {key: [one[key] for one in packed] for key in ("inputs", "data_samples")}
        )
        return data["inputs"].to(self.device), data["data_samples"]


def digest_of(path: Path) -> str:
    """Return a digest of a weights file, which names a network wherever its folder lies."""
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()[:16]


def load_scene(folder: Path, checkpoint: Path) -> torch.Tensor:
    """Return the scene tokens SxD that segtrain/adapt.py learned through a trained network.

    Raises `UserError` if it was another one: tokens that help one network may harm the next.
    """
    from safetensors.torch import load_file

    recipes.require_trained(checkpoint)
    facts = recipes.require_scene(folder)
    if facts["config"].get("weights") != digest_of(checkpoint / recipes.WEIGHTS_FILE):
        raise UserError(
            f"{folder}: its scene was not learned through {checkpoint}; run segtrain/adapt.py on "
            "that checkpoint, into another folder"
        )
    return load_file(folder / recipes.SCENE_FILE)["tokens"].float()
