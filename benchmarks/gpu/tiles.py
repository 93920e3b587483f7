"""The evaluation of a tile: U-Net and ControlNet, both branches of the guidance.

Ours (`generation.sampler.denoiser`), channels-last, against the stock forward passes of diffusers
in bfloat16. On equal terms: both eager or both compiled, both channels-last, equal batches. Beside
it diffusers as its pipelines leave it (eager, contiguous), one tile per call and as many as ours.
Also batch sizes, memory formats, attention kernels by head size, and peak memory.
"""

import gc
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.gpu.device import Step, in_turn, milliseconds, peak_gib, per, speed_up
from generation.sampler.denoiser import Control, Denoiser
from pipeline.prompt_encoder import Conditioning

GOALS = {"sd15": ("<= 5.0", "3.58"), "sd21": ("<= 4.7", "3.35")}  # ms; goal and ceiling on an H200
TITLES = {"sd15": "Stable Diffusion 1.5", "sd21": "Stable Diffusion 2.1"}
BATCH = 25  # tiles of an image of 1024x1024 at a stride of a quarter of the tile
LARGEST = 50
PLAIN = "diffusers eager, contiguous"
ONE_EACH = f"{PLAIN}, one per call"


def load(
    step: Step, family: str, dtype: torch.dtype, *, channels_last: bool = False
) -> tuple[Any, Any]:
    """Return U-Net and ControlNet of a family with random weights."""
    from diffusers import ControlNetModel, UNet2DConditionModel

    unet = UNet2DConditionModel.from_pretrained(step.folder / family, subfolder="unet")
    control = ControlNetModel.from_pretrained(step.folder / f"{family}_controlnet")
    layout = torch.channels_last if channels_last else torch.contiguous_format
    for network in (unet, control):
        network.requires_grad_(False).eval().to(step.device, dtype).to(memory_format=layout)
    return unet, control


def denoiser(step: Step, family: str, dtype: torch.dtype, *, channels_last: bool) -> Denoiser:
    """Return our evaluation of a family, with the texts of one image."""
    unet, control = load(step, family, dtype, channels_last=channels_last)
    made = Denoiser(unet, [Control(control, 1.0)], torch.arange(900, 0, -45))
    states = torch.randn(2, 77, unet.config.cross_attention_dim, device=step.device, dtype=dtype)
    with torch.no_grad():
        made.prime(Conditioning(states), (1024, 1024))
    return made


def our_call(step: Step, made: Denoiser, batch: int) -> Callable[[], object]:
    """Return a call that evaluates `batch` tiles with guidance; embeddings are cached."""
    side, px = step.size((64, 512), (8, 64))
    tiles = torch.randn(batch, 4, side, side, device=step.device)
    with torch.no_grad():
        embedding = made.embed(0, torch.zeros(1, 20, px, px, device=step.device))
    rows = torch.tensor([0] * batch + [1] * batch, device=step.device)
    embeddings = [embedding.repeat(batch, 1, 1, 1)]
    return torch.no_grad()(lambda: made(tiles, 3, embeddings, rows))


def stock_call(
    step: Step, unet: Any, control: Any, batch: int, *, channels_last: bool = False
) -> Callable[[], object]:
    """Return a call that evaluates `batch` tiles with guidance as diffusers' pipelines do.

    `channels_last`: memory format of the inputs; that of the networks is their own.
    """
    side, px = step.size((64, 512), (8, 64))
    options = {"device": step.device, "dtype": unet.dtype}
    layout = torch.channels_last if channels_last else torch.contiguous_format
    tiles = torch.randn(2 * batch, 4, side, side, **options).to(memory_format=layout)
    condition = torch.zeros(2 * batch, 20, px, px, **options).to(memory_format=layout)
    states = torch.randn(2 * batch, 77, unet.config.cross_attention_dim, **options)

    def call() -> torch.Tensor:
        down, middle = control(tiles, 500, states, condition, return_dict=False)
        return unet(
            tiles, 500, states, down_block_additional_residuals=down,
            mid_block_additional_residual=middle, return_dict=False,
        )[0]  # fmt: skip

    return torch.no_grad()(call)


