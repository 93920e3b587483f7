"""The start and the end that all fine-tuning programs share."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.config import require_positive, to_mapping
from pipeline.dataset import Sample, check_dataset
from pipeline.errors import UserError

if TYPE_CHECKING:
    from accelerate import Accelerator


def plan(config: Any, samples: list[Sample]) -> None:
    """Print the resolved settings and what a run would do."""
    print(json.dumps(to_mapping(config), indent=2))
    training = config.training
    drawn = training.steps * training.batch_size * training.accumulation
    print(
        f"{len(samples)} samples found; {training.steps} updates draw {drawn} crops per process; "
        f"output: {config.output or '(none given)'}"
    )


def begin(config: Any, samples: list[Sample]) -> "tuple[Accelerator | None, Path]":
    """Check input and settings, then open the run; (None, folder) if it is finished already.

    Raises `UserError` before torch is imported for bad files, settings or output folders.
    """
    require_positive(config.training, "steps", "batch_size", "accumulation")
    if not config.output:
        raise UserError("--output: no folder given; name the folder the run shall be written to")
    folder = Path(config.output)
    check_dataset(samples)

    from pipeline import runs

    mapping = to_mapping(config)
    mapping.pop("output")
    for name in ("checkpoint_interval", "log_interval", "workers"):
        mapping["training"].pop(name)  # may change between restarts without changing the result
    if runs.is_finished(folder, config.training.steps):
        runs.open_run(folder, mapping, is_main=False)
        return None, folder
    runs.open_run(folder, mapping, is_main=True)
    accelerator = runs.make_accelerator(folder, accumulation=1, precision=config.training.precision)
    return accelerator, folder


def finish_notice(folder: Path) -> None:
    """Say that there is nothing to do."""
    print(f"{folder}: finished already, nothing to do")
