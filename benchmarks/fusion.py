"""Compare our fusion with the published loop at equal samples: difference, time and work.

    python benchmarks/fusion.py --output runs/fusion.json              # some minutes
    python benchmarks/fusion.py --steps 1 --repeats 1 --label-maps 1 --output runs/fusion.json

All three parts use the `reference` preset on 25 tiles:

- difference: largest relative difference of the latents, float32, over some label maps;
- time: published loop and ours in turn in one process, median ratio, for a label map without
  covered tiles, and for the same map with road on its left 40 %;
- work: FLOPs per image by torch's counter, ours / published, for the pocket model and for Stable
  Diffusion 1.5 (no weights needed), over rare-class crops and uniform crops.
"""

import argparse
import dataclasses
import json
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import ControlNetModel, UNet2DConditionModel
from torch.utils.flop_counter import FlopCounterMode

if sys.path and sys.path[0] == str(Path(__file__).resolve().parent):  # see CONTRIBUTING.md
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from benchmarks.machine import describe
from benchmarks.plain_fusion import Plain
from generation import label_maps, plan, tiles
from generation.prompts import Grammar
from generation.sampler import sampler as drawing
from generation.sampler.denoiser import Control, Denoiser
from generation.sampler.networks import Networks, load_networks
from generation.sampler.sampler import Sampler
from generation.setting_groups import RareClasses
from generation.settings import DEFAULT_LABEL_MAPS, Config, default_config
from pipeline import files, models, resizing
from pipeline.errors import guard
from pipeline.latents import decode_latents
from pipeline.prompt_encoder import Conditioning

PROMPT = "a city street scene with road, building and car, in foggy weather by day"
QUARTER = 4  # stride of a quarter of the tile: 25 tiles on a canvas of twice the tile size


