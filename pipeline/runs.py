"""A training run's folder: its accelerator, its trackers, its exact checkpoints.

    config.json   metrics.jsonl   tensorboard/   checkpoints/step-<n>/   then the final weights

Checkpoints are staged, fsynced, renamed by the main process and marked last; the older ones go
only then, and two are kept. Because every random draw is a function of (seed, step), see
`pipeline.seeding`, a checkpoint needs parameters, optimizer and averages alone to be exact.
"""

import contextlib
import json
import math
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.tracking import GeneralTracker, on_main_process
from safetensors import SafetensorError
from safetensors.torch import save_file

from pipeline import checkpoint_files, files
from pipeline.config import differences, digest
from pipeline.errors import UserError
from pipeline.output_folders import check_run_folder

MARKER = "complete.json"
CHECKPOINTS_KEPT = 2
LEFT_BEHIND = ("checkpoints", "logs", "metrics.jsonl", "tensorboard")  # of an interrupted start


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


def only_cpu() -> bool:
    """Tell whether no accelerator is here; accelerate sees several CPU processes only if told."""
    return not torch.cuda.is_available() and not torch.backends.mps.is_available()


def make_accelerator(folder: Path, *, accumulation: int = 1, precision: str = "no") -> Accelerator:
    """Create the run's Accelerator with JSONL and, where installed, TensorBoard trackers.

    Stops if the launcher started more processes than accelerate sees: each would otherwise
    believe it is alone and repeat the whole work.
    """
    trackers: list[Any] = [JsonlTracker(folder)]
    try:
        import tensorboard  # noqa: F401

        trackers.append("tensorboard")
    except ImportError:
        pass
    accelerator = Accelerator(
        cpu=only_cpu(),
        gradient_accumulation_steps=accumulation,
        mixed_precision=precision,
        log_with=trackers,
        project_dir=str(folder),
        step_scheduler_with_optimizer=False,
    )
    expected = int(os.environ.get("WORLD_SIZE", "1"))
    if accelerator.num_processes != expected:
        raise UserError(
            f"WORLD_SIZE={expected} but accelerate sees {accelerator.num_processes} process(es); "
            "start CPU processes with torchrun --nproc-per-node N"
        )
    accelerator.init_trackers("tensorboard")
    return accelerator


def refuse_other_run(folder: Path, config: Mapping[str, Any]) -> None:
    """Raise `UserError` unless `folder` is new, empty or holds the run of `config`."""
    path = folder / "config.json"
    if not path.exists():
        found = folder.iterdir() if folder.is_dir() else ()
        others = sorted(p.name for p in found if not _is_ours(p))
        if not others or path.exists():  # the main process of this run may just have started it
            check_run_folder(folder)
            return
        what = "is a dataset folder" if (folder / "run.json").exists() else f"holds {others[0]}"
        raise UserError(
            f"{folder}: {what} and no run of this program (no config.json); choose another --output"
        )
    stored = files.read_json(path)
    if not isinstance(stored, dict) or not isinstance(stored.get("config"), dict):
        raise UserError(
            f"{path}: is not the config of a run, is this a model folder? choose another --output"
        )
    lines = differences(stored["config"], dict(config))
    if lines:
        empty = all(p == path or _is_ours(p) for p in folder.iterdir())
        empty = empty and latest_checkpoint(folder) is None
        begun = "delete it, nothing was made yet" if empty else "repeat the command that began it"
        raise UserError(
            f"{folder}: holds another run ({'; '.join(lines[:6])}); choose another --output, "
            f"or {begun}"
        )
    check_run_folder(folder)


def _is_ours(path: Path) -> bool:
    """Tell whether a run may leave this behind before its config, or a launcher or desktop did."""
    hidden = path.name.startswith(".") or files.TEMPORARY_MARK in path.name
    return hidden or path.name in LEFT_BEHIND or path.suffix in (".log", ".out", ".err")


def open_run(
    folder: Path,
    config: Mapping[str, Any],
    *,
    is_main: bool,
    settings: Mapping[str, Any] | None = None,
) -> None:
    """Start or continue the run in `folder`; another config is refused with the differences.

    `settings`, with the paths that a config leaves out, are recorded beside it, never compared.
    """
    refuse_other_run(folder, config)
    files.require_writable(folder)
    path = folder / "config.json"
    if is_main and not path.exists():
        recorded = {"settings": dict(settings)} if settings else {}
        config = dict(config)
        files.write_json(path, {"config": config, "digest": digest(config), **recorded})


def is_finished(folder: Path, steps: int) -> bool:
    """Tell whether the run's final weights for `steps` steps are in place."""
    path = folder / "finished.json"
    if not path.exists():
        return False
    mark = files.read_json(path)
    if not isinstance(mark, dict):
        raise UserError(f"{path}: is no mark of a finished run; delete it and run again")
    return mark.get("steps") == steps


def mark_finished(folder: Path, steps: int, **facts: Any) -> None:
    """Write the mark that the final weights are complete; call it last."""
    files.write_json(folder / "finished.json", {"steps": steps, **facts})


def check_finite(value: float, step: int, folder: Path, what: str = "loss") -> None:
    """Stop before the update if `value` is not finite, naming the last good checkpoint."""
    if not math.isfinite(value):
        good = latest_checkpoint(folder)
        raise UserError(
            f"step {step}: the {what} is {value}; no update was made. Lower the learning rate; the "
            f"last good checkpoint is {good if good else 'none, the run starts anew'}"
        )


def latest_checkpoint(folder: Path) -> Path | None:
    """Return the newest complete checkpoint of the run, None if there is none."""
    complete = _complete(folder)
    return complete[-1] if complete else None


