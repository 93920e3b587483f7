"""Exact checkpoints of a training run: `checkpoints/step-<n>/`.

They are staged, fsynced, renamed by the main process and marked last; the older ones go only then,
and two are kept. Because every random number is a function of (seed, step), see `pipeline.seeding`,
parameters, optimizer and averages alone make a checkpoint exact.
"""

import contextlib
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from safetensors import SafetensorError
from safetensors.torch import save_file

from pipeline import checkpoint_files, files, ranks
from pipeline.errors import UserError

MARKER = "complete.json"
CHECKPOINTS_KEPT = 2


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
        if fault and ranks.is_main():
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
