"""The semantic ControlNet, trained on the frozen U_S with label maps as its control."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, ControlNetModel, UNet2DConditionModel

from finetune.data import Batches
from finetune.diffusion import Batch, FrozenBase, predict
from finetune.loop import Loss, Task
from finetune.previews import Previews
from finetune.strategies import ParameterGroup
from finetune.tasks.head import ControlNetWithHead, HeadTraining
from pipeline import labels
from pipeline.models import load_network
from pipeline.segmentation_head import area_weights, label_shares


def load_frozen_unet(base: str, folder: Path | None) -> UNet2DConditionModel:
    """Load the U-Net of `folder`, or else of `base`, without gradients."""
    return load_network("unet", base, folder).requires_grad_(False)


def load_controlnet(
    base: str, init: Path | None, unet: UNet2DConditionModel, vae: AutoencoderKL, seed: int
) -> ControlNetModel:
    """Load the ControlNet of `init`, or else copy the encoder of `unet` into a new one."""
    if init:
        return load_network("controlnet", base, init).train().requires_grad_(True)
    torch.manual_seed(seed)
    levels = len(vae.config.block_out_channels)  # shrinks the label as the VAE does
    controlnet = ControlNetModel.from_unet(
        unet,
        conditioning_channels=labels.CONTROL_CHANNELS,
        conditioning_embedding_out_channels=(16, 32, 96, 256)[:levels],
    )
    return controlnet.train().requires_grad_(True)


class ControlNetTask(Task):
    """Trains a ControlNet, and a head beside it; the frozen `unet` passes the former's gradients.

    `init_weight` (0..1) is the share of the initial weights in those written; `save_fp16` writes
    float16. `class_balance` (0..1) is that of `area_weights`. With Style Swap, `load_base_unet`
    loads the U-Net to preview with for the moment.
    """

    def __init__(
        self,
        frozen: FrozenBase,
        unet: UNet2DConditionModel,
        controlnet: ControlNetModel,
        batches: Batches,
        *,
        init_weight: float,
        class_balance: float = 0.0,
        save_fp16: bool,
        previews: Previews | None,
        load_base_unet: Callable[[], UNet2DConditionModel] | None,
        head: HeadTraining | None = None,
    ) -> None:
        self.frozen, self.unet, self.batches, self.head = frozen, unet, batches, head
        self.model: torch.nn.Module = controlnet
        if head:
            self.model = ControlNetWithHead(controlnet, head.network)
        self.class_balance, self.init_weight = class_balance, init_weight
        self.save_fp16 = save_fp16
        self.previews, self.load_base_unet = previews, load_base_unet
        self.initial = copy.deepcopy(controlnet.state_dict()) if init_weight else {}

    def parameter_groups(self, model: Any) -> list[ParameterGroup]:
        """Return the parameters of the ControlNet, and apart from them those of the head."""
        if not self.head:
            return super().parameter_groups(model)
        return [
            ParameterGroup(list(model.controlnet.parameters())),
            self.head.group(model.head),
        ]

    def loss(
        self, model: torch.nn.Module, batch: Batch, generator: torch.Generator, *, step: int
    ) -> Loss:
        """Return the denoising loss, with the label maps of the batch as the control."""
        maps = batch[1]
        assert maps is not None
        noisy = self.frozen.add_noise(batch, generator)
        control = labels.one_hot_control(maps.to(self.frozen.device, non_blocking=True))
        prediction = predict(self.unet, noisy.latents, noisy.timesteps, noisy.text, model, control)
        area = None
        if self.class_balance:
            shares = label_shares(control, noisy.latents.shape[-2:])
            area = area_weights(shares, self.class_balance)
        value = self.frozen.loss(prediction, noisy, area)
        if not self.head:
            return Loss(value)
        beside, accuracy = self.head.loss(model, control, noisy.latents.shape[-2:])
        return Loss(value, {"head_loss": beside, "head_accuracy": accuracy}, beside)

    def preview(self, weights: Any, step: int) -> dict[str, float]:
        """Write a sheet: label, image from U_S, and with Style Swap image from the base's U-Net."""
        previews = self.previews
        if not previews:
            return {}
        weights = self._controlnet_of(weights)
        columns = [previews.colorized_labels(), previews.generate(self.unet, weights)]
        if self.load_base_unet:
            columns.append(previews.generate(self.load_base_unet(), weights))
        previews.write(step, columns)
        return {"controllability": previews.controllability(self.unet, weights)}

    def save(self, weights: Any, folder: Path) -> None:
        """Write folder/controlnet, the mean of initial and trained weights by `init_weight`.

        A head goes to folder/segmentation_head.
        """
        if self.head:
            self.head.save(weights.head, folder, half=self.save_fp16)
        weights = self._controlnet_of(weights)
        for name, tensor in weights.state_dict().items() if self.initial else ():
            tensor.lerp_(self.initial[name].to(tensor), self.init_weight)
        if self.save_fp16:
            weights.half()
        weights.save_pretrained(folder / "controlnet")

    def _controlnet_of(self, weights: Any) -> Any:
        """Return the ControlNet of the trained or averaged weights."""
        return weights.controlnet if self.head else weights
