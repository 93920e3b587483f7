"""The start that all fine-tuning programs share; torch comes after settings and files."""

import math
import os
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from pipeline.config import (
    Invocation,
    require_between,
    require_extra,
    require_positive,
    show,
    to_mapping,
)
from pipeline.dataset import Sample, check_dataset, open_dataset
from pipeline.errors import UserError
from pipeline.identity import run_identity
from pipeline.models import find_local, grid_px, read_config

if TYPE_CHECKING:
    from accelerate import Accelerator

AT_LEAST_ONE = {  # other numbers may be 0
    "latent_channels", "norm_groups", "layers", "heads", "text_width", "text_layers", "text_length",
    "vocabulary", "crops_per_image",
}  # fmt: skip
LARGEST = {  # far beyond what trains, so that a slip of the keys ends here and not in memory
    "steps": 10**9, "batch_size": 2**16, "accumulation": 2**16, "workers": 1024,
    "warmup_steps": 10**9, "checkpoint_interval": 10**9, "log_interval": 10**9,
    "latent_channels": 256, "norm_groups": 2**12, "layers": 32, "heads": 256, "text_width": 2**14,
    "text_layers": 64, "text_length": 2**12, "vocabulary": 10**6, "crops_per_image": 2**16,
    "lora_rank": 1024, "cached_crops": 10**9, "previews": 1024,
}  # fmt: skip
LARGEST_CROP_PX, LARGEST_SCALE, LARGEST_WIDTH, MOST_LEVELS = 8192, 32, 2**13, 8
SHARES = {"caption_dropout", "color_jitter", "mix_with_init"}
MAY_CHANGE = ("checkpoint_interval", "log_interval", "workers")  # without changing the result


def open_sources(folders: tuple[str, ...], *, labelled: bool) -> list[Sample]:
    """List the samples of all dataset folders; crops are drawn evenly from their union."""
    if not folders:
        raise UserError("--data: no dataset folder given; name one or more")
    return [s for folder in folders for s in open_dataset(folder, labelled=labelled)]


def plan(config: Any, samples: list[Sample]) -> None:
    """Print the resolved settings and what a run would do."""
    show(config)
    training = config.training
    drawn = training.steps * training.batch_size * training.accumulation
    print(
        f"{len(samples)} samples found; {training.steps} updates draw {drawn} crops per process; "
        f"output: {config.output or '(none given)'}"
    )


def check_ranges(config: Any) -> None:
    """Raise `UserError` for a number that cannot work; none may be negative."""
    training, group = config.training, "training."
    require_positive(
        training, "steps", "batch_size", "accumulation", "clip_norm",
        "checkpoint_interval", "log_interval", prefix=group,
    )  # fmt: skip
    require_between(training, 0, math.inf, *_numbers(training), prefix=group)
    for width in training.ema_sigma_rel:
        if not 0 < width <= 0.28:  # the widest power function, Karras et al., CVPR 2024, figure 5
            raise UserError(f"--training.ema-sigma-rel {width:g}: must be above 0 and at most 0.28")
    if training.ema_decay >= 1:
        raise UserError(f"--training.ema-decay {training.ema_decay:g}: must be below 1")
    names = _numbers(config)
    require_between(config, 0, 1, *(name for name in names if name in SHARES))
    require_positive(config, *(name for name in names if name in AT_LEAST_ONE))
    require_between(config, 0, math.inf, *names)
    if getattr(config, "cache_on_device", False) and not getattr(config, "cached_crops", 1):
        raise UserError("--cache-on-device: there is no cache; give --cached-crops N as well")
    for group, holder in (("training.", training), ("", config)):
        for name in set(_numbers(holder)) & set(LARGEST):
            require_between(holder, 0, LARGEST[name], name, prefix=group)
    _check_list("--crop.size-px", config.crop.size_px, LARGEST_CROP_PX)
    _check_list("--crop.scales", config.crop.scales, LARGEST_SCALE)
    if hasattr(config, "rare_classes"):
        require_positive(config.rare_classes, "temperature", prefix="rare-classes.")
        require_between(config.rare_classes, 0, math.inf, "min_pixels", prefix="rare-classes.")
    if (spread := getattr(config, "logit_normal", None)) and not spread[1] > 0:
        raise UserError(f"--logit-normal {spread[0]:g} {spread[1]:g}: the scale must be above 0")
    if hasattr(config, "channels"):
        _check_list("--channels", config.channels, LARGEST_WIDTH, most=MOST_LEVELS)


def _check_list(setting: str, values: tuple[float, ...], largest: float, most: int = 1000) -> None:
    given = " ".join(f"{value:.12g}" for value in values[:8]) or "(none)"
    if not values or not all(value > 0 for value in values):
        raise UserError(f"{setting} {given}: must be numbers above 0")
    if len(values) > most or max(values) > largest:
        raise UserError(f"{setting} {given}: must be at most {most} numbers up to {largest}")


