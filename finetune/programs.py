"""The start that all fine-tuning programs share; torch comes after settings and files."""

import math
import os
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

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

if TYPE_CHECKING:
    from accelerate import Accelerator

AT_LEAST_ONE = {  # other numbers may be 0
    "latent_channels", "norm_groups", "layers", "heads", "text_width", "text_layers", "text_length",
    "vocabulary", "crops_per_image",
}  # fmt: skip
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
    if training.ema_decay >= 1:
        raise UserError(f"--training.ema-decay {training.ema_decay:g}: must be below 1")
    names = _numbers(config)
    require_between(config, 0, 1, *(name for name in names if name in SHARES))
    require_positive(config, *(name for name in names if name in AT_LEAST_ONE))
    require_between(config, 0, math.inf, *names)
    for name, values in (("size-px", config.crop.size_px), ("scales", config.crop.scales)):
        if not values or not min(values) > 0:
            given = " ".join(map(str, values)) or "(none)"
            raise UserError(f"--crop.{name} {given}: must be numbers above 0")


def _numbers(config: Any) -> list[str]:
    return [f.name for f in fields(config) if isinstance(getattr(config, f.name), int | float)]


def begin(
    config: Any,
    call: Invocation,
    samples: list[Sample],
    **inputs: tuple[str, str | Path | None],
) -> "tuple[Accelerator | None, Path]":
    """Check input and settings, then open the run.

    `inputs` are the models that the run starts from, by the name of their setting: kind of network
    ("base" for a whole base model) and folder or pinned hub id. Returns (None, folder) if there is
    nothing to do: a dry run, or a run that is finished. Raises `UserError` for bad files, settings
    or output folders before anything is written or any weights are loaded.
    """
    folder = Path(config.output)
    check_ranges(config)
    if call.dry_run:
        plan(config, samples)
        return None, folder
    if config.training.optimizer == "adamw_8bit":
        require_extra("--training.optimizer adamw_8bit", "bitsandbytes", "bitsandbytes")
    if getattr(config, "lora_rank", 0):
        require_extra(f"--lora-rank {config.lora_rank}", "peft", "lora")
    if not config.output:
        raise UserError("--output: no folder given; name the folder the run shall be written to")
    check_dataset(samples)

    from pipeline import models, runs

    if runs.is_finished(folder, config.training.steps):
        runs.refuse_other_run(folder, identify(config, samples, inputs))
        print(f"{folder}: finished already, nothing to do")
        return None, folder
    models.check_loadable(*inputs.values())
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
