"""Inference of a segmentation network on a diffusion backbone, whole frames of 1024x2048."""

from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks.gpu.device import Step, in_turn, speed_up
from benchmarks.measure import Spread
from pipeline import labels
from pipeline.reading import read_json
from segtrain import recipes

RECIPE = Path(__file__).resolve().parents[2] / "configs" / "segtrain" / "ptdiffseg_gta.py"


def segmenter(step: Step) -> None:
    """Compare bfloat16 with float32 of the same network."""
    recipe = recipes.load_recipe(RECIPE)
    recipes.override(recipe, steps=None, batch_size=None, base=str(step.folder / "sd15"))
    widths = read_json(step.folder / "sd15" / "unet" / "config.json", dict)["block_out_channels"]
    maps = labels.NUM_CLASSES  # attention maps of the classes join the two middle levels
    middle = [width + maps for width in widths[1:3]]
    recipe.model.neck.in_channels = [widths[0], *middle, widths[3]]
    network = recipes.build_model(recipe).eval().to(step.device)
    size = step.size((1024, 2048), (64, 128))
    image = torch.rand(1, 3, *size, device=step.device) * 2 - 1

    def segment(precision: str) -> Callable[[], object]:
        enabled = precision == "bf16"

        @torch.no_grad()
        def call() -> None:
            with torch.autocast(step.device.type, torch.bfloat16, enabled=enabled):
                network(image, mode="tensor")

        return call

    found = in_turn(step, {"fp32": segment("fp32"), "bf16": segment("bf16")})
    step.details["segmenter"] = found
    rates = Spread.of([1000 / value for value in found["bf16"]])
    step.add("segmented frames of 1024x2048, bfloat16", rates, "1/s", ">= 10", "23")
    step.add("segmented frames, float32 / bfloat16", speed_up(found, "fp32", "bf16"), "", ">= 3")
