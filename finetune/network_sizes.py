"""Sizes of networks that are built from scratch, checked before torch is imported."""

from collections.abc import Sequence
from dataclasses import dataclass

from finetune.settings import require_numbers
from pipeline.errors import UserError
from pipeline.model_values import SHORTEST_TEXT
from pipeline.setting_checks import require_between, require_positive

UNET_GROUPS = 16  # of the group normalisation in `finetune.base_model.build_text_to_image`
SMALLEST_VOCABULARY = 2 + 2 * 256  # start, end, and each byte within a word and at its end
WIDEST, MOST_LEVELS = 2**13, 8


@dataclass(frozen=True)
class AutoencoderSizes:
    """Sizes of a new autoencoder."""

    channels: tuple[int, ...] = (24, 48, 64)
    """feature channels per resolution; n entries reduce the image 2^(n-1) times"""
    latent_channels: int = 6
    """channels of the latent"""
    norm_groups: int = 8
    """groups of the group normalisation"""

    def __post_init__(self) -> None:
        require_positive(self, "latent_channels", "norm_groups")
        require_between(self, 1, 256, "latent_channels")
        require_between(self, 1, 2**12, "norm_groups")
        require_numbers("--channels", self.channels, WIDEST, most=MOST_LEVELS)

    def check_multiples(self) -> None:
        """Raise `UserError` unless the sizes divide as the network demands."""
        _require_multiples("--channels", self.channels, self.norm_groups, "--norm-groups")


@dataclass(frozen=True)
class BackboneSizes:
    """Sizes of a new vision transformer."""

    patch_px: int = 8
    """side of a patch in pixels"""
    width: int = 192
    """width of the tokens"""
    layers: int = 6
    """transformer layers"""
    heads: int = 3
    """attention heads"""
    grid: int = 16
    """patches along each side of the learned grid of positions, which is resized to each image"""

    def __post_init__(self) -> None:
        for name, largest in (
            ("patch_px", 64),
            ("width", WIDEST),
            ("layers", 64),
            ("heads", 64),
            ("grid", 256),
        ):
            require_between(self, 1, largest, name)

    def check_multiples(self) -> None:
        """Raise `UserError` unless the sizes divide as the network demands."""
        _require_multiples("--width", (self.width,), self.heads, "--heads")
        _require_multiples("--patch-px", (self.patch_px,), 2, "2, as each patch has four cells")


@dataclass(frozen=True)
class TextToImageSizes:
    """Sizes of a new U-Net, text encoder and tokenizer."""

    channels: tuple[int, ...] = (64, 96, 128)
    """U-Net channels per resolution; the first one has no attention"""
    layers: int = 1
    """residual blocks per resolution"""
    heads: int = 4
    """attention heads"""
    text_width: int = 96
    """width of the text encoder and of the cross attention"""
    text_layers: int = 2
    """layers of the text encoder"""
    text_length: int = 32
    """tokens of a prompt, start and end mark included"""
    vocabulary: int = 1200
    """largest size of the vocabulary learned from the captions"""

    def __post_init__(self) -> None:
        require_positive(self, "layers", "heads", "text_width", "text_layers")
        for name, largest in (
            ("layers", 32),
            ("heads", 256),
            ("text_width", 2**14),
            ("text_layers", 64),
            ("text_length", 2**12),
            ("vocabulary", 10**6),
        ):
            require_between(self, 0, largest, name)
        require_between(self, SHORTEST_TEXT, float("inf"), "text_length")
        require_between(self, SMALLEST_VOCABULARY, float("inf"), "vocabulary")
        require_numbers("--channels", self.channels, WIDEST, most=MOST_LEVELS)

    def check_multiples(self) -> None:
        """Raise `UserError` unless the sizes divide as the networks demand."""
        _require_multiples("--channels", self.channels, UNET_GROUPS, "normalisation groups")
        _require_multiples("--channels", self.channels[1:], self.heads, "--heads")
        _require_multiples("--text-width", [self.text_width], self.heads, "--heads")


def _require_multiples(setting: str, values: Sequence[int], divisor: int, what: str) -> None:
    if wrong := [value for value in values if value % divisor]:
        raise UserError(f"{setting} {wrong[0]}: must be a multiple of {divisor} ({what})")
