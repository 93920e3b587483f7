"""Settings that the fine-tuning programs share; each dataclass checks the ranges of its fields.

Nothing here imports torch, so `--help` is fast. Ranges are checked when a dataclass is built, so no
setting out of range reaches a training. What two settings demand of each other is checked by
`check`, once file and flags are read: a preset may leave one of the two to the command line.
"""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

from pipeline.errors import UserError
from pipeline.setting_checks import require_between, require_positive

SET_BY_BASE = ("crop", "caption")  # a base model may bring these
LARGEST_COUNT = 10**9  # far beyond what trains: a typing error ends here and not in memory
LARGEST_CROP_PX, LARGEST_SCALE = 8192, 32
WIDEST_AVERAGE = 0.28  # the limit of power functions, Karras et al., CVPR 2024, figure 5


@dataclass(frozen=True)
class Training:
    """How long and how fast to train. One step is one optimizer update."""

    RENAMED: ClassVar[dict[str, str]] = {"accumulation": "gradient_accumulation"}

    steps: int = 30_000
    """optimizer updates in all"""
    batch_size: int = 1
    """samples per process and micro-batch"""
    gradient_accumulation: int = 1
    """micro-batches per update"""
    learning_rate: float = 1e-5
    """peak learning rate of AdamW"""
    warmup_steps: int = 0
    """updates over which the learning rate rises linearly from zero"""
    schedule: Literal["constant", "cosine"] = "constant"
    """learning rate after the warm-up: constant, or cosine decay to zero at the last step"""
    weight_decay: float = 0.01
    """decoupled weight decay of AdamW"""
    optimizer: Literal["adamw", "adamw_8bit"] = "adamw"
    """adamw (fused on CUDA), or adamw_8bit: a quarter of its memory, needs bitsandbytes and CUDA"""
    clip_norm: float = 1.0
    """largest gradient norm; larger gradients are scaled down to it"""
    ema_decay: float = 0.0
    """decay of the exponential moving average of the weights, which is saved in the end; 0 keeps no
    average and saves the trained weights"""
    ema_sigma_rel: tuple[float, ...] = ()
    """relative widths of power-function averages, in place of ema_decay; from two, such as 0.05
    0.1, an average of any other width can be computed after the training"""
    precision: Literal["fp32", "fp16", "bf16"] = "fp32"
    """precision of forward and backward passes (autocast); the weights stay fp32"""
    checkpoint_interval: int = 1000
    """updates between two resumable checkpoints"""
    log_interval: int = 10
    """updates between two log lines; the logged loss is the mean over them"""
    workers: int = 0
    """loader processes per training process; 0 loads in the training process"""

    def __post_init__(self) -> None:
        group = "training."
        counts = ("steps", "checkpoint_interval", "log_interval")
        sizes = ("batch_size", "gradient_accumulation")
        require_positive(self, *counts, *sizes, "clip_norm", prefix=group)
        require_between(
            self, 0, math.inf, "learning_rate", "warmup_steps", "weight_decay", "ema_decay",
            "workers", prefix=group,
        )  # fmt: skip
        require_between(self, 0, LARGEST_COUNT, *counts, "warmup_steps", prefix=group)
        require_between(self, 0, 2**16, *sizes, prefix=group)
        require_between(self, 0, 1024, "workers", prefix=group)
        for width in self.ema_sigma_rel:
            if not 0 < width <= WIDEST_AVERAGE:
                raise UserError(
                    f"--training.ema-sigma-rel {width:g}: must be above 0 and at most "
                    f"{WIDEST_AVERAGE}"
                )
        if self.ema_decay >= 1:
            raise UserError(f"--training.ema-decay {self.ema_decay:g}: must be below 1")


