"""A backbone for segmentation heads: features of a diffusion model, brought to a few maps.

A plain torch module around extractor, prompts and aggregation. What it returns does not depend on
the base model, so that a recipe's neck and head fit any.
"""

from collections.abc import Sequence
from typing import Any

import torch

from pipeline import models
from pipeline.errors import UserError
from pipeline.labels import CLASS_NAMES
from pipeline.prompt_encoder import PromptEncoder
from segtrain.diffusion.aggregation import Aggregation, FusionPyramid, Kind
from segtrain.diffusion.extractor import Faithful, Training, load_extractor
from segtrain.diffusion.prompts import TEMPLATES, Categories, TextContext
from segtrain.diffusion.taps import MAPS
from segtrain.diffusion.trajectories import TRAJECTORIES, Trajectory


class DiffusionBackbone(torch.nn.Module):
    """Maps pictures Bx3xHxW in [-1, 1] to maps of `out_channels`, finest first.

    `base` names the diffusion model (`pipeline.models`), `unet` another U-Net folder for it.
    `trajectory`: `type` (clean, noised, inversion, diff37, diff5) and its settings
    (`segtrain.diffusion.trajectories`).
    `taps`: see `segtrain.diffusion.taps`; `aggregation` and `out_channels`: see `Aggregation`.
    `pyramid`: channels of a `FusionPyramid` on top, one level more than there are strides.
    `categories`, `scenes`, `class_names`, `templates`, `adapter`: see `TextContext`.
    `training`: "frozen", "full" or "lora" of `rank`; weights that are not trained come from the
    base whenever the network is built, and are never stored with it. `faithful`: the published
    DIFF with its faults. `guidance`: scale of classifier-free guidance away from the prompt
    `negative` on the way between noise levels; 1 leaves it out.
    """

    def __init__(
        self,
        base: str = "pocket",
        unet: str = "",
        taps: Sequence[str] = ("up_blocks.2", "up_blocks.1", "up_blocks.0"),
        trajectory: dict[str, Any] | None = None,
        aggregation: Kind = "taps",
        out_channels: int | Sequence[int] = 64,
        pyramid: Sequence[int] = (),
        categories: Categories = "none",
        scenes: Sequence[str] = ("",),
        class_names: Sequence[str] = CLASS_NAMES,
        templates: Sequence[str] = TEMPLATES,
        adapter: bool = False,
        training: Training = "frozen",
        rank: int = 8,
        checkpointing: bool = False,
        random_weights: bool = False,
        faithful: bool = False,
        guidance: float = 1.0,
        negative: str = "",
        init_cfg: None = None,
    ) -> None:
        super().__init__()
        self.num_classes = len(class_names)
        self.extractor = load_extractor(
            base,
            unet=unet,
            taps=tuple(taps),
            trajectory=make_trajectory(trajectory),
            training=training,
            rank=rank,
            checkpointing=checkpointing,
            random_weights=random_weights,
            faithful=Faithful() if faithful else None,
            guidance=guidance,
        )
        self.text = TextContext(
            PromptEncoder(models.find_base(base)),
            categories=categories,
            scenes=scenes,
            class_names=class_names,
            templates=templates,
            adapter=adapter,
            negative=negative,
        )
        self.maps = {i for i, tap in enumerate(taps) if tap.endswith(MAPS)}
        if self.maps and categories == "none":
            raise UserError(f"taps with {MAPS} need categories: eos, words or sentence")
        with torch.no_grad():
            context = self.text()
        self.extractor.freeze_unused(context)
        shapes = self.extractor.tap_shapes(context)
        shapes = [(self.num_classes if i in self.maps else c, s) for i, (c, s) in enumerate(shapes)]
        self.aggregation = Aggregation(
            shapes, len(self.extractor.levels), aggregation, out_channels, averaged=self.maps
        )
        channels = self.aggregation.out_channels
        if pyramid and len(pyramid) != len(channels) + 1:
            raise UserError(f"pyramid {list(pyramid)}: needs {len(channels) + 1} channel counts")
        self.pyramid = FusionPyramid(channels, pyramid) if pyramid else None
        self.out_channels = self.pyramid.out_channels if self.pyramid else channels

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
        `class_ids`, for the conditional branch. `latents`: of the pictures, see `encode`.
        """
        collector = self.aggregation.open()

        def sink(level: int, tap: int, feature: torch.Tensor) -> None:
            if tap in self.maps:
                feature = self.text.class_maps(feature, self.num_classes)
            collector(level, tap, feature)

        context, paths = self.text(scene), None
        if masks is not None:
            context = self.text.paths(class_ids)
            paths = torch.cat([torch.ones_like(masks[:1]), masks])[:, :, None]
        away = self.text.away(masks is not None) if self.extractor.guidance != 1.0 else None
        self.extractor.stream(images, context, sink, masks=paths, latents=latents, negative=away)
        maps = collector.finish()
        return self.pyramid(maps) if self.pyramid else maps

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        """Return the latents of pictures, for several passes over them."""
        return self.extractor.encode(images)


def make_trajectory(settings: dict[str, Any] | None) -> Trajectory:
    """Build a trajectory from a recipe's settings."""
    options = dict(settings or {"type": "clean"})
    kind = options.pop("type", None)
    if kind not in TRAJECTORIES:
        raise UserError(f"trajectory type {kind}: expected one of {', '.join(TRAJECTORIES)}")
    options = {k: tuple(v) if isinstance(v, list) else v for k, v in options.items()}
    try:
        return TRAJECTORIES[kind](**options)
    except TypeError as error:
        raise UserError(f"trajectory {kind}: {error}") from None
