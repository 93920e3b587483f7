"""A training run's folder: its accelerator, its trackers, its identity and its end mark.

    config.json   metrics.jsonl   tensorboard/   checkpoints/step-<n>/   then the final weights

The checkpoints are in `pipeline.checkpoints`.
"""

import json
import math
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.tracking import GeneralTracker, on_main_process
from accelerate.utils import str_to_bool

from pipeline import files, ranks
from pipeline.checkpoints import latest_checkpoint
from pipeline.errors import UserError
from pipeline.folder_lock import lock_folder
from pipeline.output_folders import (
    RUN,
    check_output,
    require_same,
    require_writable,
    write_marker,
)
from pipeline.reading import read_json, shortened

CPU_VARIABLE = "ACCELERATE_USE_CPU"


class JsonlTracker(GeneralTracker):
    """An accelerate tracker that appends one JSON object per logged step to `metrics.jsonl`."""

    name = "jsonl"
    requires_logging_directory = False

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._path = folder / "metrics.jsonl"

    @property
    def tracker(self) -> Path:
        """The file written to."""
        return self._path

    @on_main_process
    def store_init_configuration(self, values: dict[str, Any]) -> None:
        """Nothing to do: `config.json` holds the configuration."""

    @on_main_process
    def log(self, values: dict[str, Any], step: int | None = None, **_: Any) -> None:
        """Append `values` with the step and the wall-clock time in seconds."""
        with open(self._path, "a") as handle:
            handle.write(
                json.dumps({"step": step, "time_s": round(time.time(), 3), **values}) + "\n"
            )


def is_kept_on_cpu() -> bool:
    """Return whether accelerate shall use the CPU alone, as with `accelerate launch --cpu`."""
    text = os.environ.get(CPU_VARIABLE, "false")
    try:
        return bool(str_to_bool(text))
    except ValueError:
        raise UserError(
            f"environment variable {CPU_VARIABLE}={shortened(text, 40)}: must be true or false; "
            "unset it"
        ) from None


def only_cpu() -> bool:
    """Return whether this process has no accelerator (accelerate then needs `cpu=True`)."""
    has_gpu = torch.cuda.is_available() or torch.backends.mps.is_available()
    return is_kept_on_cpu() or not has_gpu


def require_precision(setting: str, precision: str) -> None:
    """Raise `UserError` for float16 on a CPU: accelerate would train in float32 and not say so."""
    if precision == "fp16" and only_cpu():
        raise UserError(f"{setting} fp16: needs a GPU, and {_why_no_gpu()}; use bf16 or fp32")


def require_cuda(setting: str, remedy: str) -> None:
    """Raise `UserError` for a setting that needs CUDA, where this process has none."""
    if is_kept_on_cpu() or not torch.cuda.is_available():
        raise UserError(f"{setting}: needs a CUDA GPU, and {_why_no_gpu()}; {remedy}")


def _why_no_gpu() -> str:
    if is_kept_on_cpu():
        return f"{CPU_VARIABLE} keeps this process on the CPU"
    return "this machine has none"


def start_accelerator(**options: Any) -> Accelerator:
    """Create an Accelerator on what this machine has, for one process or those of a launcher.

    Stops if the launcher did not state where they find each other, or started more processes than
    accelerate sees: each would otherwise believe it is alone and repeat the whole work.
    """
    ranks.require_address()
    accelerator = Accelerator(cpu=only_cpu(), **options)
    expected = ranks.world_size()
    if accelerator.num_processes != expected:
        raise UserError(
            f"WORLD_SIZE={expected} but accelerate sees {accelerator.num_processes} process(es); "
            "start CPU processes with torchrun --nproc-per-node N"
        )
    return accelerator


def make_accelerator(
    folder: Path, *, accumulation: int = 1, precision: str = "fp32"
) -> Accelerator:
    """Create the run's Accelerator with JSONL and, where installed, TensorBoard trackers."""
    trackers: list[Any] = [JsonlTracker(folder)]
    try:
        import tensorboard  # noqa: F401

        trackers.append("tensorboard")
    except ImportError:
        pass
    accelerator = start_accelerator(
        gradient_accumulation_steps=accumulation,
        mixed_precision="no" if precision == "fp32" else precision,
        log_with=trackers,
        project_dir=str(folder),
        step_scheduler_with_optimizer=False,
    )
    accelerator.init_trackers("tensorboard")
    return accelerator


def end(accelerator: Accelerator) -> None:
    """Wait for all processes, then close the trackers and the process group; call it last.

    A process that leaves while others still write could be taken for the end of the program. And
    the threads of a process group must be idle when Python ends: otherwise they abort the process.
    """
    accelerator.wait_for_everyone()
    accelerator.end_training()


def open_run(
    folder: Path,
    config: Mapping[str, Any],
    *,
    is_main: bool,
    settings: Mapping[str, Any] | None = None,
) -> None:
    """Start or continue the run in `folder`, by the rules of `pipeline.output_folders`.

    The main process holds the folder until it ends.
    `settings`, with the paths that a config leaves out, are recorded beside it, never compared.
    """
    check_output(folder, RUN)
    require_same(folder, RUN, config)
    require_writable(folder)
    if is_main:
        lock_folder(folder)
        provenance = {"settings": dict(settings)} if settings else {}
        write_marker(folder, RUN, config, provenance=provenance)


def is_finished(folder: Path, steps: int) -> bool:
    """Tell whether the run's final weights for `steps` steps are in place."""
    path = folder / "finished.json"
    if not path.exists():
        return False
    mark = read_json(path)
    if not isinstance(mark, dict):
        raise UserError(f"{path}: is not a mark of a finished run; delete it and run again")
    return mark.get("steps") == steps


def mark_finished(folder: Path, steps: int, **results: Any) -> None:
    """Write the mark that the final weights are complete; call it last."""
    files.write_json(folder / "finished.json", {"steps": steps, **results})


def check_finite(value: float, step: int, folder: Path, what: str = "loss") -> None:
    """Stop before the update if `value` is not finite, naming the last good checkpoint."""
    if not math.isfinite(value):
        good = latest_checkpoint(folder)
        raise UserError(
            f"step {step}: the {what} is {value}; no update was made. Lower the learning rate; the "
            f"last good checkpoint is {good if good else 'none, the run starts again'}"
        )