def _complete(folder: Path) -> list[Path]:
    """List the complete checkpoints of a run, the oldest first."""
    return sorted(p for p in (folder / "checkpoints").glob("step-*") if (p / MARKER).is_file())


def save_checkpoint(
    folder: Path,
    step: int,
    modules: Mapping[str, Any],
    optimizer: torch.optim.Optimizer,
    scaler: Any = None,
) -> None:
    """Write a checkpoint of unwrapped `modules` and `optimizer` after `step` updates.

    `scaler` is the loss scaler of fp16, whose factor belongs to the exact state. Call on the main
    process only. With a full disk the previous checkpoint stays intact.
    """
    staging = _staging(folder, step, os.getpid())
    with _full_disk_is_said(staging):
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir(parents=True)
        for name, module in modules.items():
            state = {k: v.contiguous() for k, v in module.state_dict().items()}
            save_file(state, staging / f"{name}.safetensors")
        tensors, scalars = _split_optimizer(optimizer)
        scalars["scaler"] = scaler.state_dict() if scaler else None
        save_file(tensors, staging / "optimizer.safetensors")
        (staging / "optimizer.json").write_text(json.dumps(scalars))
        _commit(staging, step)


def save_sharded(accelerator: Accelerator, folder: Path, step: int) -> None:
    """Write a checkpoint of what FSDP spreads over the processes; call it on all of them."""
    staging = _staging(folder, step, 0)  # one name for all
    with _full_disk_is_said(staging):
        if accelerator.is_main_process:
            shutil.rmtree(staging, ignore_errors=True)
        accelerator.wait_for_everyone()
        accelerator.save_state(str(staging))
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            _commit(staging, step)


def _staging(folder: Path, step: int, owner: int) -> Path:
    name = f"step-{step:08d}{files.TEMPORARY_MARK}{owner}-0"
    return folder / "checkpoints" / name


@contextlib.contextmanager
def _full_disk_is_said(staging: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, SafetensorError) as error:
        shutil.rmtree(staging, ignore_errors=True)
        raise UserError(
            f"{staging.parent}: checkpoint not written ({error}); the previous one is intact, "
            "free some space and run the same command again"
        ) from None


def _commit(staging: Path, step: int) -> None:
    """Make a staged checkpoint durable, rename it, mark it, and purge all but the newest two."""
    target = staging.with_name(f"step-{step:08d}")
    for path in staging.rglob("*"):
        if path.is_file():
            with open(path, "rb+") as handle:
                os.fsync(handle.fileno())
    shutil.rmtree(target, ignore_errors=True)  # an unmarked rest of a killed save
    os.replace(staging, target)
    files.fsync_folder(target.parent)
    files.write_json(target / MARKER, {"step": step})
    kept = sorted(p for p in target.parent.glob("step-*") if (p / MARKER).is_file())
    for path in target.parent.glob("step-*"):  # older ones, and the rests of killed saves
        if path not in kept[-CHECKPOINTS_KEPT:]:
            shutil.rmtree(path)


def load_checkpoint(
    folder: Path, modules: Mapping[str, Any], optimizer: torch.optim.Optimizer, scaler: Any = None
) -> int:
    """Load the newest whole checkpoint in place and return its step, 0 if there is none.

    A damaged one is said and passed over for the one before.
    """

    def restore(path: Path) -> int:
        step = checkpoint_files.read_step(path / MARKER)
        states = {
            name: checkpoint_files.read_state(path / f"{name}.safetensors", module)
            for name, module in modules.items()
        }
        state, scalars = checkpoint_files.read_optimizer(path, optimizer)
        optimizer.load_state_dict(state)  # the first to change, and the last that may fail
        for name, module in modules.items():
            module.load_state_dict(states[name])
        if scaler and scalars.get("scaler"):
            scaler.load_state_dict(scalars["scaler"])
        return step

    return _newest_whole(folder, restore)


def load_sharded(accelerator: Accelerator, folder: Path) -> int:
    """Load the newest whole sharded checkpoint into the prepared objects; return its step."""

    def restore(path: Path) -> int:
        step = checkpoint_files.read_step(path / MARKER)
        checkpoint_files.check_sharded(path)
        accelerator.load_state(str(path))
        return step

    return _newest_whole(folder, restore)


def _newest_whole(folder: Path, restore: Callable[[Path], int]) -> int:
    """Return what `restore` gives for the newest checkpoint that it can read."""
    fault = ""
    for path in reversed(_complete(folder)):
        if fault and os.environ.get("RANK", "0") == "0":
            print(f"streetforge: {fault}; {path.name} is tried", file=sys.stderr)
        try:
            return restore(path)
        except (*checkpoint_files.DAMAGE, UserError) as error:
            fault = f"{path}: cannot be used ({' '.join(str(error).split())[:200]})"
    if fault:
        raise UserError(
            f"{fault}; no other is whole: restore one, or delete {folder / 'checkpoints'} to "
            "begin again"
        )
    return 0


def _split_optimizer(optimizer: Any) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    state = optimizer.state_dict()
    tensors: dict[str, torch.Tensor] = {}
    scalars, seen = {}, set()
    for name, value in _flat(state["state"]):
        if not torch.is_tensor(value):
            scalars[name] = value
            continue
        value = value.contiguous()
        if value.data_ptr() in seen:  # 8-bit AdamW shares its code book; safetensors refuses
            value = value.clone()
        seen.add(value.data_ptr())
        tensors[name] = value
    return tensors, {"state": scalars, "param_groups": state["param_groups"]}


def _flat(values: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (names joined by dots, value) of nested mappings, as 8-bit AdamW keeps its state."""
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
