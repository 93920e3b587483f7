"""The start that all fine-tuning programs share; torch comes after settings and files."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.config import Invocation, require_extra, require_positive, to_mapping
from pipeline.dataset import Sample, check_dataset, open_dataset
from pipeline.errors import UserError

if TYPE_CHECKING:
    from accelerate import Accelerator

MAY_CHANGE = ("checkpoint_interval", "log_interval", "workers")  # without changing the result


def open_sources(folders: tuple[str, ...], *, labelled: bool) -> list[Sample]:
    """List the samples of all dataset folders; crops are drawn evenly from their union."""
    if not folders:
        raise UserError("--data: no dataset folder given; name one or more")
    return [s for folder in folders for s in open_dataset(folder, labelled=labelled)]


def plan(config: Any, samples: list[Sample]) -> None:
    """Print the resolved settings and what a run would do."""
    print(json.dumps(to_mapping(config), indent=2))
    training = config.training
    drawn = training.steps * training.batch_size * training.accumulation
    print(
        f"{len(samples)} samples found; {training.steps} updates draw {drawn} crops per process; "
        f"output: {config.output or '(none given)'}"
    )


def begin(
    config: Any, call: Invocation, samples: list[Sample]
) -> "tuple[Accelerator | None, Path]":
    """Check input and settings, then open the run.

    Returns (None, folder) if there is nothing to do: a dry run, or a run that is finished. Raises
    `UserError` before torch is imported for bad files, settings or output folders.
    """
    folder = Path(config.output)
    if call.dry_run:
        plan(config, samples)
        return None, folder
    require_positive(config.training, "steps", "batch_size", "accumulation")
    for name in ("min_snr_gamma", "lora_rank", "cached_crops", "previews"):
        if getattr(config, name, 0) < 0:
            flag = name.replace("_", "-")
            raise UserError(f"--{flag} {getattr(config, name)}: must be 0 (off) or more")
    if config.training.optimizer == "adamw_8bit":
        require_extra("--training.optimizer adamw_8bit", "bitsandbytes", "bitsandbytes")
    if getattr(config, "lora_rank", 0):
        require_extra(f"--lora-rank {config.lora_rank}", "peft", "lora")
    if not config.output:
        raise UserError("--output: no folder given; name the folder the run shall be written to")
    check_dataset(samples)

    from pipeline import runs

    mapping = to_mapping(config)
    mapping.pop("output")
    mapping.pop("previews", None)
    for name in MAY_CHANGE:
        mapping["training"].pop(name)
    finished = runs.is_finished(folder, config.training.steps)
    runs.open_run(folder, mapping, is_main=not finished)
    if finished:
        print(f"{folder}: finished already, nothing to do")
        return None, folder
    accelerator = runs.make_accelerator(folder, accumulation=1, precision=config.training.precision)
    return accelerator, folder