@dataclass(frozen=True)
class Crop:
    """How training crops are cut out of images of any size."""

    size_px: tuple[int, int] = (512, 512)
    """height and width of a crop"""
    scales: tuple[float, ...] = (0.5, 0.75, 1.0, 1.25, 1.5, 2.0)
    """factors by which an image is rescaled before the crop; one is sampled uniformly"""
    flip: bool = False
    """mirror half of the crops"""

    def __post_init__(self) -> None:
        require_numbers("--crop.size-px", self.size_px, LARGEST_CROP_PX)
        require_numbers("--crop.scales", self.scales, LARGEST_SCALE)


@dataclass(frozen=True)
class HeadSettings:
    """A segmentation head on features of the U-Net, for the in-sampling correction."""

    enabled: bool = False
    """train the head beside the ControlNet, whose weights do not change by it"""
    only: bool = False
    """train the head alone, on the finished ControlNet of --init"""
    hidden_channels: int = 32
    """channels of the head"""
    learning_rate: float = 1e-3
    """peak learning rate of the head; warm-up and schedule are those of the training"""
    class_balance: float = 0.5
    """weight of a class in the cross entropy of a crop: n^-class_balance for n pixels; 0 counts
    pixels, 1 counts classes"""

    def __post_init__(self) -> None:
        group = "segmentation-head."
        require_between(self, 1, 4096, "hidden_channels", prefix=group)
        require_between(self, 0, math.inf, "learning_rate", prefix=group)
        require_between(self, 0, 1, "class_balance", prefix=group)


@dataclass(frozen=True)
class RunSettings:
    """Settings of every fine-tuning program."""

    data: tuple[str, ...] = ()
    """dataset folders; samples are taken uniformly from their union"""
    output: Path | None = None
    """run folder that is written"""
    seed: int = 0
    """seed of all random numbers"""
    crop: Crop = field(default_factory=Crop)
    training: Training = field(default_factory=Training)


@dataclass(frozen=True)
class BaseModelSettings(RunSettings):
    """Settings of the programs that train one network for an existing base model."""

    base: str = "pocket"
    """base model: pocket, a diffusers folder, or owner/name@<commit>"""
    min_snr_gamma: float = 0.0
    """gamma of the min-SNR loss weights, 5 is usual; 0 weights all timesteps equally"""
    gradient_checkpointing: bool = False
    """recompute activations in the backward pass: less memory, more time"""
    cached_crops: int = 0
    """crops sampled and encoded once before the training; 0 samples and encodes during it"""
    cache_on_device: bool = False
    """keep the cached crops in the memory of the device and sample the batches there"""
    previews: int = 4
    """preview images generated at each checkpoint; 0 generates none"""

    def __post_init__(self) -> None:
        require_between(self, 0, math.inf, "min_snr_gamma", "cached_crops", "previews")
        require_between(self, 0, LARGEST_COUNT, "cached_crops")
        require_between(self, 0, 1024, "previews")

    def check(self) -> None:
        """Raise `UserError` for settings that do not fit each other."""
        if self.cache_on_device and not self.cached_crops:
            raise UserError("--cache-on-device: there is no cache; give --cached-crops N as well")


def require_numbers(
    setting: str, values: tuple[float, ...], largest: float, most: int = 1000
) -> None:
    """Raise `UserError` unless there are 1 to `most` values, each above 0 and up to `largest`."""
    given = " ".join(f"{value:.12g}" for value in values[:8]) or "(none)"
    if not values or not all(value > 0 for value in values):
        raise UserError(f"{setting} {given}: must be numbers above 0")
    if len(values) > most or max(values) > largest:
        raise UserError(f"{setting} {given}: must be at most {most} numbers up to {largest}")


def learning_rate(settings: Training, step: int, peak: float | None = None) -> float:
    """Return the learning rate of update `step` (from 0), a pure function of the step.

    `peak` is the one after the warm-up, None for that of the settings.
    """
    peak = settings.learning_rate if peak is None else peak
    if step < settings.warmup_steps:
        return peak * (step + 1) / settings.warmup_steps
    if settings.schedule == "constant":
        return peak
    progress = (step - settings.warmup_steps) / max(1, settings.steps - settings.warmup_steps)
    return peak * 0.5 * (1 + math.cos(math.pi * progress))
