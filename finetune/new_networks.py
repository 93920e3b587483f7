"""Sizes of networks that are built from scratch, checked before torch is imported."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.errors import UserError
from pipeline.model_values import SHORTEST_TEXT
from pipeline.models import read_config

UNET_GROUPS = 16  # of the group normalisation in `finetune.base_model.build_prior`
SMALLEST_VOCABULARY = 2 + 2 * 256  # start, end, and each byte within a word and at its end


def check_new_networks(config: Any, inputs: Mapping[str, tuple[str, str | Path | None]]) -> int:
    """Raise `UserError` for sizes of which no network can be built; return the crops' multiple.

    `config` is that of `finetune/vae.py` or `finetune/prior.py`, `inputs` the models that it
    continues from. The sides of a crop must be multiples of what is returned, in pixels.
    """
    if hasattr(config, "norm_groups"):
        _, init = inputs.get("init", ("vae", None))
        channels: Sequence[int] = config.channels
        if init:
            channels = read_config(Path(init), "vae")["block_out_channels"]
        else:
            _require_multiples("--channels", channels, config.norm_groups, "--norm-groups")
        halving = 2 if config.scale_weight else 1  # the latent is halved for one term of the loss
        return 2 ** (len(channels) - 1) * halving
    _, vae = inputs["vae"]
    _, init = inputs.get("init", ("base", None))
    channels = config.channels
    if init:
        channels = read_config(Path(init) / "unet", "unet")["block_out_channels"]
    else:
        _require_multiples("--channels", channels, UNET_GROUPS, "normalisation groups")
        _require_multiples("--channels", channels[1:], config.heads, "--heads")
        _require_multiples("--text-width", [config.text_width], config.heads, "--heads")
        _require_least("--vocabulary", config.vocabulary, SMALLEST_VOCABULARY)
        _require_least("--text-length", config.text_length, SHORTEST_TEXT)
    latent_levels = len(read_config(Path(str(vae)), "vae")["block_out_channels"])
    return 2 ** (latent_levels - 1 + len(channels) - 1)


def _require_multiples(setting: str, values: Sequence[int], divisor: int, what: str) -> None:
    if wrong := [value for value in values if value % divisor]:
        raise UserError(f"{setting} {wrong[0]}: must be a multiple of {divisor} ({what})")


def _require_least(setting: str, value: int, least: int) -> None:
    if value < least:
        raise UserError(f"{setting} {value}: must be {least} or more")
