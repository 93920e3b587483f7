"""Measure updates per second and peak memory of U-Net and ControlNet fine-tuning.

    python benchmarks/finetuning.py --base pocket --size-px 64 128            # a quick check
    python benchmarks/finetuning.py --base pocket --size-px 64 128 --precision bf16 --compile
    python benchmarks/random_base.py --output runs/random_sd15
    python benchmarks/finetuning.py --base runs/random_sd15 --precision bf16  # full size, on a GPU

Times the code of the programs (`finetune.diffusion`, `finetune.loop`) on random images: the U-Net,
and the ControlNet on a frozen U-Net, at each batch size, with images encoded in every update and
with cached moments. Prints a table and, with --output, writes it as JSON. Peak memory is measured
on a GPU only.
"""

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from datetime import date
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from diffusers import ControlNetModel

if sys.path and sys.path[0] == str(Path(__file__).resolve().parent):  # see CONTRIBUTING.md
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from finetune.diffusion import (
    WEIGHT_TYPES,
    FrozenBase,
    encode_moments,
    frozen_type,
    predict,
)
from finetune.loop import make_optimizer, optimize_for_device
from finetune.settings import Training
from pipeline import files, labels, models
from pipeline.errors import guard

PROGRAMS = ("unet", "controlnet")


def make_step(
    program: str, frozen: FrozenBase, base: str, accelerator: Accelerator, checkpointing: bool
) -> Callable[[Any], None]:
    """Return a function that runs one update of a program on a batch."""
    device = frozen.device
    unet = models.load_component(base, "unet").to(device)
    controlnet = None
    if program == "controlnet":
        controlnet = ControlNetModel.from_unet(
            unet,
            conditioning_channels=labels.CONTROL_CHANNELS,
            conditioning_embedding_out_channels=(16, 32, 96, 256)[
                : len(frozen.vae.config.block_out_channels)
            ],
        ).to(device)
        unet.requires_grad_(False).to(
            frozen_type(accelerator.mixed_precision.replace("no", "fp32"), device)
        )
        optimize_for_device(accelerator, unet, frozen=True)
    trained = (controlnet or unet).train()
    for network in (unet, controlnet):
        if checkpointing and network is not None:
            network.enable_gradient_checkpointing()
    optimize_for_device(accelerator, trained)
    parameters = list(trained.parameters())
    wrapped, optimizer = accelerator.prepare(
        trained, make_optimizer(Training(), parameters, device)
    )
    unet, controlnet = (unet, wrapped) if controlnet is not None else (wrapped, None)
    generator = torch.Generator(device).manual_seed(0)

    def step(batch: Any) -> None:
        with accelerator.autocast():
            noisy = frozen.add_noise(batch, generator)
            control = labels.one_hot_control(batch[1].to(device)) if controlnet else None
            prediction = predict(
                unet, noisy.latents, noisy.timesteps, noisy.text, controlnet, control
            )
            loss = frozen.loss(prediction, noisy)
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def measure(step: Callable[[Any], None], batch: Any, repeats: int, device: torch.device) -> dict:
    """Return the median and the spread of `repeats` updates, after two warm-up updates."""
    seconds = []
    for i in range(repeats + 2):
        if device.type == "cuda":
            torch.cuda.synchronize()
        start = time.perf_counter()
        step(batch)
        if device.type == "cuda":
            torch.cuda.synchronize()
        if i >= 2:
            seconds.append(time.perf_counter() - start)
        elif device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
    peak = torch.cuda.max_memory_allocated() / 2**30 if device.type == "cuda" else None
    return {
        "seconds": statistics.median(seconds),
        "seconds_min_max": [min(seconds), max(seconds)],
        "updates_per_s": 1 / statistics.median(seconds),
        "samples_per_s": len(batch[0]) / statistics.median(seconds),
        "peak_gib": peak,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument(
        "--base", default="pocket", help="base model: pocket, or a diffusers folder"
    )
    parser.add_argument(
        "--size-px", type=int, nargs=2, default=(512, 512), help="height and width of the crops"
    )
    parser.add_argument(
        "--batch-sizes", type=int, nargs="+", default=(1, 8, 16), help="batch sizes to measure"
    )
    parser.add_argument(
        "--precision",
        choices=list(WEIGHT_TYPES),
        default="fp32",
        help="precision of forward and backward passes",
    )
    parser.add_argument(
        "--compile",
        action="store_true",
        help="compile as by accelerate launch --dynamo_backend inductor",
    )
    parser.add_argument(
        "--gradient-checkpointing",
        action="store_true",
        help="recompute activations in the backward pass",
    )
    parser.add_argument("--repeats", type=int, default=5, help="updates of each measurement")
    parser.add_argument("--output", type=Path, help="JSON file to write")
    arguments = parser.parse_args()
    accelerator = Accelerator(
        cpu=not torch.cuda.is_available(),
        mixed_precision=arguments.precision.replace("fp32", "no"),
        dynamo_backend="inductor" if arguments.compile else "no",
    )
    device = accelerator.device
    base = models.find_base(arguments.base)
    frozen = FrozenBase(base, device)
    rng = torch.Generator().manual_seed(0)
    rows = []
    print(
        f"{'program':<11} {'input':<8} {'batch':>5} {'updates/s':>10} {'samples/s':>10} {'GiB':>6}"
    )
    for program in PROGRAMS:
        step = make_step(program, frozen, base, accelerator, arguments.gradient_checkpointing)
        for size in arguments.batch_sizes:
            shape = (size, *arguments.size_px)
            images = torch.randint(256, (*shape, 3), dtype=torch.uint8, generator=rng)
            maps = torch.randint(19, shape, dtype=torch.uint8, generator=rng)
            with torch.no_grad():
                moments = torch.cat([encode_moments(frozen.vae, [p]) for p in images.numpy()])
            for kind, inputs in (("images", images), ("cached", moments)):
                batch = (inputs, maps, ("a city street scene",) * size)
                row = measure(step, batch, arguments.repeats, device)
                rows.append({"program": program, "input": kind, "batch_size": size, **row})
                print(
                    f"{program:<11} {kind:<8} {size:>5} {row['updates_per_s']:>10.2f} "
                    f"{row['samples_per_s']:>10.2f} {row['peak_gib'] or float('nan'):>6.1f}",
                    flush=True,
                )
        del step
        if device.type == "cuda":
            torch.cuda.empty_cache()
    result = {
        "rows": rows,
        "base": arguments.base,
        "size_px": list(arguments.size_px),
        "precision": arguments.precision,
        "compile": arguments.compile,
        "gradient_checkpointing": arguments.gradient_checkpointing,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, "
        + (torch.cuda.get_device_name() if device.type == "cuda" else "no GPU"),
        "versions": {n: metadata.version(n) for n in ("torch", "diffusers")},
        "date": date.today().isoformat(),
    }
    if arguments.output:
        files.write_json(arguments.output, result)
    else:
        print(json.dumps(result))


if __name__ == "__main__":
    guard(main)
