"""Settings that all fine-tuning programs share; torch-free, so that `--help` is fast."""

import math
from dataclasses import dataclass
from typing import Literal

OF_THE_BASE = ("crop", "caption_template", "class_separator")  # a base model may bring these


@dataclass(frozen=True)
class Training:
    """How long and how fast to train. One step is one optimizer update."""

    steps: int = 30_000
    """optimizer updates in all"""
    batch_size: int = 1
    """samples per process and micro-batch"""
    accumulation: int = 1
    """micro-batches per update"""
    learning_rate: float = 1e-5
    """AdamW's peak learning rate"""
    warmup_steps: int = 0
    """updates over which the learning rate rises linearly from zero"""
    schedule: Literal["constant", "cosine"] = "constant"
    """what follows the warm-up: constant, or cosine decay to zero at the last step"""
    weight_decay: float = 0.01
    """AdamW's decoupled weight decay"""
    optimizer: Literal["adamw", "adamw_8bit"] = "adamw"
    """adamw (fused on CUDA), or adamw_8bit: a quarter of its memory, needs bitsandbytes and CUDA"""
    clip_norm: float = 1.0
    """largest gradient norm"""
    ema_decay: float = 0.0
    """decay of the averaged weights that are saved in the end; 0 saves the plain weights"""
    ema_sigma_rel: tuple[float, ...] = ()
    """relative widths of power-function averages, in place of ema_decay; of two, such as 0.05 0.1,
    any other width can be put together after the training"""
    precision: Literal["no", "fp16", "bf16"] = "no"
    """mixed precision of accelerate"""
    checkpoint_interval: int = 1000
    """updates between two resumable checkpoints"""
    log_interval: int = 10
    """updates between two log lines; losses are averaged over them"""
    workers: int = 0
    """loader processes per training process; 0 loads in the training process"""


def learning_rate(settings: Training, step: int) -> float:
    """Return the learning rate of update `step` (from 0), a pure function of the step."""
    if step < settings.warmup_steps:
        return settings.learning_rate * (step + 1) / settings.warmup_steps
    if settings.schedule == "constant":
        return settings.learning_rate
    progress = (step - settings.warmup_steps) / max(1, settings.steps - settings.warmup_steps)
    return settings.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))
