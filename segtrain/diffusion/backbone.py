"""A backbone for segmentation heads: features of a diffusion model, brought to a few maps.

A plain torch module around extractor, prompts and aggregation. What it returns does not depend on
the base model, so that a recipe's neck and head fit any.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch

from pipeline import models
from pipeline.errors import UserError
from pipeline.prompt_encoder import PromptEncoder
from segtrain.diffusion.aggregation import AGGREGATIONS, Aggregation, Feature, FusionPyramid
from segtrain.diffusion.extractor import DiffusionExtractor, load_extractor
from segtrain.diffusion.options import Features, Text, Training, read_group
from segtrain.diffusion.prompts import TextContext
from segtrain.diffusion.released_diff import ReleasedDiffExtractor
from segtrain.diffusion.taps import MAPS
from segtrain.diffusion.trajectories import TRAJECTORIES, Trajectory


class DiffusionBackbone(torch.nn.Module):
    """Maps images Bx3xHxW in [-1, 1] to maps of `out_channels` channels, finest first.

    `base` names the diffusion model (`pipeline.models`), `unet` another U-Net folder for it.
    `features`, `text`, `training`: settings of `segtrain.diffusion.options`. Weights that do not
    learn come from the base whenever the network is built, and are never stored with it.
    `as_released`: the features of DIFF with the faults of its released code.
    """

    def __init__(
        self,
        base: str = "pocket",
        unet: str = "",
        *,
        features: Mapping[str, Any] | None = None,
        text: Mapping[str, Any] | None = None,
        training: Mapping[str, Any] | None = None,
        as_released: bool = False,
    ) -> None:
        super().__init__()
        read = read_group(Features, features, "features")
        prompt = read_group(Text, text, "text")
        self.num_classes = len(prompt.class_names)
        self.extractor = load_extractor(
            base,
            unet=unet,
            taps=tuple(read.taps),
            trajectory=make_trajectory(read.trajectory),
            training=read_group(Training, training, "training"),
            kind=ReleasedDiffExtractor if as_released else DiffusionExtractor,
        )
        self.text = TextContext(PromptEncoder(models.find_base(base)), prompt)
        self.attention_taps = {i for i, tap in enumerate(read.taps) if tap.endswith(MAPS)}
        if self.attention_taps and prompt.categories == "none":
            raise UserError(f"taps with {MAPS} need text.categories: eos or words")
        with torch.no_grad():
            context = self.text()
        self.extractor.freeze_unused(context)
        self.aggregation = self._make_aggregation(read, self.extractor.tap_shapes(context))
        channels = self.aggregation.out_channels
        if read.pyramid and len(read.pyramid) != len(channels) + 1:
            raise UserError(
                f"pyramid {list(read.pyramid)}: needs {len(channels) + 1} channel counts"
            )
        self.pyramid = FusionPyramid(channels, read.pyramid) if read.pyramid else None
        self.out_channels = self.pyramid.out_channels if self.pyramid else channels

    def _make_aggregation(self, read: Features, shapes: Sequence[tuple[int, int]]) -> Aggregation:
        if read.aggregation not in AGGREGATIONS:
            known = ", ".join(AGGREGATIONS)
            raise UserError(f"aggregation {read.aggregation}: expected {known}")
        shapes = [
            (self.num_classes if tap in self.attention_taps else channels, stride)
            for tap, (channels, stride) in enumerate(shapes)
        ]
        return AGGREGATIONS[read.aggregation](
            shapes, len(self.extractor.levels), read.out_channels, self.attention_taps
        )

    def forward(
        self,
        images: torch.Tensor,
        *,
        scene: int | torch.Tensor = 0,
        masks: torch.Tensor | None = None,
        class_ids: Sequence[int] = (),
        latents: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, ...]:
        """Return the maps.

        `scene`: number of a scene prompt, or scene tokens SxD. `masks`: KxBxhxw of the classes
        `class_ids`, for the conditional branch. `latents`: of the images, see `encode`.
        """
        context, paths = self.text(scene), None
        if masks is not None:
            context = self.text.class_prompts(class_ids)
            paths = torch.cat([torch.ones_like(masks[:1]), masks])[:, :, None]
        features = self.extractor.features(images, context, masks=paths, latents=latents)
        maps = self.aggregation(self._with_class_maps(features))
        return self.pyramid(maps) if self.pyramid else maps

    def _with_class_maps(self, features: Iterable[Feature]) -> Iterator[Feature]:
        """Yield the features, attention maps of tokens replaced by those of the classes."""
        for level, tap, feature in features:
            if tap in self.attention_taps:
                feature = self.text.class_maps(feature, self.num_classes)
            yield level, tap, feature

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        """Return the latents of images, for several passes over them."""
        return self.extractor.encode(images)


def make_trajectory(settings: Mapping[str, Any]) -> Trajectory:
    """Build a trajectory from a recipe's settings."""
    options = dict(settings)
    kind = options.pop("type", None)
    if kind not in TRAJECTORIES:
        raise UserError(f"trajectory type {kind}: expected one of {', '.join(TRAJECTORIES)}")
    options = {k: tuple(v) if isinstance(v, list) else v for k, v in options.items()}
    try:
        return TRAJECTORIES[kind](**options)
    except TypeError as error:
        raise UserError(f"trajectory {kind}: {error}") from None
