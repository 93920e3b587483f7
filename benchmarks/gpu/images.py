"""Whole images: multi-resolution latent fusion from label map to file, and plain ControlNet images.

The published program in float32 is not run in full: its time is computed from its measured parts,
evaluations of one tile per call and the calls of the autoencoder.
"""

import dataclasses
import itertools
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.gpu.device import Step, in_turn, speed_up
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
from pipeline.rows import is_ok

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


def write_samples(sampler: Sampler, samples: list[SampleSpec], folder: Path) -> None:
    """Generate and write samples, in groups as in a run."""
    size = sampler.config.image_batch
    writer = DatasetWriter(folder, config={})
    with WriterThread(writer, lambda batch: None) as saver:
        for first in range(0, len(samples), size):
            for sample in sampler.start(samples[first : first + size]):
                saver.put(sample)


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
    """Measure images of 1024x1024 by fusion, end to end with the file on the disk.

    Images, network calls and the parts of the published program are measured in turn.
    """
    kind = "compiled" if compiled else "eager"
    sampler = sampler_of(step, compile=compiled and not step.toy)
    samples = specs(step, step.size(WRITTEN, 1))
    start = time.perf_counter()
    sampler.generate_all(samples[:1])
    step.add(f"first fused image, {kind}, with compilation", time.perf_counter() - start, "s")
    parts = published_parts(step, sampler)
    with tempfile.TemporaryDirectory() as name:
        folders = (Path(name) / str(number) for number in itertools.count())
        calls = {
            "image": lambda: write_samples(sampler, samples, next(folders)),
            "network": denoising_only(step, sampler),
        }
        found = in_turn(step, calls | parts, warm_up=1)
        fewest = min(files_in(folder) for folder in Path(name).iterdir())
    step.details[kind] = found
    image = Spread.of([value / 1000 / len(samples) for value in found["image"]])
    # Random weights may give images that no run would write, whose files then cost nothing
    complete = fewest == len(samples)
    title = "with its files" if complete else f"of {len(samples)} only {fewest} written, no result"
    goals = ("<= 2.6", "1.89") if complete else ("", "")
    step.add(f"fused image {title}, {kind}", image, "s", *goals)
    shares = speed_up(found, "image", "network", 1 / len(samples))
    goals = ("<= 1.03", "1.016") if complete else ("", "")
    step.add(f"fused image, {kind}: end to end / network calls", shares, "", *goals)
    evaluations = sampler.config.steps * (1 + TILES)
    total = evaluations * np.array(found["evaluation"])
    total = total + sum(np.array(found[part]) for part in parts if part != "evaluation")
    step.add(f"fused image, published program in float32, computed, beside {kind}",
             Spread.of(list(total / 1000)), "s")  # fmt: skip
    ratios = Spread.of(list(len(samples) * total / np.array(found["image"])))
    goals = (">= 9", "12") if complete else ("", "")
    step.add(f"fused image, published / ours {kind}", ratios, "", *goals)


def files_in(folder: Path) -> int:
    """Return the number of finished samples of a dataset folder."""
    return sum(map(is_ok, read_rows(folder).values()))


def published_parts(step: Step, sampler: Sampler) -> dict[str, Callable[[], object]]:
    """Return the parts of the published program in float32: one tile, and the autoencoder."""
    vae, side = sampler.networks.vae, sampler.config.tile_px[0] // 8
    small = torch.randn(1, 4, side, side, device=step.device)
    large = torch.randn(1, 3, 16 * side, 16 * side, device=step.device)
    return {
        "evaluation": stock_call(step, *load(step, "sd15", torch.float32), 1),
        "decode, base": torch.no_grad()(lambda: decode_latents(vae, small)),
        "encode, canvas": torch.no_grad()(lambda: encode_latents(vae, large)),
        "decode, canvas": torch.no_grad()(lambda: decode_latents(vae, small.repeat(1, 1, 2, 2))),
    }


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
    """Compare ControlNet images of 512x512, 20 steps, batch 16, with diffusers, eager and compiled.

    Networks of both sides are channels-last and in bfloat16; all four are measured in turn.
    """
    batch = step.size(16, 2)
    config = settings(step, fusion="none", scheduler="ddim", image_batch=batch)
    samples = specs(step, batch)
    calls: dict[str, Callable[[], object]] = {}
    for kind, compiled in (("eager", False), ("compiled", not step.toy)):
        chosen = dataclasses.replace(config, compile=compiled)
        ours = Sampler(load_networks(chosen, step.device), chosen)
        calls[f"theirs, {kind}"] = stock_pipeline(step, batch, compiled=compiled)
        calls[f"ours, {kind}"] = partial(ours.generate_all, samples)
    found = in_turn(step, calls)
    step.details["images"] = found
    step.add("ControlNet images, diffusers eager / ours eager",
             speed_up(found, "theirs, eager", "ours, eager"))  # fmt: skip
    step.add("ControlNet images, diffusers eager / ours compiled",
             speed_up(found, "theirs, eager", "ours, compiled"), "", ">= 1.4", "2.2")  # fmt: skip
    both = speed_up(found, "theirs, compiled", "ours, compiled")
    step.add("ControlNet images, diffusers compiled / ours compiled", both, "", ">= 1.1", "2.2")
    rate = Spread.of([1000 * batch / value for value in found["ours, compiled"]])
    step.add("ControlNet images of 512x512, 20 steps", rate, "1/s", ">= 7", "13")


def stock_pipeline(step: Step, batch: int, *, compiled: bool) -> Callable[[], object]:
    """Return a call of diffusers' pipeline that makes a batch of ControlNet images."""
    from diffusers import DDIMScheduler, StableDiffusionControlNetPipeline

    unet, control = load(step, "sd15", torch.bfloat16, channels_last=True)
    pipe = StableDiffusionControlNetPipeline.from_pretrained(
        step.folder / "sd15", unet=unet, controlnet=control, torch_dtype=torch.bfloat16,
        safety_checker=None,
    ).to(step.device)  # fmt: skip
    if compiled:
        pipe.unet, pipe.controlnet = torch.compile(unet), torch.compile(control)
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config, clip_sample=False)
    pipe.set_progress_bar_config(disable=True)
    side = step.size(512, 64)
    return partial(
        pipe, [PROMPT] * batch, image=torch.zeros(batch, 20, side, side),
        num_inference_steps=step.size(20, 1), guidance_scale=7.5,
    )  # fmt: skip
