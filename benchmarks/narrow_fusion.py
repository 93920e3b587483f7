"""Fusion with networks a quarter as wide as those of Stable Diffusion 1.5, of its full depth.

    python benchmarks/narrow_fusion.py                 # about four minutes on one core
    python benchmarks/narrow_fusion.py --quick --force # that it runs

Here the networks take nearly all of the time, as on a GPU. Random weights, float32, one thread, the
`reference` preset, four DDIM steps, a canvas of 512x512 pixels with nine tiles.

- time: published loop and ours in turn in one process, for a label map without covered tiles;
- own share: seconds of our images outside the networks (solver, fusion, masks), divided by all.
"""

import argparse
import dataclasses
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

if sys.path and sys.path[0] == str(Path(__file__).resolve().parent):  # see CONTRIBUTING.md
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from benchmarks import fusion, measure, random_base
from generation.sampler.denoiser import Denoiser
from generation.sampler.networks import load_networks
from generation.sampler.sampler import Sampler
from generation.samples import SampleSpec
from generation.settings import Config
from pipeline.errors import guard
from pipeline.latents import decode_latents

TILE_PX, STEPS = 256, 4


def write_networks(folder: Path, size: str) -> None:
    """Write base model and ControlNet."""
    torch.manual_seed(0)
    base = random_base.build("sd15", size)
    random_base.build_controlnet(base.unet).save_pretrained(folder / "controlnet")
    base.save_pretrained(folder / "base")


def settings(folder: Path, steps: int, tile_px: int) -> Config:
    """Return the published algorithm for these networks, with a stride of half a tile."""
    return dataclasses.replace(
        fusion.settings(steps),
        base=str(folder / "base"),
        controlnet=str(folder / "controlnet"),
        crop_px=(tile_px, tile_px),
        tile_px=(tile_px, tile_px),
        stride_px=(tile_px // 2, tile_px // 2),
        tile_batch=9,
    )


class NetworkTime:
    """The seconds spent in the networks of a sampler."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def timed(self, call: Callable[..., Any]) -> Callable[..., Any]:
        """Return `call`, its time counted."""

        def counted(*arguments: Any, **named: Any) -> Any:
            start = time.perf_counter()
            try:
                return call(*arguments, **named)
            finally:
                self.seconds += time.perf_counter() - start

        return counted

    @contextmanager
    def counting(self, sampler: Sampler) -> Iterator[None]:
        """Count all calls of networks inside the block."""
        vae, text = sampler.networks.vae, sampler.networks.text
        places = [(Denoiser, "__call__"), (Denoiser, "prime"), (Denoiser, "embed")]
        places += [(vae, "encode"), (vae, "decode"), (text, "encode")]
        before = [(place, name, getattr(place, name)) for place, name in places]
        for place, name, call in before:
            setattr(place, name, self.timed(call))
        try:
            yield
        finally:
            for place, name, call in before:
                setattr(place, name, call)


def own_share(sampler: Sampler, sample: SampleSpec, repeats: int) -> measure.Spread:
    """Return the per cent of an image's time that is not spent in networks."""
    shares = []
    for _ in range(repeats):
        network = NetworkTime()
        start = time.perf_counter()
        with network.counting(sampler):
            sampler.generate_all([sample])
        shares.append(100 * (1 - network.seconds / (time.perf_counter() - start)))
    return measure.Spread.of(shares)


def compare(results: measure.Results, folder: Path, arguments: argparse.Namespace) -> None:
    """Measure time and own share."""
    steps, tile_px = (1, 64) if arguments.quick else (STEPS, TILE_PX)
    config = settings(folder, steps, tile_px)
    networks = load_networks(config, torch.device("cpu"))
    sampler = Sampler(networks, config)
    plain = fusion.plain_loop(networks, sampler)
    states = networks.text.encode([config.negative_prompt, fusion.PROMPT]).states
    blocks = np.random.default_rng(0).integers(0, 19, (8, 8), dtype=np.uint8)
    label = blocks.repeat(tile_px // 8, 0).repeat(tile_px // 8, 1)  # no large regions
    sample = SampleSpec(label, fusion.PROMPT, 0, index=0)
    calls = {
        "published": lambda: decode_latents(networks.vae, plain.draw(label, states, 0)),
        "ours": lambda: sampler.generate_all([sample]),
    }
    seconds = measure.in_turn(calls, results.repeats, warm_up=False)
    results.add("time, published / ours", measure.ratio(seconds, "published", "ours"), "", ">= 1.1")
    own = own_share(sampler, sample, results.repeats)
    results.add("solver, fusion and masks, share of an image's time", own, "%", "<= 3")
    results.details["seconds"] = seconds


def main() -> None:
    arguments = measure.parser(__doc__).parse_args()
    torch.set_num_threads(1)
    results = measure.Results("narrow_fusion", "Fusion at a quarter of the width", arguments)
    with tempfile.TemporaryDirectory() as name:
        write_networks(Path(name), "toy" if arguments.quick else "narrow")
        compare(results, Path(name), arguments)
    results.write()


if __name__ == "__main__":
    guard(main)
