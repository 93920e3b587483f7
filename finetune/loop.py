"""The one training loop of the fine-tuning programs, and what a program gives to it: a task."""

import contextlib
import copy
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DynamoBackend
from tqdm import tqdm

from finetune.data import Batches
from finetune.settings import Training, learning_rate
from finetune.start import Run
from finetune.strategies import PlainStrategy, ShardedStrategy, uses_fsdp
from pipeline import runs
from pipeline.errors import UserError
from pipeline.seeding import seed_of
from pipeline.stopping import StopRequest, leave


@dataclass
class Loss:
    """The loss of a micro-batch, a scalar, and further values to log."""

    value: torch.Tensor
    logged: dict[str, torch.Tensor] = field(default_factory=dict)


class Task(ABC):
    """One kind of training: its model, data, loss, previews and final weights."""

    model: torch.nn.Module
    """Its parameters that require gradients are trained."""
    batches: Batches

    @abstractmethod
    def loss(
        self, model: torch.nn.Module, batch: Any, generator: torch.Generator, *, step: int
    ) -> Loss:
        """Return the loss of a batch of update `step` for `model`, the wrapped form of the task's.

        All of its randomness comes from `generator`, on the device of the model.
        """

    def preview(self, weights: torch.nn.Module, step: int) -> dict[str, float]:
        """Write previews after `step` updates; return values to log. Main process only."""
        return {}

    @abstractmethod
    def save(self, weights: torch.nn.Module, folder: Path) -> None:
        """Write the final weights below the run folder. Main process only."""


def make_optimizer(
    settings: Training, parameters: list[torch.nn.Parameter], device: torch.device
) -> torch.optim.Optimizer:
    """Build AdamW, fused on CUDA, or its 8-bit kind."""
    options: dict[str, Any] = {"lr": settings.learning_rate, "weight_decay": settings.weight_decay}
    if settings.optimizer == "adamw":
        return torch.optim.AdamW(parameters, fused=device.type == "cuda" or None, **options)
    if device.type != "cuda":
        raise UserError(
            f"--training.optimizer {settings.optimizer}: needs a CUDA GPU, but this process runs "
            f"on {device.type}; use adamw"
        )
    import bitsandbytes

    return bitsandbytes.optim.AdamW8bit(parameters, **options)


def optimize_for_device(
    accelerator: Accelerator, model: torch.nn.Module, *, frozen: bool = False
) -> None:
    """Choose what is fast for `model` in bfloat16 on a CPU; compile it if it is frozen.

    Accelerate compiles what learns (`accelerate launch --dynamo_backend inductor`), not the rest.
    """
    if accelerator.device.type == "cpu" and accelerator.mixed_precision == "bf16":
        model.to(memory_format=torch.channels_last)
        torch.backends.cuda.enable_flash_sdp(False)  # the CPU's, too: slow backwards in bfloat16
    compiler = accelerator.state.dynamo_plugin
    if frozen and compiler.backend != DynamoBackend.NO:
        model.compile(**compiler.to_kwargs())


def accumulate_gradients(
    run: Run,
    task: Task,
    model: torch.nn.Module,
    micro_batches: Iterator[Any],
    generator: torch.Generator,
    *,
    step: int,
) -> Loss:
    """Run the micro-batches of one update backwards.

    Returns their mean loss, and the logged values of the last one. `generator` is seeded by (seed,
    step, micro-batch, rank).
    """
    accelerator, number = run.accelerator, run.training.gradient_accumulation
    total, logged = torch.zeros((), device=accelerator.device), {}
    for micro in range(number):
        batch = next(micro_batches)
        generator.manual_seed(seed_of(run.seed, "noise", step, micro, accelerator.process_index))
        last = micro == number - 1
        with contextlib.nullcontext() if last else accelerator.no_sync(model):
            with accelerator.autocast():
                loss = task.loss(model, batch, generator, step=step)
            logged, value = loss.logged, loss.value / number
            total += value.detach()
            accelerator.backward(value)
    return Loss(total, logged)


def train(run: Run, task: Task) -> None:
    """Train the model of a task, write its final weights and mark the run as finished.

    The run continues from its newest complete checkpoint, bit for bit on the CPU. A stop signal to
    any process ends all of them after the update at hand, with a checkpoint.
    """
    # Set up
    accelerator, settings, folder = run.accelerator, run.training, run.folder
    strategy = _make_strategy(run, task.model)
    wrapped, optimizer, first = strategy.wrapped, strategy.optimizer, strategy.first_step
    micro_batches = task.batches(first)
    generator = torch.Generator(device=accelerator.device)
    bar = tqdm(
        total=settings.steps,
        initial=first,
        unit="step",
        desc=folder.name,
        disable=not accelerator.is_main_process,
        mininterval=2.0,
    )
    losses: list[float] = []  # since the last log line

    # Main loop
    with StopRequest().listening() as stop:
        for step in range(first, settings.steps):
            rate = learning_rate(settings, step)
            for group in optimizer.param_groups:
                group["lr"] = rate
            loss = accumulate_gradients(run, task, wrapped, micro_batches, generator, step=step)
            # One exchange per update: all processes see the same loss and stop at the same step
            stop_flag = loss.value.new_tensor(float(stop.signal_number))
            exchanged = accelerator.reduce(torch.stack([loss.value, stop_flag]), "mean")
            mean_loss, stopping = exchanged.tolist()
            runs.check_finite(mean_loss, step, folder)
            norm = accelerator.clip_grad_norm_(strategy.parameters, settings.clip_norm)
            strategy.check_norm(norm, step)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            strategy.update_averages(step)
            losses.append(mean_loss)
            done = step + 1

            # Save, preview and report
            bar.update()
            previewed: dict[str, float] = {}
            saving = done % settings.checkpoint_interval == 0 or done == settings.steps
            if saving or stopping:
                strategy.save(done)
            weights = strategy.preview_weights()
            if saving and weights is not None and accelerator.is_main_process:
                with accelerator.autocast():
                    previewed = task.preview(weights, done)
            if previewed or done % settings.log_interval == 0 or done == settings.steps:
                values = {"loss": sum(losses) / len(losses), "learning_rate": rate, **previewed}
                values |= {name: float(value.detach()) for name, value in loss.logged.items()}
                accelerator.log(values, step=done)
                bar.set_postfix(loss=f"{values['loss']:.4f}")
                losses.clear()
            if saving or stopping:
                accelerator.wait_for_everyone()
            if stopping and done < settings.steps:
                leave(accelerator, stop, folder, done)
    bar.close()

    # Write the final weights
    final = strategy.final_weights()
    if accelerator.is_main_process:
        task.save(final, folder)
        runs.mark_finished(folder, settings.steps)
    accelerator.end_training()


def _make_strategy(run: Run, model: torch.nn.Module) -> PlainStrategy | ShardedStrategy:
    """Move the model to the device, build its optimizer and load the newest checkpoint."""
    accelerator = run.accelerator
    sharded = uses_fsdp(accelerator, run.training)
    whole = copy.deepcopy(model) if sharded and accelerator.is_main_process else model
    model.to(accelerator.device)
    optimize_for_device(accelerator, model)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = make_optimizer(run.training, parameters, accelerator.device)
    if sharded:
        return ShardedStrategy(accelerator, model, optimizer, run.folder, whole)
    return PlainStrategy(accelerator, model, optimizer, run.training, run.folder)
