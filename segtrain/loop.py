"""The training loop: all randomness and rates are functions of (seed, step), so resume is exact.

`train` runs a `Task`: the training of a network here, that of a scene prompt in segtrain/adapt.py.
"""

import itertools
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader
from tqdm import tqdm

from pipeline import checkpoints, runs, seeding
from pipeline.stopping import StopRequest, ignore_stop_signals, leave
from segtrain.recipe_checks import named_faults
from segtrain.self_training import Teacher

FIRST_STEP_REMEDY = "correct the recipe's model or crop, or lower --batch-size if memory ends"


@dataclass(frozen=True)
class Plan:
    """What the loop needs to know beside its task. Intervals are in updates."""

    folder: Path
    steps: int
    batch_size: int
    seed: int
    workers: int
    checkpoint_interval: int
    log_interval: int
    clip_norm: float | None = None
    description: str = "segtrain"
    """of the progress bar"""
    remedy: str = FIRST_STEP_REMEDY
    """of faults in the first step"""


def _as_list(samples: list[Any]) -> list[Any]:
    return samples


def batches(
    plan: Plan, draw: Callable[..., Any], first: int, rank: int, world: int, seed: int
) -> Iterator[Any]:
    """Yield the batches of steps first..steps-1 of this process, lists of packed samples."""
    positions = list(seeding.batches(first, plan.steps, plan.batch_size, rank, world))
    return iter(
        DataLoader(
            seeding.SeededSamples(draw, seed),  # type: ignore[arg-type]
            batch_sampler=positions,
            num_workers=plan.workers,
            collate_fn=_as_list,
            worker_init_fn=ignore_stop_signals,
        )
    )


def training_loss(model: Any, network: Any, samples: list[Any]) -> torch.Tensor:
    """Return the summed losses of a batch; `network` is `model` without its wrapper."""
    data = network.data_preprocessor(
        {
            "inputs": [sample["inputs"] for sample in samples],
            "data_samples": [sample["data_samples"] for sample in samples],
        },
        training=True,
    )
    losses = model(data["inputs"], data["data_samples"], mode="loss")
    return sum(value for name, value in losses.items() if "loss" in name)


class Task(Protocol):
    """What is trained; `train` does the rest."""

    @property
    def modules(self) -> Mapping[str, torch.nn.Module]:
        """All that a checkpoint holds, by name."""

    def batches(self, first: int, rank: int, world: int) -> Iterator[Any]:
        """Yield the batch of this process for each step from `first` on."""

    def loss(self, model: torch.nn.Module, batch: Any, step: int) -> torch.Tensor:
        """Return the loss of a batch; `model` is the trained module, wrapped by accelerate."""

    def after_update(self) -> None:
        """Do what follows each update of the weights."""


class Segmentation:
    """The task of training `network` on samples of `draw`.

    With a `teacher`, each batch is joined by as many unlabelled samples, which it labels.
    """

    def __init__(
        self, network: Any, draw: Callable[..., Any], plan: Plan, teacher: Teacher | None = None
    ) -> None:
        self.network, self.draw, self.plan, self.teacher = network, draw, plan, teacher

    @property
    def modules(self) -> Mapping[str, torch.nn.Module]:
        """The network, and the teacher's averaged weights."""
        return {"model": self.network} | ({"teacher": self.teacher} if self.teacher else {})

    def batches(self, first: int, rank: int, world: int) -> Iterator[Any]:
        """Yield labelled and unlabelled samples for each step."""
        plan = self.plan
        labelled = batches(plan, self.draw, first, rank, world, plan.seed)
        unlabelled: Iterator[Any] = itertools.repeat([])
        if self.teacher:
            seed = seeding.seed_of(plan.seed, "unlabelled")
            unlabelled = batches(plan, self.teacher.draw, first, rank, world, seed)
        return zip(labelled, unlabelled, strict=False)

    def loss(self, model: torch.nn.Module, batch: Any, step: int) -> torch.Tensor:
        """Return the summed losses of a batch."""
        samples, unlabelled = batch
        if self.teacher and step >= self.teacher.settings.start:
            samples = samples + self.teacher.label(unlabelled)
        return training_loss(model, self.network, samples)

    def after_update(self) -> None:
        """Move the teacher towards the network."""
        if self.teacher:
            self.teacher.follow()


def train(
    accelerator: Accelerator,
    network: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    task: Task,
    plan: Plan,
    rate_factor: Callable[[int], float] = lambda step: 1.0,
) -> dict[str, Any]:
    """Train `network` in place from the newest checkpoint of the folder.

    A stop signal to any process ends all of them after the update at hand, which is saved. Returns
    `first_step`, where this call began, and the `seconds` that it took.
    """
    initial_rates = [group["lr"] for group in optimizer.param_groups]
    model, prepared = accelerator.prepare(network, optimizer)
    modules, scaler = dict(task.modules), accelerator.scaler
    first = checkpoints.load_checkpoint(plan.folder, modules, prepared.optimizer, scaler)
    model.train()
    rank, world = accelerator.process_index, accelerator.num_processes
    bar = tqdm(
        total=plan.steps,
        initial=first,
        desc=plan.description,
        unit="it",
        disable=not accelerator.is_main_process,
    )
    started, loss_sum, counted = time.monotonic(), 0.0, 0
    with StopRequest().listening() as stop, bar:  # an error begins on a line of its own
        for step, batch in enumerate(task.batches(first, rank, world), start=first):
            torch.manual_seed(seeding.seed_of(plan.seed, "step", step, rank))  # dropout, drop path
            factor = rate_factor(step)
            for group, rate in zip(prepared.param_groups, initial_rates, strict=True):
                group["lr"] = rate * factor
            # What a recipe's parts raise together shows in their first step
            with named_faults("first step", plan.remedy) if step == first else nullcontext():
                loss = task.loss(model, batch, step)
            # One exchange per update: all processes see the same loss and stop at the same step
            numbers = torch.stack([loss.detach(), loss.new_tensor(float(stop.signal_number))])
            value, stopping = accelerator.reduce(numbers, "mean").tolist()
            runs.check_finite(value, step, plan.folder)
            accelerator.backward(loss)
            if plan.clip_norm is not None:
                accelerator.clip_grad_norm_(model.parameters(), plan.clip_norm)
            prepared.step()
            prepared.zero_grad()
            task.after_update()
            loss_sum, counted = loss_sum + value, counted + 1
            done = step + 1
            bar.update(1)
            if done % plan.log_interval == 0 or done == plan.steps:
                mean = loss_sum / counted
                bar.set_postfix(loss=f"{mean:.3f}")
                accelerator.log({"loss": mean, "lr": initial_rates[0] * factor}, step=done)
                loss_sum, counted = 0.0, 0
            if done < plan.steps and (stopping or done % plan.checkpoint_interval == 0):
                if accelerator.is_main_process:
                    checkpoints.save_checkpoint(
                        plan.folder, done, modules, prepared.optimizer, scaler
                    )
                accelerator.wait_for_everyone()
                if stopping:
                    leave(accelerator, stop, plan.folder, done)
    seconds = time.monotonic() - started
    return {"first_step": first, "seconds": round(seconds, 1)}
