"""How the weights of a training are held: whole on each process, or spread by FSDP.

The loop is the same for both. A strategy prepares model and optimizer, saves and loads checkpoints,
and gives the weights to preview and to write.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator, DistributedType
from torch.distributed.tensor import DTensor

from finetune.averages import make_averages
from finetune.settings import Training
from pipeline import checkpoints, runs
from pipeline.errors import UserError


@dataclass(frozen=True)
class ParameterGroup:
    """Parameters whose gradient norm is limited together."""

    parameters: list[torch.nn.Parameter]
    peak: float | None = None
    """Their peak learning rate; None takes that of the settings."""

    def drop_unless_finite(self, agree: Callable[[bool], bool] = bool) -> bool:
        """Delete gradients that are not all finite, so that no update is made; tell whether so.

        `agree` makes of what this process found the finding of all. Before those of fp16 are
        unscaled: one that overflows skips the update of all groups.
        """
        gradients = [local_part(p.grad) for p in self.parameters if p.grad is not None]
        finite = [torch.isfinite(gradient).all() for gradient in gradients]
        if agree(not finite or bool(torch.stack(finite).all())):
            return False
        for parameter in self.parameters:
            parameter.grad = None
        return True


def local_part(tensor: torch.Tensor) -> torch.Tensor:
    """Return what this process holds of a tensor that FSDP spreads, any other tensor itself."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


Grouping = Callable[[torch.nn.Module], list[ParameterGroup]]
"""Returns the trained parameters of a model in groups."""


class PlainStrategy:
    """Each process holds all weights: one process, or plain data parallelism."""

    def __init__(
        self,
        accelerator: Accelerator,
        model: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        settings: Training,
        folder: Path,
        grouping: Grouping,
    ) -> None:
        self.accelerator, self.folder, self.model = accelerator, folder, model
        self.groups = grouping(model)
        """what the optimizer changes"""
        self.averages = make_averages(settings, model)
        self.modules = {"model": model, **self.averages.modules}
        scaler = accelerator.scaler
        self.first_step = checkpoints.load_checkpoint(folder, self.modules, optimizer, scaler)
        """updates that the newest checkpoint has"""
        self.wrapped, self.optimizer = accelerator.prepare(model, optimizer)

    def check_norm(self, norm: torch.Tensor, step: int) -> None:
        """Stop before the update if the gradient norm is not finite."""
        check_norm(self.accelerator, norm, step, self.folder)

    def drop_unless_finite(self, group: ParameterGroup) -> bool:
        """Leave a network trained beside out of the update if its gradients are not finite."""
        return group.drop_unless_finite()

    def update_averages(self, step: int) -> None:
        """Take the weights after update `step` into the averages."""
        self.averages.update(self.model, step)

    def save(self, done: int) -> None:
        """Write a checkpoint after `done` updates."""
        if self.accelerator.is_main_process:
            self.averages.store(self.folder, done)
            checkpoints.save_checkpoint(
                self.folder, done, self.modules, self.optimizer, self.accelerator.scaler
            )

    def preview_weights(self) -> torch.nn.Module | None:
        """Return the weights to generate previews with, None if no process holds all of them."""
        return self.averages.weights or self.model

    def final_weights(self) -> torch.nn.Module:
        """Return the weights to write; call it on all processes, use it on the main process."""
        return self.averages.weights or self.model


class ShardedStrategy:
    """Each process holds a part of the weights (FSDP version 2); there are no averages."""

    def __init__(
        self,
        accelerator: Accelerator,
        model: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        folder: Path,
        whole: torch.nn.Module,
        grouping: Grouping,
    ) -> None:
        self.accelerator, self.folder, self.whole = accelerator, folder, whole
        self.wrapped, self.optimizer = accelerator.prepare(model, optimizer)
        self.first_step = checkpoints.load_sharded(accelerator, folder)
        self.groups = grouping(self.wrapped)

    def check_norm(self, norm: torch.Tensor, step: int) -> None:
        """Stop before the update if the norm of all parts is not finite; on all processes."""
        whole = norm.full_tensor() if isinstance(norm, DTensor) else norm
        check_norm(self.accelerator, whole, step, self.folder)

    def drop_unless_finite(self, group: ParameterGroup) -> bool:
        """Leave a network trained beside out of the update if any process tells so."""

        def agree(finite: bool) -> bool:
            found = torch.tensor(float(finite), device=self.accelerator.device)
            return float(self.accelerator.reduce(found, "mean")) == 1

        return group.drop_unless_finite(agree)

    def update_averages(self, step: int) -> None:
        """Do nothing: averages need all weights on each process."""

    def save(self, done: int) -> None:
        """Write a checkpoint after `done` updates; all processes take part."""
        checkpoints.save_sharded(self.accelerator, self.folder, done)

    def preview_weights(self) -> torch.nn.Module | None:
        """Return None: no process holds all weights."""
        return None

    def final_weights(self) -> torch.nn.Module:
        """Return the weights to write; call it on all processes, use it on the main process."""
        state = self.accelerator.get_state_dict(self.wrapped)
        if self.accelerator.is_main_process:
            self.whole.load_state_dict(state)
        return self.whole


def check_norm(accelerator: Accelerator, norm: torch.Tensor, step: int, folder: Path) -> None:
    """Raise `UserError` if the gradient norm of update `step` is not finite."""
    if not accelerator.scaler:  # fp16 skips updates that overflow by itself
        runs.check_finite(float(norm), step, folder, "gradient norm")


def uses_fsdp(accelerator: Accelerator, settings: Training) -> bool:
    """Tell whether FSDP spreads the weights; refuse what cannot be trained that way."""
    kind = accelerator.distributed_type
    if kind not in (DistributedType.FSDP, DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM):
        return False
    if kind != DistributedType.FSDP or not accelerator.is_fsdp2:
        raise UserError(
            f"accelerate's {kind.value}: not supported by this program; use plain data "
            "parallelism, or FSDP version 2 as in configs/accelerate/"
        )
    if settings.ema_decay or settings.ema_sigma_rel:
        setting = "ema-sigma-rel" if settings.ema_sigma_rel else "ema-decay"
        remedy = "leave it out" if settings.ema_sigma_rel else "set it to 0"
        raise UserError(
            f"--training.{setting}: averaged weights need all of the weights on each process; "
            f"{remedy} with FSDP"
        )
    return True
