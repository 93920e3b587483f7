"""The training loop: all randomness and rates are functions of (seed, step), so resume is exact.

`train` runs a `Task`: the training of a network here, that of a scene prompt in segtrain/adapt.py.
"""

import itertools
import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader
from tqdm import tqdm

from pipeline import checkpoints, runs, seeding
from pipeline.errors import UserError
from pipeline.stopping import StopRequest, ignore_stop_signals, leave
from segtrain.recipe_checks import named_faults
from segtrain.self_training import Teacher
from segtrain.weight_average import WeightAverage

FIRST_STEP_REMEDY = "correct the recipe's model or crop, or lower --batch-size if memory ends"


@dataclass(frozen=True)
class Plan:
    """What the loop needs to know beside its task. Intervals are in updates."""

    folder: Path
    steps: int
    batch_size: int
    """samples per process and micro-batch"""
    seed: int
    workers: int
    checkpoint_interval: int
    log_interval: int
    gradient_accumulation: int = 1
    """micro-batches per update"""
    clip_norm: float | None = None
    description: str = "segtrain"
    """of the progress bar"""
    remedy: str = FIRST_STEP_REMEDY
    """of faults in the first step"""


def _as_list(samples: list[Any]) -> list[Any]:
    return samples


def batches(
    plan: Plan, draw: Callable[..., Any], first: int, rank: int, world: int, seed: int
) -> Iterator[list[list[Any]]]:
    """Yield the micro-batches of steps first..steps-1 of this process, lists of packed samples.

    All samples of a step are numbered over processes and micro-batches, so that a step has the same
    samples for every split into processes and micro-batches of the same total.
    """
    size = plan.batch_size
    per_update = size * plan.gradient_accumulation
    positions = list(seeding.batches(first, plan.steps, per_update, rank, world))
    loader = DataLoader(
        seeding.SeededSamples(draw, seed),
        batch_sampler=positions,
        num_workers=plan.workers,
        collate_fn=_as_list,
        worker_init_fn=ignore_stop_signals,
    )
    for samples in loader:
        yield [samples[begin : begin + size] for begin in range(0, per_update, size)]


def require_equal_sizes(samples: Sequence[Any], preprocessor: Any) -> None:
    """Raise `UserError` unless the images of a batch have one size when they are padded."""
    if getattr(preprocessor, "size_divisor", None) is not None:
        return  # pads all of them to the largest
    least = getattr(preprocessor, "size", None) or (0, 0)
    sizes = [tuple(map(max, sample["inputs"].shape[-2:], least)) for sample in samples]
    for sample, size in zip(samples, sizes, strict=True):
        if size != sizes[0]:
            raise UserError(
                f"{sample['data_samples'].get('img_path')}: the transforms of the recipe make it "
                f"{size[1]}x{size[0]} px, but the first image of its batch "
                f"{sizes[0][1]}x{sizes[0][0]} px; all must have one size: end the transforms with "
                "a crop, or set model.data_preprocessor.size"
            )


def training_loss(model: Any, network: Any, samples: list[Any]) -> torch.Tensor:
    """Return the summed losses of a batch; `network` is `model` without its wrapper."""
    require_equal_sizes(samples, network.data_preprocessor)
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

    def batches(self, first: int, rank: int, world: int) -> Iterator[Sequence[Any]]:
        """Yield the micro-batches of this process for each step from `first` on."""

    def count(self, batch: Any) -> Mapping[str, int]:
        """Return what a micro-batch adds to the counts of the log, always by the same names."""

    def loss(self, model: torch.nn.Module, batch: Any, step: int) -> torch.Tensor:
        """Return the loss of a micro-batch; `model`: the trained module, wrapped by accelerate."""

    def after_update(self) -> None:
        """Do what follows each update of the weights."""


class Segmentation:
    """The task of training `network` on samples of `draw`, from the sets named `sets`.

    `mixes_classes`: whether `draw` pastes classes from one sample onto another. With a `teacher`,
    each micro-batch is joined by as many unlabelled samples, which it labels. `average` follows the
    weights.
    """

    def __init__(
        self,
        network: Any,
        draw: Callable[..., Any],
        plan: Plan,
        *,
        sets: Sequence[str],
        mixes_classes: bool = False,
        teacher: Teacher | None = None,
        average: WeightAverage | None = None,
    ) -> None:
        self.network, self.draw, self.plan, self.sets = network, draw, plan, sets
        self.mixes_classes, self.teacher, self.average = mixes_classes, teacher, average

    @property
    def modules(self) -> Mapping[str, torch.nn.Module]:
        """The network and the averages of its weights."""
        modules = {"model": self.network, "teacher": self.teacher, "average": self.average}
        return {name: module for name, module in modules.items() if module is not None}

    def batches(self, first: int, rank: int, world: int) -> Iterator[Sequence[Any]]:
        """Yield labelled and unlabelled samples of each micro-batch, for each step."""
        plan = self.plan
        labelled = batches(plan, self.draw, first, rank, world, plan.seed)
        unlabelled: Iterator[Any] = itertools.repeat([[]] * plan.gradient_accumulation)
        if self.teacher:
            seed = seeding.seed_of(plan.seed, "unlabelled")
            unlabelled = batches(plan, self.teacher.unlabelled, first, rank, world, seed)
        for of_step in zip(labelled, unlabelled, strict=False):
            yield list(zip(*of_step, strict=True))

    def count(self, batch: Any) -> Mapping[str, int]:
        """Return how many labelled samples of each set a micro-batch has.

        With class mixing also onto how many of them classes of each set were pasted.
        """
        fields = {"samples": "set"} | ({"pasted": "pasted"} if self.mixes_classes else {})
        counts: dict[str, int] = {}
        for key, field in fields.items():
            found = Counter(sample["data_samples"].get(field) for sample in batch[0])
            counts |= {f"{key}_{name}": found[name] for name in self.sets}
        return counts

    def loss(self, model: torch.nn.Module, batch: Any, step: int) -> torch.Tensor:
        """Return the summed losses of a micro-batch."""
        samples, unlabelled = batch
        if self.teacher and step >= self.teacher.settings.start:
            require_equal_sizes(unlabelled, self.network.data_preprocessor)
            samples = samples + self.teacher.label(unlabelled)
        return training_loss(model, self.network, samples)

    def after_update(self) -> None:
        """Move the averages towards the network."""
        for average in (self.teacher, self.average):
            if average is not None:
                average.follow()


