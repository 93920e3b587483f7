"""Updates of ControlNet and U-Net training at batch 16, 512x512, bfloat16."""

import torch
from accelerate import Accelerator

from benchmarks.finetuning import make_step, random_batches
from benchmarks.gpu.device import Step, in_turn, peak_gib, speed_up
from benchmarks.measure import Spread
from benchmarks.plain_controlnet import Script
from finetune.diffusion import FrozenBase
from pipeline.labels import one_hot_control

CAPTION = "a city street scene"
GOALS = {  # program, input: goal and ceiling in samples per second
    ("controlnet", "images"): (">= 80", "165"),
    ("controlnet", "cached"): (">= 115", "245"),
    ("unet", "cached"): (">= 110", "240"),
}


def training(step: Step, *, compiled: bool) -> None:
    """Measure updates of ours, and of the algorithm of diffusers' script on the same batch."""
    batch_size, side = step.size(16, 2), step.size(512, 64)
    accelerator = Accelerator(
        cpu=step.device.type == "cpu",
        mixed_precision="bf16",
        dynamo_backend="inductor" if compiled and not step.toy else "no",
    )
    base, kind = str(step.folder / "sd15"), "compiled" if compiled else "eager"
    frozen = FrozenBase(base, accelerator.device)
    batches = random_batches(frozen, batch_size, (side, side))
    programs = sorted({program for program, _ in GOALS})
    updates = {name: make_step(name, frozen, base, accelerator, False) for name in programs}
    calls = {
        f"{program}, {source}": lambda p=program, s=source: updates[p](batches[s])
        for program, source in GOALS
    }
    if not compiled:
        script = Script(
            base, [], caption=CAPTION, crop_px=(side, side), batch_size=batch_size,
            accelerator=accelerator, condition_channels=(16, 32, 96, 256),
        )  # fmt: skip
        images, maps, _ = batches["images"]
        tokens = torch.zeros(batch_size, 77, dtype=torch.long, device=accelerator.device)
        data = {
            "pixels": images.to(accelerator.device).movedim(-1, 1).float() / 127.5 - 1,
            "control": one_hot_control(maps.to(accelerator.device)),
            "tokens": tokens,
        }
        calls["script"] = lambda: script.update(data)
    found = in_turn(step, calls)
    step.details[kind] = found
    for (program, source), (goal, ceiling) in GOALS.items():
        rates = [1000 * batch_size / value for value in found[f"{program}, {source}"]]
        step.add(f"samples per second, {program}, {source}, {kind}", Spread.of(rates), "1/s", goal,
                 ceiling)  # fmt: skip
        peak = peak_gib(calls[f"{program}, {source}"], step.device)
        if peak is not None:
            step.add(f"peak memory, {program}, {source}, {kind}, all networks loaded", peak, "GiB")
    if not compiled:
        step.add("ControlNet update with images, diffusers' script / ours, eager",
                 speed_up(found, "script", "controlnet, images"), "", ">= 1.6", "2.2")  # fmt: skip
