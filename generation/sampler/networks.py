"""The networks of a run: found, loaded, put on their device."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from generation.inputs import find_correction_head
from generation.sampler.attention import native_attention
from generation.sampler.denoiser import Control, Denoiser
from generation.sampler.structure_control import Detector
from generation.settings import SCHEDULERS, Config
from generation.sizes import check_vae_tiles
from pipeline import models, ranks
from pipeline.errors import UserError
from pipeline.prompt_encoder import PromptEncoder
from pipeline.segmentation_head import SegmentationHead
from pipeline.size_grid import SizeGrid, size_grid_of

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass
class Networks:
    """The frozen networks on their device, and the scheduler of the run."""

    scheduler: Any
    """Prototype with its timesteps set; every canvas works on a copy."""
    denoiser: Denoiser
    vae: Any
    text: PromptEncoder
    detector: Detector | None
    """Detects the condition of the second ControlNet."""
    head: SegmentationHead | None
    """Predicts the label map, for the in-sampling correction."""
    device: torch.device
    grid: SizeGrid

    def set_scheduler(self, config: Config) -> None:
        """Change to the scheduler and the steps of `config`."""
        base = models.find_base(config.base)
        self.scheduler = build_scheduler(base, config.scheduler, config.steps)
        self.denoiser.set_timesteps(self.scheduler.timesteps)
        self.denoiser.guess_mode_step = config.guess_mode_step


def pick_device(cpu_threads: int) -> torch.device:
    """Return the device of this process: the accelerator of its local rank, or the CPU.

    On a CPU, `cpu_threads` become the threads of this process. No process group is made: processes
    that need not meet cannot wait for each other.
    """
    device = torch.accelerator.current_accelerator(check_available=True)
    if device is None:
        torch.set_num_threads(cpu_threads)
        return torch.device("cpu")
    rank, count = ranks.local_rank(), torch.accelerator.device_count()
    if rank >= count:
        raise UserError(
            f"LOCAL_RANK={rank} but {count} {device.type} device(s) are visible; start one process "
            "per device"
        )
    torch.accelerator.set_device_index(rank)
    return torch.device(device.type, rank)


def find_attention(
    name: str, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> Callable[..., torch.Tensor]:
    """Return the attention function of a setting, of BxLxHxD queries, keys and values.

    That of xformers is tried once: it has no kernels for some devices and precisions. It computes
    no gradients, as its backward pass is not deterministic.
    """
    if name == "native":
        return native_attention
    try:
        from xformers.ops import memory_efficient_attention
    except ImportError:
        raise UserError(
            "--attention xformers: xformers is not installed; pip install -e '.[xformers]' "
            "or use --attention native"
        ) from None
    query = torch.zeros((1, 16, 2, 64), device=device, dtype=dtype)
    try:
        memory_efficient_attention(query, query, query)
    except Exception as error:  # NotImplementedError, or whatever a build of it raises
        reason = " ".join(str(error).split())[:120]
        raise UserError(
            f"--attention xformers: has no kernel for {dtype} on {device} ({reason}); use "
            "--attention native, or another --precision"
        ) from None

    def attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        function = native_attention if query.requires_grad else memory_efficient_attention
        return function(query, key, value)

    return attend


def load_networks(config: Config, device: torch.device) -> Networks:
    """Load all networks of a run onto `device`."""
    base, dtype = models.find_base(config.base), DTYPES[config.precision]
    attend = find_attention(config.attention, device, dtype)
    text = PromptEncoder(base, device, dtype)
    text.load()
    unet = models.load_network(
        "unet", base, models.find_folder(config.unet, "unet") if config.unet else None
    )
    controls = _load_controls(config, base)
    head = _load_head(config, base)
    vae = models.load_component(base, "vae")
    grid = size_grid_of(vae, unet)
    config.sizes.check_grid(grid)
    check_vae_tiles(config.vae_tile_px, grid)

    memory_format = torch.channels_last if config.channels_last else torch.contiguous_format
    for module in (unet, *(control.network for control in controls), *([head] if head else [])):
        copy_out_of_mmap(module)
        # That of torch: the one of diffusers warns of modules it would keep in float32
        torch.nn.Module.to(module, device, dtype, memory_format=memory_format)
        module.requires_grad_(False).eval()
    copy_out_of_mmap(vae)
    vae.to(device).requires_grad_(False).eval()
    if config.vae_tile_px:
        vae.enable_tiling()
        vae.tile_sample_min_size = config.vae_tile_px
        vae.tile_latent_min_size = config.vae_tile_px // grid.vae_scale_factor

    scheduler = build_scheduler(base, config.scheduler, config.steps)
    denoiser = Denoiser(
        unet, controls, scheduler.timesteps, attend, guess_mode_step=config.guess_mode_step
    )
    if config.compile:
        denoiser.compile()
    detector = Detector(config.second_control, device) if config.second_control.is_on else None
    return Networks(scheduler, denoiser, vae, text, detector, head, device, grid)


def _load_controls(config: Config, base: str) -> list[Control]:
    """Load the semantic ControlNet, and the second one if there is one."""
    second = config.second_control
    wanted = [(config.controlnet, config.controlnet_scale)]
    if second.is_on:
        wanted.append((second.controlnet, second.scale))
    return [
        Control(
            models.load_network("controlnet", base, models.find_folder(name, "controlnet")), scale
        )
        for name, scale in wanted
    ]


def _load_head(config: Config, base: str) -> SegmentationHead | None:
    """Load the segmentation head of the in-sampling correction, if that is on."""
    folder = find_correction_head(config)
    return models.load_network("segmentation_head", base, folder) if folder else None


def copy_out_of_mmap(module: torch.nn.Module) -> None:
    """Copy weights that are mapped from a file into memory of their own.

    In the file they start at any address, in each process at another one, and on a CPU the last
    bit of a matrix-vector product depends on that.
    """
    for parameter in module.parameters():
        parameter.data = parameter.data.clone()


def build_scheduler(base: str, name: str, num_steps: int) -> Any:
    """Build a scheduler of `SCHEDULERS` from the base model's own config, its timesteps set."""
    class_name, changes = SCHEDULERS[name]
    scheduler = models.load_scheduler(base, class_name, **changes)
    scheduler.set_timesteps(num_steps)
    return scheduler