def tiles(step: Step, family: str) -> None:
    """Compare our evaluation with the stock one: eager, then compiled, then as pipelines run it."""
    batch, name = step.size(BATCH, 2), TITLES[family]
    goal, ceiling = GOALS[family]
    stock = load(step, family, torch.bfloat16, channels_last=True)
    made = denoiser(step, family, torch.bfloat16, channels_last=True)
    calls = {
        "diffusers eager, channels-last": stock_call(step, *stock, batch, channels_last=True),
        "ours eager": our_call(step, made, batch),
    }
    found = in_turn(step, calls)
    step.details["eager"] = found
    for kind, times in found.items():
        goals = (goal, ceiling) if kind.startswith("ours") else ()
        step.add(f"tile, {name}, {kind}, batch {batch}", per(times, batch), "ms", *goals)
    step.add(f"tile loop, {name}, both eager and channels-last: diffusers / ours",
             speed_up(found, "diffusers eager, channels-last", "ours eager"))  # fmt: skip
    plain = load(step, family, torch.bfloat16)
    calls |= {
        PLAIN: stock_call(step, *plain, batch),
        ONE_EACH: stock_call(step, *plain, 1),
    }
    compiled_tiles(step, family, calls, stock)


def compiled_tiles(
    step: Step, family: str, calls: dict[str, Callable[[], object]], stock: tuple[Any, Any]
) -> None:
    """Compile ours and the stock networks; compare them with each other and the eager calls."""
    batch, name = step.size(BATCH, 2), TITLES[family]
    compiled = denoiser(step, family, torch.bfloat16, channels_last=True)
    if not step.toy:
        compiled.compile()
        unet, control = (torch.compile(network, dynamic=False) for network in stock)
        stock = unet, control
    new = {
        "ours compiled": our_call(step, compiled, batch),
        "diffusers compiled, channels-last": stock_call(step, *stock, batch, channels_last=True),
    }
    for kind, call in new.items():
        step.add(f"compilation, {name}, {kind}", milliseconds(call, step.device) / 1000, "s")
    found = in_turn(step, calls | new)
    step.details["compiled"] = found
    for kind in (*new, PLAIN, ONE_EACH):
        count = 1 if kind == ONE_EACH else batch
        goals = GOALS[family] if kind.startswith("ours") else ()
        step.add(f"tile, {name}, {kind}, batch {count}", per(found[kind], count), "ms", *goals)
    step.add(f"tile loop, {name}, both compiled and channels-last: diffusers / ours",
             speed_up(found, "diffusers compiled, channels-last", "ours compiled"),
             "", ">= 1.1")  # fmt: skip
    step.add(f"tile loop, {name}: {PLAIN} / ours compiled, channels-last",
             speed_up(found, PLAIN, "ours compiled"), "", ">= 1.3", "2.2")  # fmt: skip
    step.add(f"tile loop, {name}: {ONE_EACH} / ours compiled, channels-last",
             speed_up(found, ONE_EACH, "ours compiled", batch), "", ">= 2.5", "5")  # fmt: skip


def batches(step: Step) -> None:
    """Measure batch sizes, memory formats and the peak memory of Stable Diffusion 1.5."""
    for channels_last in (False, True):
        made = denoiser(step, "sd15", torch.bfloat16, channels_last=channels_last)
        layout = "channels-last" if channels_last else "contiguous"
        for batch in step.size((1, 2, 8, 16, 32, LARGEST), (1, 2)):
            found = in_turn(step, {"ours": our_call(step, made, batch)}, warm_up=1)["ours"]
            step.add(f"tile, eager, {layout}, batch {batch}", per(found, batch), "ms")
        largest = step.size(LARGEST, 2)
        peak = peak_gib(our_call(step, made, largest), step.device)
        if peak is not None:
            step.add(f"peak memory, {layout}, tile batch {largest}", peak, "GiB", "<= 12", "7.4")
        del made
        gc.collect()  # it refers to itself, and its weights would count for the next one


def attention(step: Step) -> None:
    """Measure PyTorch's attention kernels for the head sizes of both families."""
    batch = step.size(2 * BATCH, 2)
    shapes = [(8, 40, 64), (8, 80, 32), (8, 160, 16), (5, 64, 64), (10, 64, 32), (20, 64, 16)]
    backends = {"flash": SDPBackend.FLASH_ATTENTION, "cudnn": SDPBackend.CUDNN_ATTENTION,
                "efficient": SDPBackend.EFFICIENT_ATTENTION, "math": SDPBackend.MATH}  # fmt: skip
    for heads, width, side in shapes:
        length = step.size(side * side, side)
        parts = torch.randn(
            3, batch, heads, length, width, device=step.device, dtype=torch.bfloat16
        ).unbind()
        for name, backend in backends.items():
            if name == "math" and length > 1024:
                continue  # its scores alone would take tens of GiB
            title = f"self-attention, {heads} heads of {width}, length {length}, {name}"
            action = partial(_attend, step, title, backend, parts)
            step.attempt(title, action, note="unsupported")


def _attend(step: Step, title: str, backend: SDPBackend, parts: Any) -> None:
    with sdpa_kernel(backend), torch.no_grad():
        found = in_turn(step, {"ours": lambda: F.scaled_dot_product_attention(*parts)})
    step.add(title, per(found["ours"], 1), "ms")
