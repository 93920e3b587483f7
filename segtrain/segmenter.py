"""Trained networks for use: a picture in, a label map out.

from segtrain.segmenter import Segmenter
segmenter = Segmenter.from_pretrained("runs/pocket/segtrain/generated")
label = segmenter("street.png")  # HxW train ids
"""

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
        cls, folder: str | Path, *, scene: str | Path | None = None, device: Any = "cpu"
    ) -> "Segmenter":
        """Load an output folder of segtrain/train.py, with one of segtrain/adapt.py if given."""
        segmenter = cls(*recipes.load_trained(Path(folder)), device)
        if scene:
            segmenter.use_scene(Path(scene))
        return segmenter

    def use_scene(self, folder: Path) -> None:
        """Use the scene tokens that segtrain/adapt.py learned."""
        from safetensors.torch import load_file

        facts = recipes.require_scene(folder)
        if facts["diffusion"] != recipes.diffusion_base(self.recipe) or not facts["diffusion"]:
            raise UserError(f"{folder}: was adapted from a network with another diffusion model")
        self.model.scene = load_file(folder / recipes.SCENE_FILE)["tokens"].float().to(self.device)

    @torch.no_grad()
    def __call__(self, image: Image) -> np.ndarray:
        """Return HxW uint8 train ids of an HxWx3 uint8 RGB picture or a picture file."""
        inputs, samples = self.prepare([image])
        result = self.model.predict(inputs, samples)
        return result[0].pred_sem_seg.data[0].byte().cpu().numpy()

    def prepare(self, images: Sequence[Image]) -> tuple[torch.Tensor, list[Any]]:
        """Return the network's inputs BxCxhxw of pictures of one size, and their records."""
        packed = []
        for image in images:
            pixels = image if isinstance(image, np.ndarray) else read_image(Path(image))
            size = pixels.shape[:2]
            facts = {"img_shape": size, "ori_shape": size, "seg_fields": []}
            packed.append(
                self._transform({"img": np.ascontiguousarray(pixels[..., ::-1]), **facts})
            )
        data = self.model.data_preprocessor(
            {key: [one[key] for one in packed] for key in ("inputs", "data_samples")}
        )
        return data["inputs"].to(self.device), data["data_samples"]
