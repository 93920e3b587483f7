"""Updates of ControlNet and U-Net training at batch 16, 512x512, bfloat16.

Encoded: images and texts pass the autoencoder and the text encoder in every update, as in the
script of diffusers; each text is new. Cached: moments of the images and states of the texts exist
already; what it costs to make them is stated apart. Nothing is read from files.
"""

import itertools
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from accelerate import Accelerator

from benchmarks.finetuning import make_step, random_batches
from benchmarks.gpu.device import Step, in_turn, peak_gib, per, speed_up
from benchmarks.measure import Spread
from benchmarks.plain_controlnet import Script
from finetune.diffusion import FrozenBase, encode_moments
from pipeline.labels import one_hot_control

SOURCES = {"images": "images and texts encoded", "cached": "cached crops and texts"}
GOALS = {  # of a program, by input: goal and ceiling in samples per second
    "controlnet": {"images": (">= 80", "165"), "cached": (">= 115", "245")},
    "unet": {"cached": (">= 110", "240")},
}


def training(step: Step, *, compiled: bool) -> None:
    """Measure updates of both programs; one that runs out of memory leaves the other."""
    accelerator = Accelerator(
        cpu=step.device.type == "cpu",
        mixed_precision="bf16",
        dynamo_backend="inductor" if compiled and not step.toy else "no",
    )
    for program in GOALS:
        step.attempt(program, partial(updates, step, accelerator, program, compiled=compiled))
        if step.device.type == "cuda":
            torch.cuda.empty_cache()


def updates(step: Step, accelerator: Accelerator, program: str, *, compiled: bool) -> None:
    """Measure the updates of a program, and those of diffusers' script where there are such."""
    batch_size, side = step.size(16, 2), step.size(512, 64)
    base, kind = str(step.folder / "sd15"), "compiled" if compiled else "eager"
    frozen = FrozenBase(base, accelerator.device)
    batches = random_batches(frozen, batch_size, (side, side))
    update = make_step(program, frozen, base, accelerator, False)
    images, maps, captions = batches["images"]
    numbers = itertools.count()

    def new_texts() -> tuple[str, ...]:
        return tuple(f"{caption}, view {next(numbers)}" for caption in captions)

    def caching() -> None:
        encode_moments(frozen.vae, list(images.numpy()))
        frozen.text.encode(new_texts())

    made: dict[str, Callable[[], object]] = {
        "images": lambda: update((images, maps, new_texts())),
        "cached": partial(update, batches["cached"]),
    }
    calls = {source: made[source] for source in GOALS[program]} | {"caching": caching}
    with_script = program == "controlnet" and not compiled
    if with_script:
        calls["script"] = script_update(accelerator, base, batches["images"])
    found = in_turn(step, calls)
    step.details[f"{program}, {kind}"] = found
    for source, (goal, ceiling) in GOALS[program].items():
        rates = Spread.of([1000 * batch_size / value for value in found[source]])
        name = f"{program}, {SOURCES[source]}, {kind}"
        step.add(f"samples per second, {name}", rates, "1/s", goal, ceiling)
        peak = peak_gib(calls[source], step.device)
        if peak is not None:
            step.add(f"peak memory, {name}", peak, "GiB")
    cost = per(found["caching"], batch_size)
    step.add(f"caching of a crop and its text, {program}, {kind}", cost, "ms")
    if with_script:
        ratio = speed_up(found, "script", "images")
        step.add("ControlNet update, images and texts encoded, diffusers' script / ours, eager",
                 ratio, "", ">= 1.6", "2.2")  # fmt: skip


def script_update(accelerator: Accelerator, base: str, batch: Any) -> Callable[[], None]:
    """Return an update of diffusers' script on a batch that is on the device already."""
    images, maps, _ = batch
    script = Script(
        base, [], captions=[], crop_px=tuple(images.shape[1:3]), batch_size=len(images),
        accelerator=accelerator, condition_channels=(16, 32, 96, 256),
    )  # fmt: skip
    device = accelerator.device
    data = {
        "pixels": images.to(device).movedim(-1, 1).float() / 127.5 - 1,
        "control": one_hot_control(maps.to(device)),
        "tokens": torch.zeros(len(images), 77, dtype=torch.long, device=device),
    }
    return partial(script.update, data)
