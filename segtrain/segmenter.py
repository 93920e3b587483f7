"""Trained networks for use: an image in, a label map out.

from segtrain.segmenter import Segmenter
segmenter = Segmenter.from_pretrained("runs/mine/segtrain/generated")
label = segmenter("street.png")  # HxW train ids
"""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline.errors import UserError
from pipeline.images import read_image
from pipeline.reading import shortened
from segtrain import checkpoints, recipes
from segtrain.protocol import RESIZING, SMALLER, Size, require_sight
from segtrain.saved_recipe import LOADERS

SMALLEST_PX = 32  # below it the maps of common networks vanish; such images are padded
Image = np.ndarray | str | Path


class Segmenter:
    """A segmentor in eval mode with the test transforms of its recipe."""

    def __init__(self, model: Any, recipe: dict[str, Any], device: Any = "cpu") -> None:
        self.model, self.recipe = model.to(device).eval(), recipe
        self.device = torch.device(device)
        self._transforms: dict[Size | None, Any] = {}

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        *,
        scene: str | Path | None = None,
        base: str = "",
        device: Any = "cpu",
    ) -> "Segmenter":
        """Load an output folder of segtrain/train.py, with one of segtrain/adapt.py if given.

        `base`: where the diffusion model is, if it has moved since the training. The folder may
        come from strangers: nothing but known parts of networks is built from it.
        """
        tokens = checkpoints.load_scene(Path(scene), Path(folder)) if scene else None
        segmenter = cls(*checkpoints.load_trained(Path(folder), base), device)
        if tokens is not None:
            segmenter.model.scene = tokens.to(segmenter.device)
        return segmenter

    def __call__(
        self, image: Image, *, size_px: Size | None = None, name: str | Path = ""
    ) -> np.ndarray:
        """Return HxW uint8 train ids of an HxWx3 uint8 RGB image or an image file.

        `size_px`: height and width that the image is scaled into, its aspect kept, in place of
        the recipe's own scaling; the logits are scaled back as mmsegmentation does it. Raises
        `UserError`, with `name`, for an image that the network cannot take.
        """
        found = self._predict(image, size_px, name)
        return found.pred_sem_seg.data[0].byte().cpu().numpy()

    def with_confidence(
        self, image: Image, *, size_px: Size | None = None, name: str | Path = ""
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return what a call does, and the probability HxW float32 of the predicted classes."""
        found = self._predict(image, size_px, name)
        logits = found.seg_logits.data.float()
        confidence = (logits.amax(0) - logits.logsumexp(0)).exp()
        return found.pred_sem_seg.data[0].byte().cpu().numpy(), confidence.cpu().numpy()

    def _predict(self, image: Image, size_px: Size | None, name: str | Path) -> Any:
        """Return mmsegmentation's record of a prediction."""
        name = name or (image if isinstance(image, str | Path) else "the image")
        pixels = image if isinstance(image, np.ndarray) else read_image(Path(image))
        return self._predict_all([pixels], size_px, name)[0]

    @torch.no_grad()
    def _predict_all(
        self, images: Sequence[np.ndarray], size_px: Size | None, name: str | Path
    ) -> list[Any]:
        """Return mmsegmentation's records for images of one size, which errors call `name`."""
        with self._naming(name):
            inputs, samples = self.prepare(images, size_px)
            height, width = inputs.shape[-2:]
            require_sight(height, width, self.recipe)
            return self.model.predict(_pad_small(inputs, samples), samples)

    def costs(self, images: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Return -log of the probability of each class, KxHxW float32, for images of one size.

        Each is HxWx3 uint8 RGB and goes through the network at the recipe's own scale.
        """
        name = f"an image of {images[0].shape[1]}x{images[0].shape[0]} px"
        logits = [one.seg_logits.data.float() for one in self._predict_all(images, None, name)]
        return [-one.log_softmax(0).cpu().numpy() for one in logits]

    def prepare(
        self, images: Sequence[Image], size_px: Size | None = None
    ) -> tuple[torch.Tensor, list[Any]]:
        """Return the network's inputs BxCxhxw of images of one size, and their records."""
        return self._stack(self._pack(images, size_px))

    def prepare_by_size(
        self, images: Sequence[Image], size_px: Size | None = None
    ) -> list[tuple[torch.Tensor, list[Any]]]:
        """Return what `prepare` does for each group of images that reach the network alike."""
        groups: dict[tuple[int, ...], list[Any]] = {}
        for one in self._pack(images, size_px):
            groups.setdefault(tuple(one["inputs"].shape), []).append(one)
        return [self._stack(group) for group in groups.values()]

    def _transform(self, size_px: Size | None) -> Any:
        """Return the test transforms after the loaders, with another scaling if one is given."""
        from mmengine.dataset import Compose

        if size_px not in self._transforms:
            steps = [s for s in self.recipe["test_pipeline"] if s["type"] not in LOADERS]
            if size_px is not None:
                height, width = size_px
                resize = {"type": "Resize", "scale": (width, height), "keep_ratio": True}
                steps = [resize, *(step for step in steps if step["type"] not in RESIZING)]
            self._transforms[size_px] = Compose(recipes.with_tuples(steps))
        return self._transforms[size_px]

    def _pack(self, images: Sequence[Image], size_px: Size | None) -> list[Any]:
        packed, transform = [], self._transform(size_px)
        for image in images:
            pixels = image if isinstance(image, np.ndarray) else read_image(Path(image))
            size = pixels.shape[:2]
            metadata = {"img_shape": size, "ori_shape": size, "seg_fields": []}
            packed.append(transform({"img": np.ascontiguousarray(pixels[..., ::-1]), **metadata}))
        return packed

    def _stack(self, packed: list[Any]) -> tuple[torch.Tensor, list[Any]]:
        data = self.model.data_preprocessor(
            {key: [one[key] for one in packed] for key in ("inputs", "data_samples")}
        )
        return data["inputs"].to(self.device), data["data_samples"]

    @contextlib.contextmanager
    def _naming(self, name: str | Path) -> Iterator[None]:
        """Turn what a network cannot take into one line that names the image."""
        try:
            yield
        except UserError as error:
            raise UserError(f"{shortened(name)}: {error}") from None
        except Exception as error:  # whatever a network raises over a size that it cannot take
            reason = shortened(str(error).strip().partition("\n")[0]) or type(error).__name__
            if isinstance(error, MemoryError | torch.OutOfMemoryError) or "allocate" in reason:
                reason = "needs more memory than is free"
            raise UserError(
                f"{shortened(name)}: the network cannot take it ({reason}); leave it out, or "
                f"{SMALLER}"
            ) from None


def _pad_small(inputs: torch.Tensor, samples: list[Any]) -> torch.Tensor:
    """Return inputs BxCxhxw of at least `SMALLEST_PX`, and note in the records what to cut off.

    mmsegmentation removes the padding from the logits again. Edges are repeated: zeros would be a
    grey wall beside the image.
    """
    height, width = inputs.shape[-2:]
    below, right = max(SMALLEST_PX - height, 0), max(SMALLEST_PX - width, 0)
    if not below and not right:
        return inputs
    for sample in samples:
        padded = (height + below, width + right)
        sample.set_metainfo({"img_padding_size": (0, right, 0, below), "pad_shape": padded})
    return torch.nn.functional.pad(inputs, (0, right, 0, below), mode="replicate")
