"""Settings of a diffusion backbone, in the groups that recipes use. Imports no torch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal, TypeVar, get_args

from pipeline.errors import UserError
from pipeline.labels import CLASS_NAMES

Categories = Literal["none", "eos", "words"]
TrainedPart = Literal["frozen", "full", "lora"]
TEMPLATES = (
    "a photo of a {}",
    "a picture of the {}",
    "a street scene with a {}",
    "the {} in a street",
    "a small {}",
    "a large {}",
    "a {} in the city",
    "one {}",
    "a dark photo of a {}",
    "a bright photo of a {}",
    "a blurry photo of a {}",
    "a {} far away",
    "a {} close by",
)
Group = TypeVar("Group")


@dataclass(frozen=True)
class Features:
    """Which features are read, and how they become maps."""

    taps: Sequence[str] = ("up_blocks.2", "up_blocks.1", "up_blocks.0")
    """Modules of the U-Net or the autoencoder (`segtrain.diffusion.taps`)."""
    trajectory: Mapping[str, Any] = field(default_factory=lambda: {"type": "clean"})
    """`type`: clean, noised, inversion, diff37 or diff5; its settings: see
    `segtrain.diffusion.trajectories`."""
    aggregation: str = "taps"
    """taps, concat or direct (`segtrain.diffusion.aggregation`)."""
    out_channels: int | Sequence[int] = 64
    """Channels of all maps, or one number per stride, finest first."""
    pyramid: Sequence[int] = ()
    """Channels of a `FusionPyramid` on top, one level more than there are strides; () for none."""


@dataclass(frozen=True)
class Text:
    """What the prompt says."""

    categories: Categories = "none"
    """Tokens of the classes: none, eos or words (`segtrain.diffusion.prompts`)."""
    scenes: Sequence[str] = ("",)
    """Scene prompts, that of the source first; "" says nothing of the scene."""
    class_names: Sequence[str] = CLASS_NAMES
    """What the classes are called, in the order of their train ids."""
    templates: Sequence[str] = TEMPLATES
    """Sentences over which the token of a class is averaged, {} where its name goes."""
    adapter: bool = False
    """Learn a gated residual of the category tokens (the text adapter of VPD)."""

    def __post_init__(self) -> None:
        if self.categories not in get_args(Categories):
            known = ", ".join(get_args(Categories))
            raise UserError(f"categories {self.categories}: expected {known}")
        if not self.scenes:
            raise UserError('scenes: name at least one; [""] says nothing of the scene')
        if any("{}" not in template for template in self.templates):
            raise UserError("templates: each needs {} where the class name goes")


@dataclass(frozen=True)
class Training:
    """Which weights of the U-Net learn."""

    part: TrainedPart = "frozen"
    """frozen, full, or lora (an adapter). What does not learn is never stored."""
    rank: int = 8
    """Rank of the adapter of lora."""
    checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, more time."""
    random_weights: bool = False
    """Start from random weights, to see what the pretraining is worth; with full only."""

    def __post_init__(self) -> None:
        if self.part not in get_args(TrainedPart):
            known = ", ".join(get_args(TrainedPart))
            raise UserError(f'training.part "{self.part}": expected {known}')
        if self.random_weights and self.part != "full":
            raise UserError(
                'random_weights: needs training.part="full"; frozen weights are never stored'
            )


def read_group(kind: type[Group], settings: Mapping[str, Any] | None, name: str) -> Group:
    """Return the settings of a group from a recipe, or raise `UserError` for an unknown key."""
    settings = settings or {}
    if not isinstance(settings, Mapping):
        raise UserError(f"backbone.{name} {settings!r:.80}: must be a dict")
    known = [one.name for one in fields(kind)]  # type: ignore[arg-type]
    if unknown := sorted(set(settings) - set(known)):
        raise UserError(f"backbone.{name}.{unknown[0]}: not known; known: {', '.join(known)}")
    return kind(**settings)
