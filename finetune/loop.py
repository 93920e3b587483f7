"""The one training loop of the fine-tuning programs."""

import contextlib
import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, DistributedType
from accelerate.utils import DynamoBackend
from torch.utils.data import DataLoader
from tqdm import tqdm

from finetune.averages import make_averages
from finetune.settings import Training, learning_rate
from pipeline import runs
from pipeline.errors import UserError
from pipeline.seeding import DrawnSamples, batches, seed_of
from pipeline.stopping import StopRequest, ignore_stop_signals, leave

LossFunction = Callable[
    [torch.nn.Module, Any, torch.Generator], tuple[torch.Tensor, dict[str, Any]]
]
Batches = Callable[[int], Iterator[Any]]
"""Gives the micro-batches of this process from update `first` on."""


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


def check_kind(accelerator: Accelerator, settings: Training) -> bool:
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


def speed_up(accelerator: Accelerator, model: torch.nn.Module, *, frozen: bool = False) -> None:
    """Choose what is fast for `model` in bfloat16 on a CPU; compile it if it is frozen.

    Accelerate compiles what learns (`accelerate launch --dynamo_backend inductor`), not the rest.
    """
    if accelerator.device.type == "cpu" and accelerator.mixed_precision == "bf16":
        model.to(memory_format=torch.channels_last)
        torch.backends.cuda.enable_flash_sdp(False)  # the CPU's, too: slow backwards in bfloat16
    compiler = accelerator.state.dynamo_plugin
    if frozen and compiler.backend != DynamoBackend.NO:
        model.compile(**compiler.to_kwargs())


def drawn_batches(
    accelerator: Accelerator,
    draw: Callable[[Any], Any],
    collate: Callable[[list[Any]], Any],
    settings: Training,
    seed: int,
) -> Batches:
    """Return the batches of samples that `draw(rng)` makes one by one and `collate` puts together.

    Each sample has its own generator, seeded by its position among all samples of the run.
    """

    def start(first: int) -> Iterator[Any]:
        positions = batches(
            first * settings.accumulation,
            settings.steps * settings.accumulation,
            settings.batch_size,
            accelerator.process_index,
            accelerator.num_processes,
        )
        return iter(
            DataLoader(
                DrawnSamples(draw, seed),  # type: ignore[arg-type]
                batch_sampler=list(positions),
                collate_fn=collate,
                num_workers=settings.workers,
                persistent_workers=settings.workers > 0,
                pin_memory=accelerator.device.type == "cuda",
                worker_init_fn=ignore_stop_signals,
            )
        )

    return start


def add_up_gradients(
    accelerator: Accelerator,
    model: torch.nn.Module,
    data: Iterator[Any],
    loss_function: LossFunction,
    settings: Training,
    *,
    generator: torch.Generator,
    seed: int,
    step: int,
) -> tuple[torch.Tensor, dict[str, Any]]:
    """Run the micro-batches of one update backwards; return their mean loss and values to log."""
    total, logged = torch.zeros((), device=accelerator.device), {}
    for micro in range(settings.accumulation):
        batch = next(data)
        generator.manual_seed(seed_of(seed, "noise", step, micro, accelerator.process_index))
        last = micro == settings.accumulation - 1
        with contextlib.nullcontext() if last else accelerator.no_sync(model):
            with accelerator.autocast():
                loss, logged = loss_function(model, batch, generator)
            loss = loss / settings.accumulation
            total += loss.detach()
            accelerator.backward(loss)
    return total, logged


def train(
    accelerator: Accelerator,
    model: torch.nn.Module,
    data: Batches,
    loss_function: LossFunction,
    settings: Training,
    *,
    seed: int,
    folder: Path,
    preview: Callable[[torch.nn.Module, int], dict[str, float] | None] | None = None,
) -> torch.nn.Module:
    """Train the parameters of `model` that require gradients; return the weights to ship.

    `data(first)` gives the batches from update `first` on, `loss_function(model, batch,
    generator)` the scalar loss and values to log; all of its randomness comes from `generator`,
    which is seeded by (seed, step, micro-batch, rank). The run continues from its newest complete
    checkpoint, bit for bit on the CPU. `preview(weights, step)` is called on the main process at
    every checkpoint; what it returns is logged. A stop signal to any process ends all of them
    after the update at hand, with a checkpoint.
    """
    # Set up
    sharded = check_kind(accelerator, settings)
    whole = copy.deepcopy(model) if sharded and accelerator.is_main_process else model
    model.to(accelerator.device)
    speed_up(accelerator, model)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = make_optimizer(settings, parameters, accelerator.device)
    averages = make_averages(settings, model)
    modules = {"model": model, **averages.modules}
    scaler = accelerator.scaler
    first = 0 if sharded else runs.load_checkpoint(folder, modules, optimizer, scaler)
    wrapped, optimizer = accelerator.prepare(model, optimizer)
    if sharded:
        first = runs.load_sharded(accelerator, folder)
        parameters = [p for p in wrapped.parameters() if p.requires_grad]

    def save(done: int) -> None:
        if sharded:
            runs.save_sharded(accelerator, folder, done)
        elif accelerator.is_main_process:
            averages.store(folder, done)
            runs.save_checkpoint(folder, done, modules, optimizer, scaler)

    micro_batches = data(first)
    generator = torch.Generator(device=accelerator.device)
    bar = tqdm(
        total=settings.steps,
        initial=first,
        unit="step",
        desc=folder.name,
        disable=not accelerator.is_main_process,
        mininterval=2.0,
    )
    window: list[float] = []

    # Main loop
    with StopRequest().listening() as stop:
        for step in range(first, settings.steps):
            rate = learning_rate(settings, step)
            for group in optimizer.param_groups:
                group["lr"] = rate
            loss, logged = add_up_gradients(
                accelerator,
                wrapped,
                micro_batches,
                loss_function,
                settings,
                generator=generator,
                seed=seed,
                step=step,
            )
            # One exchange per update: all processes see the same loss and stop at the same step
            facts = torch.stack([loss, loss.new_tensor(float(stop.signal_number))])
            mean_loss, stopping = accelerator.reduce(facts, "mean").tolist()
            runs.check_finite(mean_loss, step, folder)
            norm = accelerator.clip_grad_norm_(parameters, settings.clip_norm)
            if not scaler and not sharded:  # fp16 skips updates that overflow by itself
                runs.check_finite(float(norm), step, folder, "gradient norm")
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            averages.update(model, step)
            window.append(mean_loss)
            done = step + 1

            # Report and save
            bar.update()
            previewed: dict[str, float] = {}
            saving = done % settings.checkpoint_interval == 0 or done == settings.steps
            if saving or stopping:
                save(done)
            if saving and preview and accelerator.is_main_process and not sharded:
                with accelerator.autocast():
                    previewed = preview(averages.weights or model, done) or {}
            if previewed or done % settings.log_interval == 0 or done == settings.steps:
                values = {"loss": sum(window) / len(window), "learning_rate": rate, **previewed}
                values |= {k: float(v.detach()) for k, v in logged.items()}
                accelerator.log(values, step=done)
                bar.set_postfix(loss=f"{values['loss']:.4f}")
                window.clear()
            if saving or stopping:
                accelerator.wait_for_everyone()
            if stopping and done < settings.steps:
                leave(accelerator, stop, folder, done)
    bar.close()
    if sharded:
        state = accelerator.get_state_dict(wrapped)  # all processes take part
        if accelerator.is_main_process:
            whole.load_state_dict(state)
        return whole
    return averages.weights or model