def settings(steps: int) -> Config:
    """Return the published algorithm at the pocket model's size."""
    config = default_config("pocket")
    return dataclasses.replace(
        config,
        fusion="reference",
        scheduler="ddim",
        steps=steps,
        guidance_scale=7.5,
        controlnet_scale=1.0,
        tile_selection="uncovered",
        tile_batch=25,
        negative_prompt="",
        guess_mode_from=1.0,
        guidance_interval=(0.0, 1.0),
        base_pass_classes=(),
        stride_px=tuple(side // QUARTER for side in config.tile_px),
    )


def plain_loop(networks: Networks, sampler: Sampler) -> Plain:
    """Return the published loop on stock copies of the same weights."""
    config = sampler.config
    base = models.find_base(config.base)
    controlnet = models.load_network(
        "controlnet", base, models.find_folder(config.controlnet, "controlnet")
    )
    return Plain(
        unet=models.load_component(base, "unet"),
        controlnet=controlnet,
        vae=networks.vae,
        scheduler=networks.scheduler,
        base=sampler._latent(sampler.sizes.base_px),
        canvas=sampler._latent(sampler.sizes.canvas_px),
        tile=sampler._latent(config.tile_px),
        stride=sampler._latent(config.stride_px),
        min_region_share=config.min_region_share,
        guidance_scale=config.guidance_scale,
        controlnet_scale=config.controlnet_scale,
        last_level=0,
    )


def our_latents(sampler: Sampler, label: np.ndarray, seed: int) -> list[torch.Tensor]:
    """Return the latents that our sampler decodes: of the base pass, and the final one."""
    caught: list[torch.Tensor] = []

    def decode_and_keep(vae: Any, latents: torch.Tensor) -> torch.Tensor:
        caught.append(latents)
        return decode_latents(vae, latents)

    drawing.decode_latents = decode_and_keep
    try:
        sampler.generate(label, PROMPT, seed)
    finally:
        drawing.decode_latents = decode_latents
    return caught


def differences(
    plain: Plain, sampler: Sampler, label: np.ndarray, states: torch.Tensor
) -> tuple[float, float, float]:
    """Return relative differences of the base pass, of the second pass alone, and of both.

    Between the passes the image is rounded to 8 bits, where a difference in the last bit can
    become one of 1/255; so the second pass is compared from the same base pass as well.
    """
    base, ours = our_latents(sampler, label, 0)
    generator = torch.Generator().manual_seed(0)
    expected_base = plain.base_pass(label, states, generator)
    state = generator.get_state()
    second = plain.high_resolution_pass(label, states, base, generator)
    generator.set_state(state)
    both = plain.high_resolution_pass(label, states, expected_base, generator)
    pairs = ((base, expected_base), (ours, second), (ours, both))
    a, b, c = (float((x - y).norm() / y.norm()) for x, y in pairs)
    return a, b, c


def covered_share(label: np.ndarray, config: Config, size: tuple[int, int], tile: Any) -> float:
    """Return the share of the tiles that large regions cover."""
    mask = resizing.resize_nearest(tiles.large_components(label, config.min_region_share), size)
    stride = (tile[0] // QUARTER, tile[1] // QUARTER)
    grid = tiles.tile_boxes(size, tile, stride)
    return 1 - len(tiles.chosen_boxes(grid, tile, mask, "uncovered")) / len(grid)


def paint_road(label: np.ndarray, share: float) -> np.ndarray:
    """Return the map with its left `share` painted as one region."""
    painted = label.copy()
    painted[:, : round(share * label.shape[1])] = 0
    return painted


def compare(arguments: argparse.Namespace, maps: list[np.ndarray]) -> dict[str, Any]:
    """Measure difference and time on the pocket model."""
    config = settings(arguments.steps)
    networks = load_networks(config, torch.device("cpu"))
    sampler = Sampler(networks, config)
    plain = plain_loop(networks, sampler)
    states = networks.text.encode([config.negative_prompt, PROMPT]).states
    found = [differences(plain, sampler, label, states) for label in maps[: arguments.label_maps]]
    names = ("base pass", "second pass", "both, with 8-bit rounding between")
    largest = {name: max(row[i] for row in found) for i, name in enumerate(names)}
    timed = {}
    for name, label in (("no tile covered", maps[0]), ("40 % covered", paint_road(maps[0], 0.7))):
        seconds: dict[str, list[float]] = {"published": [], "ours": []}
        for _ in range(arguments.repeats):
            for kind in seconds:
                start = time.perf_counter()
                if kind == "ours":
                    sampler.generate(label, PROMPT, 0)
                else:
                    decode_latents(networks.vae, plain.draw(label, states, 0))
                seconds[kind].append(time.perf_counter() - start)
        ratios = [a / b for a, b in zip(seconds["published"], seconds["ours"], strict=True)]
        timed[name] = {
            "covered_share": covered_share(label, config, plain.canvas, plain.tile),
            "ratio": round(statistics.median(ratios), 2),
            "ratio_range": [round(min(ratios), 2), round(max(ratios), 2)],
            **{f"{k}_s": round(statistics.median(v), 2) for k, v in seconds.items()},
        }
    return {"max_relative_difference": largest, "images": len(found), **timed}


def flops(unet: Any, controlnet: Any, tile: tuple[int, int], px: int) -> tuple[int, int, int]:
    """Return FLOPs of (stock guided evaluation, ours, our condition embedding)."""
    channels, width = unet.config.in_channels, unet.config.cross_attention_dim
    view = torch.zeros(1, channels, *tile, device="meta")
    condition = torch.zeros(1, 20, tile[0] * px, tile[1] * px, device="meta")
    states = torch.zeros(2, 77, width, device="meta")
    rows = torch.zeros(2, dtype=torch.long, device="meta")

    def stock() -> None:
        double = view.repeat(2, 1, 1, 1)
        down, mid = controlnet(double, 0, states, condition.repeat(2, 1, 1, 1), return_dict=False)
        unet(
            double,
            0,
            states,
            down_block_additional_residuals=down,
            mid_block_additional_residual=mid,
        )

    def count(call: Any) -> int:
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            call()
        return counter.get_total_flops()

    published = count(stock)
    denoiser = Denoiser(unet, [Control(controlnet, 1.0)], torch.zeros(1, device="meta"))
    with torch.no_grad():
        denoiser.prime(Conditioning(states), (1, 1))
        embedding = denoiser.embed(0, condition)
    ours = count(lambda: denoiser(view, 0, [embedding], rows))
    return published, ours, count(lambda: denoiser.embed(0, condition))


def work(crops: list[np.ndarray], model: str, steps: int) -> dict[str, float]:
    """Return ours / published FLOPs of an image, mean over crops, and the share of tiles skipped.

    The canvas has twice the tile's height and width; the base pass is one tile.
    """
    with torch.device("meta"):
        if model == "pocket":
            folder = models.POCKET_BASE / "unet"
            unet = UNet2DConditionModel.from_config(UNet2DConditionModel.load_config(folder))
            known = ControlNetModel.load_config(models.POCKET_CONTROLNET)
            controlnet, tile, px = ControlNetModel.from_config(known), (16, 32), 4
        else:
            unet = UNet2DConditionModel(sample_size=64, cross_attention_dim=768)
            controlnet = ControlNetModel(cross_attention_dim=768, conditioning_channels=20)
            tile, px = (64, 64), 8
    stock, ours, embed = flops(unet.eval(), controlnet.eval(), tile, px)
    size, config = (2 * tile[0], 2 * tile[1]), settings(steps)
    skipped = np.array([covered_share(crop, config, size, tile) for crop in crops])
    needed = 25 * (1 - skipped)
    published = steps * (1 + 25) * stock
    return {
        "flops_ratio": round(float(((1 + needed) * (steps * ours + embed)).mean() / published), 3),
        "per_evaluation": round(ours / stock, 3),
        "tiles_skipped": round(float(skipped.mean()), 3),
    }


def draw_crops(
    source: label_maps.LabelMapFolder, size: tuple[int, int], rare: bool, n: int
) -> list:
    """Return `n` crops, sampled by rare classes as in generation, or uniformly."""
    found = label_maps.scan(source)
    counts = np.array([label_map.counts for label_map in found])
    planner = plan.Planner(
        counts, Grammar(), seed=0, sampling=RareClasses(enabled=rare, min_pixels=48)
    )
    crops = []
    for item in planner.make_plan(n):
        label = source.read(found[item.label_map].name)
        crops.append(plan.place_crop(label, item, seed=0, size=size, min_share=0.01).of(label))
    return crops


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--steps", type=int, default=5, help="scheduler steps")
    parser.add_argument("--repeats", type=int, default=5, help="repeats of each time measurement")
    parser.add_argument("--label-maps", type=int, default=4, help="label maps of the comparison")
    parser.add_argument("--crops", type=int, default=200, help="crops of the count of FLOPs")
    parser.add_argument("--gta", type=Path, help="folder of GTA label maps, for Stable Diffusion")
    parser.add_argument("--label-space", default="gta", help="label space of --gta")
    parser.add_argument("--output", type=Path, required=True, help="JSON file to write")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    pocket = label_maps.open_folder(
        DEFAULT_LABEL_MAPS, pattern="*.png", label_space="train_ids", height_px=0
    )
    maps = draw_crops(pocket, default_config("pocket").crop_px, True, 40)
    result: dict[str, Any] = {"compare": compare(arguments, maps), "work": {}}
    sources = {"pocket": (pocket, default_config("pocket").crop_px)}
    if arguments.gta:
        gta = label_maps.open_folder(
            arguments.gta, pattern="*.png", label_space=arguments.label_space, height_px=0
        )
        sources["sd15"] = (gta, (512, 512))
    for model, (source, size) in sources.items():
        for kind in ("rare-class", "uniform"):
            crops = draw_crops(source, size, kind == "rare-class", arguments.crops)
            result["work"][f"{model}, {kind} crops"] = work(crops, model, 20)
    result |= {"load_average": os.getloadavg()[0], **describe("torch", "diffusers", "numpy")}
    files.write_json(arguments.output, result)
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    guard(main)
