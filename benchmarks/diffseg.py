"""Compare corrected DIFF with DIFF as released: inference time, and memory of the aggregation.

    python benchmarks/diffseg.py                       # about five minutes

Time: inference of whole networks on the pocket model with random heads, in turn in one process.
DIFF as released evaluates a batch of two in each of 37 steps and encodes its prompt for every
image. The corrected network has equal features up to a factor. Memory: peak of a process above its
start, one process each, for features of Stable Diffusion 2.1 at 512x512, 9 levels, float32.
"""

import argparse
import resource
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch

if sys.path and sys.path[0] == str(Path(__file__).resolve().parent):  # see CONTRIBUTING.md
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from benchmarks import measure
from pipeline import models
from pipeline.errors import guard
from pipeline.prompt_encoder import PromptEncoder
from segtrain import recipes
from segtrain.diffusion.aggregation import Bottleneck, DirectAggregation

CONFIGS = Path(__file__).resolve().parent.parent / "configs" / "segtrain"
SHAPES = [(1280, 32)] * 6 + [(640, 16)] * 6 + [(320, 8)] * 6
LEVELS, SIDE = 9, 512


def networks(*, quick: bool) -> dict[str, Any]:
    """Build the networks that are compared; `quick`: two of them."""
    diff = recipes.load_recipe(CONFIGS / "diff_pocket.py")
    diff.model.ipkl = None
    built = {
        "faithful 37": recipes.load_recipe(CONFIGS / "diff_as_released_pocket.py"),
        "corrected 37": diff,
        "5 steps": recipes.load_recipe(CONFIGS / "diff5_pocket.py"),
        "1 step": recipes.load_recipe(CONFIGS / "diff1_pocket.py"),
        "single clean pass": recipes.load_recipe(CONFIGS / "diffusion_pocket.py"),
    }
    chosen = ("faithful 37", "1 step") if quick else built
    return {name: recipes.build_model(built[name]).eval() for name in chosen}


def speed(results: measure.Results, num_images: int, batch: int) -> None:
    """Measure the inference of each network and its ratio to DIFF as released."""
    torch.manual_seed(0)
    size_px = (64, 128) if results.quick else (128, 256)
    images = torch.rand(num_images // batch, batch, 3, *size_px) * 2 - 1
    encoder = PromptEncoder(models.find_base("pocket"))
    encoder.load()

    @torch.no_grad()
    def segment(name: str, network: Any) -> None:
        for image in images:
            if "faithful" in name:
                encoder._encode_one("")  # the release encodes the prompt for every image
            network(image, mode="tensor")

    built = networks(quick=results.quick)
    calls = {name: partial(segment, name, network) for name, network in built.items()}
    seconds = measure.in_turn(calls, results.repeats)
    for name in list(calls)[1:]:
        spread = measure.ratio(seconds, "faithful 37", name)
        results.add(f"inference of DIFF as released / {name}", spread)
    results.details["seconds"] = seconds


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


def peak_of(kind: str) -> float:
    """Return `peak_mb` of a new process."""
    command = [sys.executable, __file__, "--peak", kind]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def main() -> None:
    parser = measure.parser(__doc__, repeats=3)
    parser.add_argument("--num-images", type=int, default=4, help="images of a time measurement")
    parser.add_argument("--batch", type=int, default=1, help="images segmented at once")
    parser.add_argument("--peak", choices=("streamed", "concatenated"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.peak:
        print(peak_mb(arguments.peak))
        return
    results = measure.Results("diffseg", "Corrected DIFF against DIFF as released", arguments)
    torch.set_num_threads(1)
    speed(results, 1 if arguments.quick else arguments.num_images, arguments.batch)
    for kind in () if arguments.quick else ("streamed", "concatenated"):
        results.add(f"peak memory of the aggregation, {kind}", peak_of(kind), "MiB")
    results.write()


if __name__ == "__main__":
    guard(main)
