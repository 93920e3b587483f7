"""Compare corrected DIFF with DIFF as released: inference time, and memory of the aggregation.

    python benchmarks/diffseg.py --output benchmarks/results/DATE_diffseg.json

Time: inference of whole networks on the pocket model with random heads, in turn in one process.
DIFF as released evaluates a batch of two in each of 37 steps and encodes its prompt for every
image. The corrected network has equal features up to a factor. Memory: peak of a process above its
start, one process each, for features of Stable Diffusion 2.1 at 512x512, 9 levels, float32.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

if sys.path and sys.path[0] == str(Path(__file__).resolve().parent):  # see CONTRIBUTING.md
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from benchmarks.machine import describe
from pipeline import files, models
from pipeline.errors import guard
from pipeline.prompt_encoder import PromptEncoder
from segtrain import recipes
from segtrain.diffusion.aggregation import Bottleneck, DirectAggregation

CONFIGS = Path(__file__).resolve().parent.parent / "configs" / "segtrain"
SHAPES = [(1280, 32)] * 6 + [(640, 16)] * 6 + [(320, 8)] * 6
LEVELS, SIDE = 9, 512


def networks() -> dict[str, Any]:
    """Build the networks that are compared."""
    diff = recipes.load_recipe(CONFIGS / "diff_pocket.py")
    diff.model.ipkl = None
    built = {
        "faithful 37": recipes.load_recipe(CONFIGS / "diff_as_released_pocket.py"),
        "corrected 37": diff,
        "5 steps": recipes.load_recipe(CONFIGS / "diff5_pocket.py"),
        "1 step": recipes.load_recipe(CONFIGS / "diff1_pocket.py"),
        "single clean pass": recipes.load_recipe(CONFIGS / "diffusion_pocket.py"),
    }
    return {name: recipes.build_model(recipe).eval() for name, recipe in built.items()}


def speed(repeats: int, num_images: int, batch: int) -> dict[str, Any]:
    """Return seconds per image of each network and its ratio to DIFF as released."""
    torch.manual_seed(0)
    images = torch.rand(num_images // batch, batch, 3, 128, 256) * 2 - 1
    encoder, times = PromptEncoder(models.find_base("pocket")), {}
    encoder.load()
    built = networks()
    for repeat in range(repeats + 1):
        for name, network in built.items():
            start = time.perf_counter()
            for image in images:
                if "faithful" in name:
                    encoder._encode_one("")  # the release encodes the prompt for every image
                with torch.no_grad():
                    network(image, mode="tensor")
            if repeat:  # the first repeat is a warm-up
                times.setdefault(name, []).append((time.perf_counter() - start) / num_images)
    ratios = {
        name: [a / b for a, b in zip(times["faithful 37"], own, strict=True)]
        for name, own in times.items()
    }
    return {
        name: {
            "seconds_per_image": round(statistics.median(own), 4),
            "times_as_fast": round(statistics.median(ratios[name]), 2),
            "range": [round(min(ratios[name]), 2), round(max(ratios[name]), 2)],
        }
        for name, own in times.items()
    }


def feature(level: int, tap: int) -> torch.Tensor:
    """Return a random feature for a level and a tap."""
    channels, stride = SHAPES[tap]
    return torch.full((1, channels, SIDE // stride, SIDE // stride), 0.1 + level)


@torch.no_grad()
def peak_mb(kind: str) -> float:
    """Return the peak memory of one aggregation above the start, in MiB; needs a new process."""
    torch.set_num_threads(1)
    aggregation = DirectAggregation(SHAPES, LEVELS, 64)
    warm = Bottleneck([8], 64)
    warm.finish(*warm.part(0, torch.zeros(1, 8, 64, 64)))
    start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if kind == "streamed":
        keys = ((level, tap) for level in range(LEVELS) for tap in range(len(SHAPES)))
        aggregation((*key, feature(*key)) for key in keys)
    else:
        found = {(i, tap): feature(i, tap) for i in range(LEVELS) for tap in range(len(SHAPES))}
        for group, stride in enumerate(aggregation.strides):
            keys = [key for key in sorted(found) if SHAPES[key[1]][1] == stride]
            whole = torch.cat([found[key] for key in keys], dim=1)
            block = aggregation.blocks[group]
            weights = [
                torch.cat([part.weight for part in parts], dim=1)
                for parts in (block.reduce, block.shortcut)
            ]
            block.finish(*[torch.nn.functional.conv2d(whole, weight) for weight in weights])
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - start) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--output", type=Path, help="JSON file to write")
    parser.add_argument("--repeats", type=int, default=3, help="repeats of each measurement")
    parser.add_argument("--num-images", type=int, default=4, help="images of a time measurement")
    parser.add_argument("--batch", type=int, default=1, help="images segmented at once")
    parser.add_argument("--peak", choices=("streamed", "concatenated"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.peak:
        print(peak_mb(arguments.peak))
        return
    peaks = {
        kind: round(
            float(
                subprocess.run(
                    [sys.executable, __file__, "--peak", kind],
                    check=True,
                    capture_output=True,
                    text=True,
                ).stdout
            )
        )
        for kind in ("streamed", "concatenated")
    }
    result = {
        "batch": arguments.batch,
        "test": speed(arguments.repeats, arguments.num_images, arguments.batch),
        "aggregation_peak_mib": peaks,
        **describe("torch", "diffusers", "mmsegmentation"),
    }
    print(json.dumps(result, indent=2))
    if arguments.output:
        files.write_json(arguments.output, result)


if __name__ == "__main__":
    guard(main)
