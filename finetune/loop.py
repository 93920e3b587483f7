"""The one training loop of the fine-tuning programs, and what a program gives to it: a task."""

import contextlib
import copy
import sys
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
from finetune.strategies import ParameterGroup, PlainStrategy, ShardedStrategy, uses_fsdp
from pipeline import runs
from pipeline.errors import UserError
from pipeline.seeding import seed_of
from pipeline.stopping import StopRequest, leave

Strategy = PlainStrategy | ShardedStrategy


@dataclass
class Loss:
    """The loss of a micro-batch, a scalar, and further values to log."""

    value: torch.Tensor
    logged: dict[str, torch.Tensor] = field(default_factory=dict)
    beside: torch.Tensor | None = None
    """The loss of another network that is trained beside, for the backward pass alone."""


class Task(ABC):
    """One kind of training: its model, data, loss, previews and final weights."""

    model: torch.nn.Module
    """Its parameters that require gradients are trained."""
    batches: Batches

    def parameter_groups(self, model: torch.nn.Module) -> list[ParameterGroup]:
        """Return the parameters of `model`, the task's or its sharded form, that are trained.

        Each group has its own gradient norm and peak learning rate, so that networks trained beside
        each other do not change each other.
        """
        return [ParameterGroup([p for p in model.parameters() if p.requires_grad])]

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
    settings: Training, parameters: list[Any], device: torch.device
) -> torch.optim.Optimizer:
    """Build AdamW, fused on CUDA, or its 8-bit kind.

    The fused kind of CPUs is faster, but rounds by where a tensor lies in memory: a run that
    continues, or shards its weights, would end in other bits.
    """
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
            accelerator.backward(value if loss.beside is None else value + loss.beside / number)
    return Loss(total, logged)


def train(run: Run, task: Task) -> None:
    """Train the model of a task, write its final weights and mark the run as finished.

    The run continues from its newest complete checkpoint, bit for bit on the CPU. A stop signal to
    any process ends all of them after the update at hand, with a checkpoint.
    """
    accelerator, settings = run.accelerator, run.training
    strategy = _make_strategy(run, task)
    first = strategy.first_step
    micro_batches = task.batches(first)
    generator = torch.Generator(device=accelerator.device)
    log = Log(run, first)
    with StopRequest().listening() as stop:
        for step in range(first, settings.steps):
            # Update
            rates = [learning_rate(settings, step, group.peak) for group in strategy.groups]
            for group, rate in zip(strategy.optimizer.param_groups, rates, strict=True):
                group["lr"] = rate
            loss = accumulate_gradients(
                run, task, strategy.wrapped, micro_batches, generator, step=step
            )
            mean_loss, stopping = exchange(accelerator, loss.value, stop)
            update_weights(run, strategy, mean_loss, step)

            # Save, preview and report
            done = step + 1
            is_last = done == settings.steps
            saving = done % settings.checkpoint_interval == 0 or is_last
            if saving or stopping:
                strategy.save(done)
            previewed = preview(run, task, strategy, done) if saving else {}
            log.add(mean_loss)
            if previewed or done % settings.log_interval == 0 or is_last:
                log.write(done, {"learning_rate": rates[0], **previewed}, loss.logged)
            if saving or stopping:
                accelerator.wait_for_everyone()
            if stopping and not is_last:
                leave(accelerator, stop, run.folder, done)
    log.close()
    finish(run, task, strategy)


class Log:
    """The progress bar and the log lines of a run; the logged loss is the mean since the last."""

    def __init__(self, run: Run, first: int) -> None:
        self.accelerator = run.accelerator
        self.losses: list[float] = []
        self.bar = tqdm(
            total=run.training.steps,
            initial=first,
            unit="step",
            desc=run.folder.name,
            disable=not run.accelerator.is_main_process,
            mininterval=2.0,
        )

    def add(self, loss: float) -> None:
        """Take in the loss of an update."""
        self.losses.append(loss)
        self.bar.update()

    def write(self, done: int, values: dict[str, float], of_task: dict[str, torch.Tensor]) -> None:
        """Log the mean loss and other values after `done` updates."""
        mean_loss = sum(self.losses) / len(self.losses)
        values = {"loss": mean_loss, **values}
        values |= {name: float(value.detach()) for name, value in of_task.items()}
        self.accelerator.log(values, step=done)
        self.bar.set_postfix(loss=f"{mean_loss:.4f}")
        self.losses.clear()

    def close(self) -> None:
        """End the progress bar."""
        self.bar.close()


def exchange(accelerator: Accelerator, loss: torch.Tensor, stop: StopRequest) -> tuple[float, bool]:
    """Return the mean loss of all processes, and whether any of them was told to stop.

    One exchange per update: all processes see the same loss and stop at the same step.
    """
    stop_flag = loss.new_tensor(float(stop.signal_number))
    mean_loss, stopping = accelerator.reduce(torch.stack([loss, stop_flag]), "mean").tolist()
    return mean_loss, stopping > 0


def update_weights(run: Run, strategy: Strategy, mean_loss: float, step: int) -> None:
    """Make an update from the gradients; stop before it if the loss or their norm is not finite.

    A network trained beside the first stops nothing: it is left out of the update.
    """
    runs.check_finite(mean_loss, step, run.folder)
    limit, (first, *others) = run.training.clip_norm, strategy.groups
    for group in others:
        if strategy.drop_unless_finite(group) and run.accelerator.is_main_process:
            tqdm.write(
                f"streetforge: step {step}: gradients of the network trained beside are not "
                "finite; it is left out of this update",
                file=sys.stderr,
            )
    norm = run.accelerator.clip_grad_norm_(first.parameters, limit)  # unscales all of fp16
    strategy.check_norm(norm, step)
    for group in others:
        torch.nn.utils.clip_grad_norm_(group.parameters, limit)
    strategy.optimizer.step()
    strategy.optimizer.zero_grad(set_to_none=True)
    strategy.update_averages(step)


def preview(run: Run, task: Task, strategy: Strategy, done: int) -> dict[str, float]:
    """Write the task's previews on the main process; return values to log."""
    weights = strategy.preview_weights()
    if weights is None or not run.accelerator.is_main_process:
        return {}
    with run.accelerator.autocast():
        return task.preview(weights, done)


def finish(run: Run, task: Task, strategy: Strategy) -> None:
    """Write the final weights and mark the run as finished."""
    weights = strategy.final_weights()
    if run.accelerator.is_main_process:
        task.save(weights, run.folder)
        runs.mark_finished(run.folder, run.training.steps)
    runs.end(run.accelerator)


def _make_strategy(run: Run, task: Task) -> Strategy:
    """Move the model to the device, build its optimizer and load the newest checkpoint."""
    accelerator, model = run.accelerator, task.model
    sharded = uses_fsdp(accelerator, run.training)
    whole = copy.deepcopy(model) if sharded and accelerator.is_main_process else model
    model.to(accelerator.device)
    optimize_for_device(accelerator, model)
    groups = [{"params": group.parameters} for group in task.parameter_groups(model)]
    optimizer = make_optimizer(run.training, groups, accelerator.device)
    grouping = task.parameter_groups
    if sharded:
        return ShardedStrategy(accelerator, model, optimizer, run.folder, whole, grouping)
    return PlainStrategy(accelerator, model, optimizer, run.training, run.folder, grouping)
