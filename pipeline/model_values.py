"""Values in the configs of a model folder that build, and then generate nothing or stop.

The stock classes check few of them. Nothing here imports torch.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.errors import UserError
from pipeline.reading import shortened

SPACINGS = ("linspace", "leading", "trailing")
LAST_SIGMAS = ("zero", "sigma_min")
FLOATS = ("F64", "F32", "F16", "BF16")  # numbers of weights, as safetensors calls them
COUNTERS = (  # whole numbers beside the weights: of older files, of BatchNorm, of Swin and BEiT
    "position_ids",
    "num_batches_tracked",
    "relative_position_index",
)
SHORTEST_TEXT = 3  # a token between begin and end


def check_schedule(path: Path, config: Mapping[str, Any], steps: int) -> None:
    """Raise `UserError` unless a scheduler's config gives noise that rises over `steps`."""
    first, last = config.get("beta_start", 0.0001), config.get("beta_end", 0.02)
    if not (_is_number(first) and _is_number(last) and 0 < first <= last < 1):
        _refuse(
            path,
            f"beta_start {first!r}, beta_end {last!r}",
            "must be above 0 and below 1, in order",
        )
    betas = config.get("trained_betas")
    if betas is not None and not (
        isinstance(betas, list)
        and len(betas) == steps
        and all(_is_number(beta) and 0 < beta <= 1 for beta in betas)
    ):
        _refuse(path, "trained_betas", f"must be {steps} numbers above 0, up to 1, or null")
    offset = config.get("steps_offset", 0)
    if type(offset) is not int or not 0 <= offset <= steps:
        _refuse(path, f"steps_offset {offset!r}", f"must be a whole number in 0..{steps}")
    for key, known in (("timestep_spacing", SPACINGS), ("final_sigmas_type", LAST_SIGMAS)):
        if (value := config.get(key, known[0])) not in known:
            _refuse(path, f"{key} {value!r}", f"must be one of {', '.join(known)}")


def check_network(path: Path, config: Mapping[str, Any]) -> None:
    """Raise `UserError` for numbers of a network's config with which no image comes out."""
    for key, value in config.items():
        if isinstance(value, float) and not math.isfinite(value):
            _refuse(path, f"{key} {value}", "must be finite")
        if "num_groups" in key and value is not None and not (type(value) is int and value > 0):
            _refuse(path, f"{key} {value!r}", "must be 1 or more")
    scale, shift = config.get("scaling_factor", 1.0), config.get("shift_factor")
    if not (_is_number(scale) and scale > 0):
        _refuse(path, f"scaling_factor {scale!r}", "must be a number above 0")
    if shift is not None and not _is_number(shift):
        _refuse(path, f"shift_factor {shift!r}", "must be a number or null")
    if (padding := config.get("downsample_padding", 1)) not in (0, 1):
        _refuse(path, f"downsample_padding {padding!r}", "must be 0 or 1")
    end = config.get("eos_token_id")
    if end is not None and type(end) is not int:
        _refuse(path, f"eos_token_id {end!r}", "must be a whole number")


def check_types(path: Path, types: Mapping[str, str]) -> None:
    """Raise `UserError` unless tensors, by name, are of floating-point numbers of 16 bits up."""
    for name, kind in types.items():
        if kind not in FLOATS and not name.endswith(COUNTERS):
            raise UserError(
                f"{path}: {shortened(name, 80)} is of {shortened(kind, 20)}, weights must be of "
                f"{', '.join(FLOATS)}; fetch the plain weights"
            )


def check_tokenizer(folder: Path, tokenizer: Any, ids: int) -> None:
    """Raise `UserError` unless a tokenizer gives prompts of some length and ids below `ids`."""
    length = tokenizer.model_max_length
    if type(length) is not int or length < SHORTEST_TEXT:
        _refuse(folder, f"model_max_length {length!r}", f"must be {SHORTEST_TEXT} or more")
    for name in ("bos_token", "eos_token", "pad_token"):
        if getattr(tokenizer, name) is None:
            _refuse(folder, name, "is missing")
    if (highest := max(tokenizer.get_vocab().values(), default=0)) >= ids:
        _refuse(folder, f"token {highest}", f"its text encoder knows the ids 0 to {ids - 1}")


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _refuse(path: Path, what: str, rule: str) -> None:
    raise UserError(f"{path}: {shortened(what, 100)}: {rule}; restore the file or fetch it again")
