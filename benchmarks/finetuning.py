"""Measure updates per second and peak memory of U-Net and ControlNet fine-tuning.

    python benchmarks/finetuning.py --base pocket --size-px 64 128            # a quick check
    python benchmarks/finetuning.py --base pocket --size-px 64 128 --precision bf16 --compile
    python benchmarks/random_base.py --output runs/random_sd15
    python benchmarks/finetuning.py --base runs/random_sd15 --precision bf16  # full size, on a GPU

Times the code of the programs (`finetune.diffusion`, `finetune.loop`) on random images: the U-Net,
and the ControlNet on a frozen U-Net, at each batch size, with images encoded in every update and
with cached moments. Texts are encoded once, before the updates that are timed. Peak memory is
measured on a GPU only.
"""

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from diffusers import ControlNetModel

if sys.path and sys.path[0] == str(Path(__file__).resolve().parent):  # see CONTRIBUTING.md
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from benchmarks import measure
from finetune.diffusion import (
    WEIGHT_TYPES,
    FrozenBase,
    encode_moments,
    frozen_type,
    predict,
)
from finetune.loop import make_optimizer, optimize_for_device
from finetune.settings import Training
from pipeline import labels, models
from pipeline.errors import guard

PROGRAMS = ("unet", "controlnet")
WARM_UP = 2  # updates


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


def time_updates(
    step: Callable[[Any], None], batch: Any, repeats: int, device: torch.device
) -> tuple[list[float], float | None]:
    """Return the seconds of `repeats` updates after two of warm-up, and the peak memory in GiB."""
    seconds = []
    for i in range(repeats + WARM_UP):
        if device.type == "cuda":
            torch.cuda.synchronize()
        start = time.perf_counter()
        step(batch)
        if device.type == "cuda":
            torch.cuda.synchronize()
        if i >= WARM_UP:
            seconds.append(time.perf_counter() - start)
        elif device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
    peak = torch.cuda.max_memory_allocated() / 2**30 if device.type == "cuda" else None
    return seconds, peak


def parse() -> Any:
    """Return the options of the command line."""
    parser = measure.parser(__doc__)
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
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.size_px, arguments.batch_sizes = (64, 64), (1,)
    return arguments


def random_batches(frozen: FrozenBase, size: int, size_px: tuple[int, int]) -> dict[str, Any]:
    """Return a batch of random images, and the same as cached moments."""
    rng = torch.Generator().manual_seed(0)
    images = torch.randint(256, (size, *size_px, 3), dtype=torch.uint8, generator=rng)
    maps = torch.randint(19, (size, *size_px), dtype=torch.uint8, generator=rng)
    with torch.no_grad():
        moments = torch.cat([encode_moments(frozen.vae, [p]) for p in images.numpy()])
    captions = tuple(f"a city street scene, view {number}" for number in range(size))
    return {"images": (images, maps, captions), "cached": (moments, maps, captions)}


def main() -> None:
    arguments = parse()
    results = measure.Results("finetuning", "Updates of fine-tuning", arguments)
    accelerator = Accelerator(
        cpu=not torch.cuda.is_available(),
        mixed_precision=arguments.precision.replace("fp32", "no"),
        dynamo_backend="inductor" if arguments.compile else "no",
    )
    device = accelerator.device
    base = models.find_base(arguments.base)
    frozen = FrozenBase(base, device)
    for program in PROGRAMS:
        step = make_step(program, frozen, base, accelerator, arguments.gradient_checkpointing)
        for size in arguments.batch_sizes:
            for kind, batch in random_batches(frozen, size, tuple(arguments.size_px)).items():
                seconds, peak = time_updates(step, batch, results.repeats, device)
                rates = measure.Spread.of([size / value for value in seconds])
                results.add(f"samples per second, {program}, {kind}, batch {size}", rates, "1/s")
                if peak is not None:
                    results.add(f"peak memory, {program}, {kind}, batch {size}", peak, "GiB")
        del step
        if device.type == "cuda":
            torch.cuda.empty_cache()
    results.write()


if __name__ == "__main__":
    guard(main)
