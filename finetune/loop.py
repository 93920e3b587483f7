"""The one training loop of the fine-tuning programs."""

import contextlib
import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader
from tqdm import tqdm

from finetune.settings import Training, learning_rate
from pipeline import runs
from pipeline.seeding import DrawnSamples, batches, seed_of

LossFunction = Callable[
    [torch.nn.Module, Any, torch.Generator], tuple[torch.Tensor, dict[str, Any]]
]


@torch.no_grad()
def update_average(
    average: torch.nn.Module, model: torch.nn.Module, decay: float, step: int
) -> None:
    """Move the averaged weights towards the model's; early steps use a shorter memory."""
    decay = min(decay, (1 + step) / (10 + step))
    for a, p in zip(average.parameters(), model.parameters(), strict=True):
        a.lerp_(p.to(a.dtype), 1 - decay)
    for a, p in zip(average.buffers(), model.buffers(), strict=True):
        a.copy_(p)


def train(
    accelerator: Accelerator,
    model: torch.nn.Module,
    draw: Callable[[Any], Any],
    collate: Callable[[list[Any]], Any],
    loss_function: LossFunction,
    settings: Training,
    *,
    seed: int,
    folder: Path,
    preview: Callable[[torch.nn.Module, int], None] | None = None,
) -> torch.nn.Module:
    """Train the parameters of `model` that require gradients; return the weights to ship.

    `draw(rng)` makes one training sample, `collate` a batch, `loss_function(model, batch,
    generator)` the scalar loss and values to log; all of its randomness comes from `generator`,
    which is seeded by (seed, step, micro-batch, rank). The run continues from its newest complete
    checkpoint, bit for bit on the CPU. `preview(weights, step)` is called on the main process at
    every checkpoint.
    """
    # Set up
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        parameters, lr=settings.learning_rate, weight_decay=settings.weight_decay
    )
    average = copy.deepcopy(model).requires_grad_(False) if settings.ema_decay else None
    modules = {"model": model} | ({"average": average} if average else {})
    first = runs.load_checkpoint(folder, modules, optimizer)
    model.to(accelerator.device)
    if average:
        average.to(accelerator.device)
    wrapped, optimizer = accelerator.prepare(model, optimizer)
    loader = DataLoader(
        DrawnSamples(draw, seed),  # type: ignore[arg-type]
        batch_sampler=list(
            batches(
                first * settings.accumulation,
                settings.steps * settings.accumulation,
                settings.batch_size,
                accelerator.process_index,
                accelerator.num_processes,
            )
        ),
        collate_fn=collate,
        num_workers=settings.workers,
        persistent_workers=settings.workers > 0,
    )
    data = iter(loader)
    generator = torch.Generator(device=accelerator.device)
    bar = tqdm(
        total=settings.steps, initial=first, unit="step", desc=folder.name,
        disable=not accelerator.is_main_process, mininterval=2.0,
    )  # fmt: skip
    window: list[float] = []

    # Main loop
    for step in range(first, settings.steps):
        rate = learning_rate(settings, step)
        for group in optimizer.param_groups:
            group["lr"] = rate
        loss_sum, logged = 0.0, {}
        for micro in range(settings.accumulation):
            batch = next(data)
            generator.manual_seed(seed_of(seed, "noise", step, micro, accelerator.process_index))
            last = micro == settings.accumulation - 1
            with contextlib.nullcontext() if last else accelerator.no_sync(wrapped):
                with accelerator.autocast():
                    loss, logged = loss_function(wrapped, batch, generator)
                loss = loss / settings.accumulation
                loss_sum += float(loss.detach())
                runs.check_finite(loss_sum, step, folder)
                accelerator.backward(loss)
        accelerator.clip_grad_norm_(parameters, settings.clip_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if average:
            update_average(average, model, settings.ema_decay, step)
        window.append(loss_sum)
        done = step + 1

        # Report and save
        bar.update()
        if done % settings.log_interval == 0 or done == settings.steps:
            values = {"loss": sum(window) / len(window), "learning_rate": rate}
            values |= {k: float(v.detach()) for k, v in logged.items()}
            accelerator.log(values, step=done)
            bar.set_postfix(loss=f"{values['loss']:.4f}")
            window.clear()
        if done % settings.checkpoint_interval == 0 or done == settings.steps:
            if accelerator.is_main_process:
                runs.save_checkpoint(folder, done, modules, optimizer)
                if preview:
                    preview(average or model, done)
            accelerator.wait_for_everyone()
    bar.close()
    return average or model
