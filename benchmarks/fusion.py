"""Compare our fusion with the published loop at equal samples: difference, time and work.

    python benchmarks/fusion.py [--gta FOLDER]        # some minutes
    python benchmarks/fusion.py --quick --force       # that it runs

All three parts use the `reference` preset on 25 tiles:

- difference: largest relative difference of the latents, float32, over some label maps;
- time: published loop and ours in turn in one process, median ratio, for a label map without
  covered tiles, and for the same map with road on its left 40 %;
- work: FLOPs per image by torch's counter, ours / published, for the pocket model and for Stable
  Diffusion 1.5 (no weights needed), over rare-class crops and uniform crops.
"""

import argparse
import dataclasses
import functools
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import ControlNetModel, UNet2DConditionModel
from torch.utils.flop_counter import FlopCounterMode

if sys.path and sys.path[0] == str(Path(__file__).resolve().parent):  # see CONTRIBUTING.md
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from benchmarks import measure
from benchmarks.plain_fusion import Plain
from generation import label_maps, plan, tiles
from generation.prompts import Grammar
from generation.sampler import sampler as drawing
from generation.sampler.denoiser import Control, Denoiser
from generation.sampler.networks import Networks, load_networks
from generation.sampler.sampler import Sampler
from generation.setting_groups import RareClasses
from generation.settings import DEFAULT_LABEL_MAPS, Config, default_config
from pipeline import models, resizing
from pipeline.errors import guard
from pipeline.latents import decode_latents
from pipeline.prompt_encoder import Conditioning

PROMPT = "a city street scene with road, building and car, in foggy weather by day"
MODELS = {"pocket": "pocket model", "sd15": "Stable Diffusion 1.5"}
DIFFERENCES = (
    ("base pass", "<= 1e-5"),
    ("high-resolution pass", "<= 1e-5"),
    ("both, with the 8-bit rounding between", ""),
)
UNIFORM_GOAL = {"Pocket City": "<= 0.95", "GTA": "<= 0.80"}  # of GTA one tile in five is covered
QUARTER = 4  # stride of a quarter of the tile: 25 tiles on a canvas of twice the tile size


@dataclasses.dataclass(frozen=True)
class Options:
    """How much is measured."""

    steps: int
    repeats: int
    label_maps: int
    crops: int

    @classmethod
    def of(cls, arguments: argparse.Namespace) -> "Options":
        """Return the options of a full or of a quick measurement."""
        return cls(1, 1, 1, 2) if arguments.quick else cls(5, arguments.repeats, 4, 200)


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


def compare(results: measure.Results, options: Options, maps: list[np.ndarray]) -> None:
    """Measure difference and time on the pocket model."""
    config = settings(options.steps)
    networks = load_networks(config, torch.device("cpu"))
    sampler = Sampler(networks, config)
    plain = plain_loop(networks, sampler)
    states = networks.text.encode([config.negative_prompt, PROMPT]).states
    found = [differences(plain, sampler, label, states) for label in maps[: options.label_maps]]
    for number, (name, goal) in enumerate(DIFFERENCES):
        largest = max(row[number] for row in found)
        results.add(f"largest relative difference, float32, {name}", largest, goal=goal)
    for name, label, goal in (
        ("no tile covered", maps[0], ">= 1.5"),
        ("40 % of the tiles covered", paint_road(maps[0], 0.7), ">= 2.5"),
    ):
        calls = {
            "published": lambda label=label: decode_latents(
                networks.vae, plain.draw(label, states, 0)
            ),
            "ours": lambda label=label: sampler.generate(label, PROMPT, 0),
        }
        seconds = measure.in_turn(calls, options.repeats, warm_up=False)
        results.add(
            f"time, published / ours, {name}", measure.ratio(seconds, "published", "ours"), "", goal
        )
        results.details[name] = {
            "seconds": seconds,
            "covered_share": covered_share(label, config, plain.canvas, plain.tile),
        }


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


@functools.lru_cache
def flops_of(model: str) -> tuple[tuple[int, int], tuple[int, int, int]]:
    """Return the tile of a model in latent pixels, and its FLOPs, see `flops`."""
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
    return tile, flops(unet.eval(), controlnet.eval(), tile, px)


def work(crops: list[np.ndarray], model: str, steps: int) -> dict[str, float]:
    """Return ours / published FLOPs of an image, mean over crops, and the share of tiles skipped.

    The canvas has twice the tile's height and width; the base pass is one tile.
    """
    tile, (stock, ours, embed) = flops_of(model)
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


def add_work(
    results: measure.Results, options: Options, sources: dict[str, tuple[Any, tuple[int, int]]]
) -> None:
    """Count the FLOPs of images for the label maps of each source."""
    for name, (source, size) in sources.items():
        for kind, goal in (("rare-class", "<= 0.95"), ("uniform", UNIFORM_GOAL[name])):
            crops = draw_crops(source, size, kind == "rare-class", options.crops)
            for model in ("pocket", "sd15"):
                found = work(crops, model, 20)
                where = f"{name}, {kind} crops, {MODELS[model]}"
                results.add(f"FLOPs of an image, ours / published, {where}", found["flops_ratio"],
                            "", goal)  # fmt: skip
                results.details[where] = found


def main() -> None:
    parser = measure.parser(__doc__)
    parser.add_argument("--gta", type=Path, help="folder of GTA label maps")
    parser.add_argument("--label-space", default="gta", help="label space of --gta")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    options = Options.of(arguments)
    results = measure.Results("fusion", "Fusion against the published loop", arguments)
    pocket = label_maps.open_folder(
        DEFAULT_LABEL_MAPS, pattern="*.png", label_space="train_ids", height_px=0
    )
    size = default_config("pocket").crop_px
    compare(results, options, draw_crops(pocket, size, True, 40))
    sources: dict[str, Any] = {"Pocket City": (pocket, size)}
    if arguments.gta:
        gta = label_maps.open_folder(
            arguments.gta, pattern="*.png", label_space=arguments.label_space, height_px=0
        )
        sources["GTA"] = (gta, (512, 512))
    add_work(results, options, sources)
    results.write()


if __name__ == "__main__":
    guard(main)
