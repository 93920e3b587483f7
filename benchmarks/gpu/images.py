"""Whole images: multi-resolution latent fusion from label map to file, and plain ControlNet images.

The published program in float32 is not run in full: its time is computed from its measured parts,
evaluations of one tile per call and the calls of the autoencoder.
"""

import dataclasses
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.gpu.device import Step, in_turn, per, speed_up
from benchmarks.gpu.tiles import load, stock_call
from benchmarks.measure import Spread
from generation.sampler.networks import load_networks
from generation.sampler.sampler import Sampler
from generation.samples import SampleSpec
from generation.settings import Config
from generation.writer import WriterThread
from pipeline.dataset_writer import DatasetWriter
from pipeline.latents import decode_latents, encode_latents
from pipeline.metadata import read_rows

PROMPT = "a city street scene with road, building and car, in foggy weather by day"
TILES = 25  # at a stride of a quarter of the tile
WRITTEN = 2  # images of an end-to-end measurement


def settings(step: Step, **changes: Any) -> Config:
    """Return the settings of the published size: 512 px, canvas of 1024 px, stride 128 px."""
    side = step.size(512, 64)
    return dataclasses.replace(
        Config(), base=str(step.folder / "sd15"), controlnet=str(step.folder / "sd15_controlnet"),
        crop_px=(side, side), tile_px=(side, side), stride_px=(side // 4, side // 4),
        steps=step.size(20, 1), guidance_interval=(0.0, 1.0), guess_mode_from=1.0,
        guidance_scale=7.5, precision="bf16", channels_last=True, tile_selection="all",
        tile_batch=TILES, negative_prompt="", **changes,
    )  # fmt: skip


def specs(step: Step, count: int) -> list[SampleSpec]:
    """Return samples with label maps of blocks."""
    side = step.size(512, 64)
    made = []
    for index in range(count):
        rng = np.random.default_rng(index)
        label = rng.integers(0, 19, (8, 8), dtype=np.uint8).repeat(side // 8, 0)
        made.append(SampleSpec(label.repeat(side // 8, 1), PROMPT, index, index=index))
    return made


def sampler_of(step: Step, **changes: Any) -> Sampler:
    """Return a sampler with networks of its own."""
    config = settings(step, **changes)
    return Sampler(load_networks(config, step.device), config)


def written(sampler: Sampler, samples: list[SampleSpec], folder: Path) -> float:
    """Return the seconds per image of generating and writing samples, in groups as in a run."""
    size = sampler.config.image_batch
    writer = DatasetWriter(folder, config={})
    start = time.perf_counter()
    with WriterThread(writer, lambda batch: None) as saver:
        for first in range(0, len(samples), size):
            for sample in sampler.start(samples[first : first + size]):
                saver.put(sample)
    return (time.perf_counter() - start) / len(samples)


def denoising_only(step: Step, sampler: Sampler) -> Callable[[], None]:
    """Return the network calls of one image alone."""
    made, side = sampler.networks.denoiser, sampler.config.tile_px[0] // 8
    px = sampler.config.tile_px[0]
    with torch.no_grad():
        made.prime(sampler.networks.text.encode(["", PROMPT]), (2 * px, 2 * px))
        embedding = made.embed(0, torch.zeros(1, 20, px, px, device=step.device))
    inputs = []
    for batch in (1, TILES):
        rows = torch.tensor([0] * batch + [1] * batch, device=step.device)
        tiles = torch.randn(batch, 4, side, side, device=step.device)
        inputs.append((tiles, [embedding.repeat(batch, 1, 1, 1)], rows))

    @torch.no_grad()
    def call() -> None:
        for tiles, embeddings, rows in inputs:
            for number in range(sampler.config.steps):
                made(tiles, number, embeddings, rows)

    return call


def fused_images(step: Step, *, compiled: bool) -> None:
    """Measure images of 1024x1024 by fusion, end to end with the file on the disk."""
    kind = "compiled" if compiled else "eager"
    sampler = sampler_of(step, compile=compiled and not step.toy)
    samples = specs(step, step.size(WRITTEN, 1))
    start = time.perf_counter()
    sampler.generate_all(samples[:1])
    step.add(f"first fused image, {kind}, with compilation", time.perf_counter() - start, "s")
    with tempfile.TemporaryDirectory() as name:
        seconds = [
            written(sampler, samples, Path(name) / str(repeat)) for repeat in range(step.size(3, 1))
        ]
        # Random weights may give images that no run would write, whose files then cost nothing
        step.details["files written"] = len(read_rows(Path(name) / "0"))
    image = Spread.of(seconds)
    step.add(f"fused image with its files, {kind}", image, "s", "<= 2.6", "1.89")
    calls = {"network": denoising_only(step, sampler)}
    pure = per(in_turn(step, calls, warm_up=1, repeats=2)["network"], 1)
    step.add(f"fused image, {kind}: end to end / network calls",
             image.median / (pure.median / 1000), "", "<= 1.03", "1.016")  # fmt: skip
    step.details[kind] = {"image_s": seconds, "network_calls_ms": dataclasses.asdict(pure)}
    step.attempt("published program", lambda: published(step, sampler, image.median, kind))


def published(step: Step, sampler: Sampler, image_s: float, kind: str) -> None:
    """Compare with the published program in float32, computed from its parts."""
    calls: dict[str, Callable[[], object]] = {
        "evaluation": stock_call(step, *load(step, "sd15", torch.float32), 1)
    }
    vae, side = sampler.networks.vae, sampler.config.tile_px[0] // 8
    small = torch.randn(1, 4, side, side, device=step.device)
    large = torch.randn(1, 3, 16 * side, 16 * side, device=step.device)
    calls["decode, base"] = torch.no_grad()(lambda: decode_latents(vae, small))
    calls["encode, canvas"] = torch.no_grad()(lambda: encode_latents(vae, large))
    calls["decode, canvas"] = torch.no_grad()(lambda: decode_latents(vae, small.repeat(1, 1, 2, 2)))
    found = in_turn(step, calls)
    evaluations = sampler.config.steps * (1 + TILES)
    total = evaluations * np.array(found["evaluation"])
    total = total + sum(np.array(found[name]) for name in list(calls)[1:])
    step.details["published"] = found
    step.add("fused image, published program in float32, computed", Spread.of(total / 1000), "s")
    ratios = Spread.of(total / 1000 / image_s)
    step.add(f"fused image, published / ours {kind}", ratios, "", ">= 9", "12")


def batch_equality(step: Step) -> None:
    """Compare an image generated alone with the same image generated with others."""
    sampler = sampler_of(step, image_batch=step.size(4, 2))
    samples = specs(step, sampler.config.image_batch)
    alone, together = sampler.generate_all(samples[:1])[0], sampler.generate_all(samples)[0]
    if alone.image is None or together.image is None:
        raise RuntimeError(f"unusable image: {alone.problem or together.problem}")
    difference = np.abs(alone.image.astype(int) - together.image.astype(int)).max()
    step.add("largest difference of an image alone and in a group", float(difference),
             "grey levels", "<= 0")  # fmt: skip


def stock_images(step: Step) -> None:
    """Compare ControlNet images of 512x512, 20 steps, batch 16, with diffusers, both compiled."""
    from diffusers import DDIMScheduler, StableDiffusionControlNetPipeline

    batch, steps = step.size(16, 2), step.size(20, 1)
    config = settings(step, fusion="none", scheduler="ddim", image_batch=batch)
    ours = Sampler(load_networks(config, step.device), config)
    unet, control = load(step, "sd15", torch.bfloat16)
    for network in (unet, control):
        network.to(memory_format=torch.channels_last)
    pipe = StableDiffusionControlNetPipeline.from_pretrained(
        step.folder / "sd15", unet=unet, controlnet=control, torch_dtype=torch.bfloat16,
        safety_checker=None,
    ).to(step.device)  # fmt: skip
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config, clip_sample=False)
    pipe.set_progress_bar_config(disable=True)
    samples, side = specs(step, batch), config.crop_px[0]
    condition = torch.zeros(batch, 20, side, side)

    def theirs() -> None:
        pipe([PROMPT] * batch, image=condition, num_inference_steps=steps, guidance_scale=7.5)

    calls: dict[str, Callable[[], object]] = {
        "theirs": theirs, "ours": lambda: ours.generate_all(samples)
    }  # fmt: skip
    found = in_turn(step, calls, warm_up=1, repeats=2)
    step.details["images, eager"] = found
    step.add("ControlNet images, diffusers eager / ours eager", speed_up(found, "theirs", "ours"))
    if not step.toy:
        ours.networks.denoiser.compile()
        pipe.unet, pipe.controlnet = torch.compile(unet), torch.compile(control)
    found |= {f"{name}, compiled": times for name, times in in_turn(step, calls, repeats=2).items()}
    step.details["images, compiled"] = found
    step.add("ControlNet images, diffusers eager / ours compiled",
             speed_up(found, "theirs", "ours, compiled"), "", ">= 1.4", "2.2")  # fmt: skip
    both = speed_up(found, "theirs, compiled", "ours, compiled")
    step.add("ControlNet images, diffusers compiled / ours compiled", both, "", ">= 1.1", "2.2")
    rate = Spread.of([1000 * batch / value for value in found["ours, compiled"]])
    step.add("ControlNet images of 512x512, 20 steps", rate, "1/s", ">= 7", "13")
