"""The U-Net, or an adapter in it, trained on images with one prompt: U_P becomes U_S."""

from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel

from finetune.data import Batches
from finetune.diffusion import Batch, FrozenBase, predict
from finetune.loop import Loss, Task
from finetune.previews import Previews
from pipeline.lora import add_adapter, save_and_merge
from pipeline.models import load_component


def load_unet(
    base: str, *, lora_rank: int, gradient_checkpointing: bool, seed: int
) -> UNet2DConditionModel:
    """Load the U-Net of a base model; with a rank above 0, only adapters in it are trained."""
    unet = load_component(base, "unet").train()
    if lora_rank:
        torch.manual_seed(seed)
        add_adapter(unet, lora_rank)
    if gradient_checkpointing:
        unet.enable_gradient_checkpointing()
    return unet


class UNetTask(Task):
    """Trains the U-Net of a base model, or with `lora` the adapters in it."""

    def __init__(
        self,
        frozen: FrozenBase,
        unet: UNet2DConditionModel,
        batches: Batches,
        *,
        lora: bool,
        previews: Previews | None,
    ) -> None:
        self.frozen, self.model, self.batches = frozen, unet, batches
        self.lora, self.previews = lora, previews

    def loss(
        self, model: torch.nn.Module, batch: Batch, generator: torch.Generator, *, step: int
    ) -> Loss:
        """Return the denoising loss."""
        noisy = self.frozen.add_noise(batch, generator)
        prediction = predict(model, noisy.latents, noisy.timesteps, noisy.text)
        return Loss(self.frozen.loss(prediction, noisy))

    def preview(self, weights: torch.nn.Module, step: int) -> dict[str, float]:
        """Write a sheet: crop, generated image."""
        if self.previews:
            self.previews.write(step, [self.previews.crops(), self.previews.generate(weights)])
        return {}

    def save(self, weights: Any, folder: Path) -> None:
        """Write folder/unet, and the adapters alone to folder/lora."""
        if self.lora:
            save_and_merge(weights, folder / "lora")
        weights.save_pretrained(folder / "unet")