def check_crop(config: Any, multiple: int, why: str) -> None:
    """Raise `UserError` unless a crop's sides are multiples of `multiple`, because of `why`."""
    if any(side % multiple for side in config.crop.size_px):
        height, width = config.crop.size_px
        raise UserError(
            f"--crop.size-px {height} {width}: height and width must be multiples of {multiple} "
            f"{why}"
        )


def check_base_fit(config: Any, base: str) -> None:
    """Raise `UserError` unless crops and adapters fit `base`; a hub id that is not here passes."""
    if (home := find_local(base)) is None:
        return
    check_crop(config, grid_px(home)[1], f"for --base {base}")
    widest = max(read_config(home / "unet", "unet")["block_out_channels"])
    if getattr(config, "lora_rank", 0) > widest:
        raise UserError(
            f"--lora-rank {config.lora_rank}: the widest layers of --base {base} have {widest} "
            "channels; 4 to 64 is usual"
        )


def check_cache(config: Any, folder: Path) -> None:
    """Raise `UserError` if `cached_crops` take more than the free disk, or memory, by far.

    An autoencoder's crops stay in memory as they are; others become latents in the run folder, of
    a quarter of a byte a pixel at least, with labels of one.
    """
    pixels = getattr(config, "cached_crops", 0) * config.crop.size_px[0] * config.crop.size_px[1]
    if hasattr(config, "norm_groups"):
        need, free, what = 3 * pixels, psutil.virtual_memory().total, "this machine's memory"
    else:
        need = pixels * (1.25 if hasattr(config, "rare_classes") else 0.25)
        here = next(p for p in (folder.resolve(), *folder.resolve().parents) if p.is_dir())
        free, what = shutil.disk_usage(here).free, "the free disk"
    if need > free:
        raise UserError(
            f"--cached-crops {config.cached_crops}: take at least {need / 1e9:.0f} GB, {what} is "
            f"{free / 1e9:.0f} GB; lower it"
        )


def _numbers(config: Any) -> list[str]:
    return [f.name for f in fields(config) if isinstance(getattr(config, f.name), int | float)]


def begin(
    config: Any,
    call: Invocation,
    samples: list[Sample],
    checks: Iterable[Callable[[], None]] = (),
    crop_multiple: Callable[[], int] | None = None,
    **inputs: tuple[str, str | Path | None],
) -> "tuple[Accelerator | None, Path]":
    """Check input and settings, then open the run.

    `inputs` are the models that the run starts from, by the name of their setting: kind of network
    ("base" for a whole base model) and folder or pinned hub id. `checks` are further ones that
    need the models to be there; they raise `UserError`. `crop_multiple` checks the sizes of new
    networks, which have no base, and returns what the sides of crops must be multiples of, in
    pixels. Returns (None, folder) if there is nothing to do: a dry run, or a run that is finished.
    Raises `UserError` for bad files, settings or output folders before anything is written or any
    weights are loaded.
    """
    folder = Path(config.output)
    check_ranges(config)
    if "base" in inputs:
        check_base_fit(config, str(inputs["base"][1]))
    if crop_multiple:
        check_crop(config, crop_multiple(), "for networks of these levels")
    if call.dry_run:
        plan(config, samples)
        return None, folder
    if config.training.optimizer == "adamw_8bit":
        require_extra("--training.optimizer adamw_8bit", "bitsandbytes", "bitsandbytes")
    if getattr(config, "lora_rank", 0):
        require_extra(f"--lora-rank {config.lora_rank}", "peft", "lora")
    if not config.output:
        raise UserError("--output: no folder given; name the folder the run shall be written to")
    for data in config.data:
        if Path(data).resolve() in folder.resolve().parents:
            raise UserError(f"--output {folder}: lies in --data {data}; choose another folder")
    check_cache(config, folder)
    check_dataset(samples)

    from pipeline import models, runs

    if runs.is_finished(folder, config.training.steps):
        runs.refuse_other_run(folder, identify(config, samples, inputs))
        print(f"{folder}: finished already, nothing to do")
        return None, folder
    models.check_loadable(*inputs.values())
    for check in checks:
        check()
    if os.environ.get("RANK", "0") == "0":  # the others wait for it when they meet
        runs.open_run(folder, identify(config, samples, inputs), is_main=True)
    accelerator = runs.make_accelerator(folder, accumulation=1, precision=config.training.precision)
    return accelerator, folder


def identify(
    config: Any, samples: list[Sample], inputs: Mapping[str, tuple[str, str | Path | None]]
) -> dict[str, Any]:
    """Return what makes two runs the same run; settings without effect on the result stay out."""
    settings = to_mapping(config)
    for name in ("output", "previews"):
        settings.pop(name, None)
    for name in MAY_CHANGE:
        settings["training"].pop(name)
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    models = {name: place for name, (_, place) in inputs.items()}
    return run_identity(settings, models=models, data={"data": samples}, processes=processes)
