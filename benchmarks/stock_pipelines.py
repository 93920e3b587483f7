"""Compare single images and tiled canvases with the pipelines of diffusers, at equal steps.

    python benchmarks/stock_pipelines.py               # about two minutes on one core

The pocket model, float32, one thread, DDIM, in turn in one process.

- ControlNet: one image against StableDiffusionControlNetPipeline, all of it included;
- panorama: the seconds of a tile and a step of our tiled pass, with ControlNet, against those of
  StableDiffusionPanoramaPipeline without ControlNet, one view per call and all views in one call.
"""

import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch

if sys.path and sys.path[0] == str(Path(__file__).resolve().parent):  # see CONTRIBUTING.md
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from benchmarks import measure
from generation.sampler.networks import load_networks
from generation.sampler.sampler import Sampler
from generation.settings import Config, default_config
from pipeline import labels, models
from pipeline.errors import guard
from pipeline.pocket_city import render_sample

PROMPT = "a city street scene with road, building and car, in foggy weather by day"
GUIDANCE = 7.5


def settings(steps: int, **changes: Any) -> Config:
    """Return settings that the stock pipelines have as well."""
    return dataclasses.replace(
        default_config("pocket"), scheduler="ddim", steps=steps, guidance_scale=GUIDANCE,
        controlnet_scale=1.0, negative_prompt="", guidance_interval=(0.0, 1.0), guess_mode_from=1.0,
        **changes,
    )  # fmt: skip


def stock(kind: str, steps: int, **parts: Any) -> Any:
    """Return a pipeline of diffusers on the pocket model."""
    base = models.find_base("pocket")
    pipe = getattr(diffusers, kind).from_pretrained(base, **parts)
    pipe.scheduler = diffusers.DDIMScheduler.from_config(pipe.scheduler.config, clip_sample=False)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def single_image(results: measure.Results, label: np.ndarray, steps: int) -> None:
    """Compare one image with ControlNet."""
    config = settings(steps, fusion="none", base_pass_scale=1.0)
    sampler = Sampler(load_networks(config, torch.device("cpu")), config)
    controlnet = diffusers.ControlNetModel.from_pretrained(models.POCKET_CONTROLNET)
    pipe = stock("StableDiffusionControlNetPipeline", steps, controlnet=controlnet)
    control = labels.one_hot_control(torch.from_numpy(label)[None])
    calls: dict[str, Callable[[], object]] = {
        "diffusers": lambda: pipe(
            PROMPT, image=control, num_inference_steps=steps, guidance_scale=GUIDANCE,
            negative_prompt="", generator=torch.Generator().manual_seed(0),
        ),
        "ours": lambda: sampler.generate(label, PROMPT, 0),
    }  # fmt: skip
    seconds = measure.in_turn(calls, results.repeats)
    results.add("image with ControlNet, diffusers / ours",
                measure.ratio(seconds, "diffusers", "ours"), "", ">= 1.05")  # fmt: skip
    results.details["single image"] = seconds


def panorama(results: measure.Results, label: np.ndarray, steps: int) -> None:
    """Compare the cost of a tile and a step.

    The stock pipeline knows a window of 64x64 latents and a stride of 8 alone, so the seconds are
    divided by the latents of all windows and steps.
    """
    config = settings(steps, tile_selection="all", tile_batch=64)
    sampler = Sampler(load_networks(config, torch.device("cpu")), config)
    factor = sampler.networks.grid.vae_scale_factor
    windows = [(64, 64)] * 3  # of a canvas of 64x80
    pipe = stock("StableDiffusionPanoramaPipeline", steps)

    def theirs(views: int) -> None:
        pipe(
            PROMPT, height=64 * factor, width=80 * factor, num_inference_steps=steps,
            guidance_scale=GUIDANCE, view_batch_size=views, output_type="latent",
            generator=torch.Generator().manual_seed(0),
        )  # fmt: skip

    image = sampler.generate(label, PROMPT, 0)
    tile = config.tile_px[0] // factor * (config.tile_px[1] // factor)
    base = sampler.sizes.base_px[0] // factor * (sampler.sizes.base_px[1] // factor)
    ours = steps * (image.tiles * tile + base)
    per_view = steps * sum(height * width for height, width in windows)
    calls: dict[str, Callable[[], object]] = {
        "one view": lambda: theirs(1),
        "all views": lambda: theirs(len(windows)),
        "ours": lambda: sampler.generate(label, PROMPT, 0),
    }
    seconds = measure.in_turn(calls, results.repeats)
    for kind in ("one view", "all views"):
        pairs = zip(seconds[kind], seconds["ours"], strict=True)
        spread = measure.Spread.of([(a / per_view) / (b / ours) for a, b in pairs])
        results.add(f"seconds of a latent pixel in tiles, panorama with {kind} per call / ours",
                    spread)  # fmt: skip
    results.details["panorama"] = {**seconds, "latents": {"theirs": per_view, "ours": ours}}


def main() -> None:
    arguments = measure.parser(__doc__).parse_args()
    torch.set_num_threads(1)
    results = measure.Results("stock_pipelines", "Pipelines of diffusers", arguments)
    steps = 1 if arguments.quick else 3
    _, label, _ = render_sample(0, "source", default_config("pocket").crop_px)
    assert label is not None
    single_image(results, label, steps)
    panorama(results, label, steps)
    results.write()


if __name__ == "__main__":
    guard(main)