class Progress:
    """Progress bar and log lines: mean loss, learning rate and the task's counts per interval."""

    def __init__(self, accelerator: Accelerator, plan: Plan, first: int) -> None:
        self.accelerator, self.plan = accelerator, plan
        self.bar = tqdm(
            total=plan.steps,
            initial=first,
            desc=plan.description,
            unit="it",
            disable=not accelerator.is_main_process,
        )
        self._reset()

    def _reset(self) -> None:
        self.losses: list[float] = []
        self.counts: Counter[str] = Counter()

    def update(self, done: int, loss: float, rate: float) -> None:
        """Count an update, the mean loss of all processes; write a line at the end of an interval.

        All processes must call this alike: the counts are summed over them.
        """
        self.losses.append(loss)
        self.bar.update(1)
        if done % self.plan.log_interval and done != self.plan.steps:
            return
        mean = sum(self.losses) / len(self.losses)
        self.bar.set_postfix(loss=f"{mean:.3f}")
        values = {"loss": mean, "lr": rate, **self._counts()}
        self.accelerator.log(values, step=done)
        self._reset()

    def _counts(self) -> dict[str, int]:
        if not self.counts:
            return {}
        counts = torch.tensor(list(self.counts.values()), device=self.accelerator.device)
        total = self.accelerator.reduce(counts, "sum").tolist()
        return dict(zip(self.counts, total, strict=True))


def accumulate_gradients(
    accelerator: Accelerator, model: Any, task: Task, micro_batches: Sequence[Any], step: int
) -> torch.Tensor:
    """Run the micro-batches of one update backwards; return their mean loss."""
    total = torch.zeros((), device=accelerator.device)
    for number, batch in enumerate(micro_batches, start=1):
        is_last = number == len(micro_batches)
        with nullcontext() if is_last else accelerator.no_sync(model):
            loss = task.loss(model, batch, step) / len(micro_batches)
            total += loss.detach()
            accelerator.backward(loss)
    return total


def clip_gradients(accelerator: Accelerator, model: Any, plan: Plan, step: int) -> None:
    """Clip the gradients as planned; raise `UserError` if they are not finite."""
    limit = math.inf if plan.clip_norm is None else plan.clip_norm
    norm = accelerator.clip_grad_norm_(model.parameters(), limit)
    if accelerator.scaler is None:  # fp16 skips updates that overflow by itself
        runs.check_finite(float(norm), step, plan.folder, "gradient norm")


def train(
    accelerator: Accelerator,
    network: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    task: Task,
    plan: Plan,
    rate_factor: Callable[[int], float] = lambda step: 1.0,
) -> dict[str, Any]:
    """Train `network` in place from the newest checkpoint of the folder.

    A stop signal to any process ends all of them after the current update, which is saved. Returns
    `first_step`, where this call began, and the `seconds` that it took.
    """
    initial_rates = [group["lr"] for group in optimizer.param_groups]
    model, prepared = accelerator.prepare(network, optimizer)
    modules, scaler = dict(task.modules), accelerator.scaler
    first = checkpoints.load_checkpoint(plan.folder, modules, prepared.optimizer, scaler)
    model.train()
    rank, world = accelerator.process_index, accelerator.num_processes
    progress, started = Progress(accelerator, plan, first), time.monotonic()
    # the bar closes first: an error begins on a line of its own
    with StopRequest().listening() as stop, progress.bar:
        for step, micro_batches in enumerate(task.batches(first, rank, world), start=first):
            torch.manual_seed(seeding.seed_of(plan.seed, "step", step, rank))  # dropout, drop path
            for group, rate in zip(prepared.param_groups, initial_rates, strict=True):
                group["lr"] = rate * rate_factor(step)
            for batch in micro_batches:
                progress.counts.update(task.count(batch))
            # What a recipe's parts raise together shows in their first step
            with named_faults("first step", plan.remedy) if step == first else nullcontext():
                loss = accumulate_gradients(accelerator, model, task, micro_batches, step)
            # One exchange per update: all processes see the same loss and stop at the same step
            numbers = torch.stack([loss, loss.new_tensor(float(stop.signal_number))])
            mean_loss, stopping = accelerator.reduce(numbers, "mean").tolist()
            runs.check_finite(mean_loss, step, plan.folder)
            clip_gradients(accelerator, model, plan, step)
            prepared.step()
            prepared.zero_grad()
            task.after_update()
            done = step + 1
            progress.update(done, mean_loss, initial_rates[0] * rate_factor(step))
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
