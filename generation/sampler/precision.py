"""Measures which precision is faster on the device of this process, for `--precision auto`."""

import gc
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from generation import tiles
from generation.precision import CHOICES
from generation.sampler.networks import load_networks, pick_device
from generation.sampler.sampler import Sampler
from generation.settings import Config

REPEATS = 3
MARGIN = 1.1  # bfloat16 must save this much: a choice within the noise of a clock would be a guess


def measure_precision(
    config: Config, *, clock: Callable[[], float] = time.perf_counter
) -> dict[str, Any]:
    """Time a network call of the run's own shape in float32 and in bfloat16, one after the other.

    Returns the `precision` to use, and the `seconds` of the best repeat of each, None where the
    device has no memory for it. The networks of one precision are in memory at a time.
    """
    device = pick_device(config.cpu_threads)
    seconds: dict[str, float | None] = {}
    for name in CHOICES:
        seconds[name] = _seconds(replace(config, precision=name), device, clock)
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
    fp32, bf16 = seconds["fp32"], seconds["bf16"]
    takes_bf16 = fp32 is None or (bf16 is not None and fp32 >= MARGIN * bf16)
    return {
        "precision": "bf16" if takes_bf16 else "fp32",
        "seconds": seconds,
        "device": device.type,
    }


def _seconds(config: Config, device: torch.device, clock: Callable[[], float]) -> float | None:
    """Return the best time of a call, None if the device has no memory for it."""
    try:
        call = _evaluation(config, device)
        call()  # a warm-up
        times = []
        for _ in range(REPEATS):
            start = clock()
            call()
            times.append(clock() - start)
        return min(times)
    except torch.OutOfMemoryError:
        return None


def _evaluation(config: Config, device: torch.device) -> Callable[[], None]:
    """Return a call of the networks as the high-resolution pass makes it, or else the base pass."""
    networks = load_networks(replace(config, compile=False), device)
    sampler, denoiser = Sampler(networks, config), networks.denoiser
    size_px, number = _call_shape(sampler)
    guidance = sampler.tile_pass.guidance
    is_guided = any(guidance.is_used_in(step) for step in range(config.steps))

    factor, channels = networks.grid.vae_scale_factor, networks.vae.config.latent_channels
    latents = torch.zeros(number, channels, *(side // factor for side in size_px), device=device)
    with torch.no_grad():
        denoiser.prime(networks.text.encode([config.negative_prompt, ""]), size_px)
        embeddings = []
        for index, control in enumerate(denoiser.controls):
            condition = torch.zeros(1, control.network.config.conditioning_channels, *size_px)
            embeddings.append(denoiser.embed(index, condition).repeat(number, 1, 1, 1))
    texts = [1] * number
    if is_guided:  # all tiles with the negative prompt before all with their own
        texts = [0] * number + texts
    rows = torch.tensor(texts, device=device)

    @torch.no_grad()
    def call() -> None:
        denoiser(latents, 0, embeddings, rows).cpu()  # waits for the device

    return call


def _call_shape(sampler: Sampler) -> tuple[tuple[int, int], int]:
    """Return the size of a tile in pixels and the number of tiles of the run's network calls."""
    sizes, images = sampler.sizes, sampler.config.image_batch
    if not sizes.is_tiled:
        return sizes.base_px, sampler.base_pass.call_size(images)
    grid = tiles.tile_boxes(sizes.canvas_px, sizes.tile_px, sizes.stride_px)
    return sizes.tile_px, sampler.tile_pass.call_size(images * len(grid))
