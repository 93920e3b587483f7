"""Measures which precision is faster on the device of this process, for `--precision auto`."""

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from generation.precision import CHOICES
from generation.sampler.networks import load_networks, pick_device
from generation.settings import Config

REPEATS = 3
MARGIN = 1.1  # bfloat16 must save this much: a choice within the noise of a clock would be a guess


def measure_precision(
    config: Config, *, clock: Callable[[], float] = time.perf_counter
) -> dict[str, Any]:
    """Time one guided evaluation of a tile in float32 and in bfloat16, in turn.

    Returns the `precision` to use, and the `seconds` of the best repeat of each. Both sets of
    networks are in memory for the moment.
    """
    device = pick_device(config.cpu_threads)
    calls = {name: _evaluation(replace(config, precision=name), device) for name in CHOICES}
    seconds: dict[str, list[float]] = {name: [] for name in CHOICES}
    for repeat in range(REPEATS + 1):
        for name, call in calls.items():
            start = clock()
            call()
            if repeat:  # the first call is a warm-up
                seconds[name].append(clock() - start)
    best = {name: min(times) for name, times in seconds.items()}
    faster = best["fp32"] >= MARGIN * best["bf16"]
    return {"precision": "bf16" if faster else "fp32", "seconds": best, "device": device.type}


def _evaluation(config: Config, device: torch.device) -> Callable[[], None]:
    """Return a call that evaluates one tile with both branches of the guidance."""
    networks = load_networks(replace(config, compile=False), device)
    denoiser, factor = networks.denoiser, networks.grid.vae_scale_factor
    size_px = config.sizes.padded(networks.grid).tile_px
    tile = torch.zeros(
        1, networks.vae.config.latent_channels, *(side // factor for side in size_px),
        device=device,
    )  # fmt: skip
    with torch.no_grad():
        denoiser.prime(networks.text.encode([config.negative_prompt, ""]), size_px)
        embeddings = []
        for index, control in enumerate(denoiser.controls):
            channels = control.network.config.conditioning_channels
            embeddings.append(denoiser.embed(index, torch.zeros(1, channels, *size_px)))
    rows = torch.tensor([0, 1], device=device)

    @torch.no_grad()
    def call() -> None:
        denoiser(tile, 0, embeddings, rows).cpu()  # waits for the device

    return call
