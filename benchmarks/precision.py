"""Compare the precisions and memory formats of generation on a CPU, and what `auto` chooses.

    python benchmarks/precision.py                     # about two minutes on one core

Images of the pocket model with four steps, one thread, in turn in one process.
"""

import dataclasses
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch

if sys.path and sys.path[0] == str(Path(__file__).resolve().parent):  # see CONTRIBUTING.md
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from benchmarks import measure
from generation.sampler.networks import load_networks
from generation.sampler.precision import measure_precision
from generation.sampler.sampler import Sampler
from generation.settings import default_config
from pipeline.errors import guard
from pipeline.pocket_city import render_sample

LAYOUTS = ("contiguous", "channels-last")
PROMPT = "a city street scene with road, building and car, in foggy weather by day"


def main() -> None:
    arguments = measure.parser(__doc__).parse_args()
    results = measure.Results("precision", "Precision of generation on a CPU", arguments)
    config = dataclasses.replace(default_config("pocket"), steps=1 if arguments.quick else 4)
    chosen = measure_precision(config)
    results.details["auto"] = chosen
    _, label, _ = render_sample(0, "source", config.crop_px)
    assert label is not None
    calls: dict[str, Callable[[], object]] = {}
    images: dict[str, np.ndarray] = {}
    for precision in ("fp32", "bf16"):
        for layout in LAYOUTS[:1] if results.quick else LAYOUTS:
            changed = dataclasses.replace(
                config, precision=precision, channels_last=layout == "channels-last"
            )
            sampler = Sampler(load_networks(changed, torch.device("cpu")), changed)
            image = sampler.generate(label, PROMPT, 0).image
            assert image is not None
            images[f"{precision}, {layout}"] = image.astype(float)
            calls[f"{precision}, {layout}"] = partial(sampler.generate, label, PROMPT, 0)
    first = next(iter(calls))
    seconds = measure.in_turn(calls, results.repeats, warm_up=False)
    results.details["seconds"] = seconds
    results.add(f"image, {first}", measure.Spread.of(seconds[first]), "s")
    for name in list(calls)[1:]:
        results.add(f"time of an image, {first} / {name}", measure.ratio(seconds, first, name))
    difference = np.abs(images["fp32, contiguous"] - images["bf16, contiguous"]).mean()
    results.add("mean difference of an image in fp32 and bf16", float(difference), "grey levels")
    auto = measure.ratio(seconds, f"{chosen['precision']}, contiguous", first)
    results.add("time of an image, auto / fp32", auto, "", "<= 1.02")
    results.write()


if __name__ == "__main__":
    guard(main)
