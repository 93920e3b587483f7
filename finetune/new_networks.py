"""Sizes of networks that are built from scratch, checked before torch is imported."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.errors import UserError
from pipeline.model_values import SHORTEST_TEXT
from pipeline.models import read_config

UNET_GROUPS = 16  # of the group normalisation in `finetune.base_model.build_text_to_image`
SMALLEST_VOCABULARY = 2 + 2 * 256  # start, end, and each byte within a word and at its end


def check_autoencoder(config: Any, init: Path | None) -> int:
    """Return the multiple, in pixels, that the sides of a crop must be of for `finetune/vae.py`.

    `init` is the folder of the autoencoder that is trained further. Raises `UserError` for
    settings of which no network can be built.
    """
    channels: Sequence[int] = config.channels
    if init:
        channels = read_config(init, "vae")["block_out_channels"]
    else:
        _require_multiples("--channels", channels, config.norm_groups, "--norm-groups")
    halving = 2 if config.scale_weight else 1  # the latent is halved for one term of the loss
    return 2 ** (len(channels) - 1) * halving


def check_text_to_image(config: Any, vae: Path, init: str | None) -> int:
    """Return the multiple, in pixels, that the sides of a crop must be of for `finetune/prior.py`.

    `vae` is the folder of its autoencoder, `init` that of the base which is trained further. Raises
    `UserError` for settings of which no network can be built.
    """
    channels: Sequence[int] = config.channels
    if init:
        channels = read_config(Path(init) / "unet", "unet")["block_out_channels"]
    else:
        _require_multiples("--channels", channels, UNET_GROUPS, "normalisation groups")
        _require_multiples("--channels", channels[1:], config.heads, "--heads")
        _require_multiples("--text-width", [config.text_width], config.heads, "--heads")
        _require_least("--vocabulary", config.vocabulary, SMALLEST_VOCABULARY)
        _require_least("--text-length", config.text_length, SHORTEST_TEXT)
    latent_levels = len(read_config(vae, "vae")["block_out_channels"])
    return 2 ** (latent_levels - 1 + len(channels) - 1)


def _require_multiples(setting: str, values: Sequence[int], divisor: int, what: str) -> None:
    if wrong := [value for value in values if value % divisor]:
        raise UserError(f"{setting} {wrong[0]}: must be a multiple of {divisor} ({what})")


def _require_least(setting: str, value: int, least: int) -> None:
    if value < least:
        raise UserError(f"{setting} {value}: must be {least} or more")
