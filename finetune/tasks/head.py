"""A segmentation head on features of the frozen U-Net under a ControlNet.

The features are detached: the head is trained on them and changes nothing else. It sees the noise
levels of the training, which are all that a sampler passes. With Style Swap it is trained on
features of U_S, and generation reads those of U_P with it.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import ControlNetModel, UNet2DConditionModel

from finetune.data import Batches
from finetune.diffusion import Batch, FrozenBase, predict
from finetune.loop import Loss, Task
from finetune.strategies import ParameterGroup
from pipeline import labels
from pipeline.head_files import FOLDER
from pipeline.segmentation_head import (
    SegmentationHead,
    label_accuracy,
    label_cross_entropy,
    label_shares,
)


def new_head(unet: UNet2DConditionModel, hidden_channels: int, seed: int) -> SegmentationHead:
    """Return a head with random weights of `seed`; the global generator stays as it is."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return SegmentationHead.from_unet(unet, hidden_channels)


class HeadTraining:
    """The training of a head on what the last forward pass of `unet` computed.

    `learning_rate` is the peak of the head's own; `class_balance` see `label_cross_entropy`.
    """

    def __init__(
        self,
        network: SegmentationHead,
        unet: UNet2DConditionModel,
        learning_rate: float,
        class_balance: float,
    ) -> None:
        self.network, self.unet = network, unet
        self.learning_rate, self.class_balance = learning_rate, class_balance
        self._features: dict[str, torch.Tensor] = {}
        for tap in network.config.taps:
            unet.get_submodule(tap).register_forward_hook(self._hook(tap))

    def _hook(self, tap: str) -> Any:
        def keep(module: torch.nn.Module, inputs: Any, output: torch.Tensor) -> None:
            # On CPUs, PyTorch's group norm crashes backwards on a channels-last input that needs no
            # gradient
            self._features[tap] = output.detach().contiguous()

        return keep

    def group(self, network: torch.nn.Module) -> ParameterGroup:
        """Return the parameters of the head, or of its sharded form."""
        return ParameterGroup(list(network.parameters()), self.learning_rate)

    def loss(
        self, model: torch.nn.Module, control: torch.Tensor, size: Sequence[int]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return cross entropy and accuracy for the control Bx20xHxW at latent size (h, w).

        `model` is the wrapped form of the head, or of a `ControlNetWithHead`.
        """
        features = list(self._features.values())
        self._features.clear()
        shares = label_shares(control, size)
        logits = model(features=features, size=size)
        loss = label_cross_entropy(logits, shares, self.class_balance).mean()
        return loss, label_accuracy(logits.detach(), shares)

    def save(self, network: Any, folder: Path, *, half: bool) -> None:
        """Write folder/segmentation_head, as float16 if `half`."""
        (network.half() if half else network).save_pretrained(folder / FOLDER)


class ControlNetWithHead(torch.nn.Module):
    """A ControlNet and a head that are trained together: one module to wrap, average and store."""

    def __init__(self, controlnet: ControlNetModel, head: SegmentationHead) -> None:
        super().__init__()
        self.controlnet, self.head = controlnet, head

    def forward(self, *inputs: Any, features: Any = None, size: Any = None, **options: Any) -> Any:
        """Return the logits of the head for features, or else the residuals of the ControlNet."""
        if features is not None:
            return self.head(features, size)
        return self.controlnet(*inputs, **options)


class SegmentationHeadTask(Task):
    """Trains a head alone, on a finished ControlNet."""

    def __init__(
        self,
        frozen: FrozenBase,
        controlnet: ControlNetModel,
        head: HeadTraining,
        batches: Batches,
        save_fp16: bool,
    ) -> None:
        self.frozen, self.controlnet, self.head = frozen, controlnet, head
        self.model, self.batches, self.save_fp16 = head.network, batches, save_fp16

    def parameter_groups(self, model: torch.nn.Module) -> list[ParameterGroup]:
        """Return all parameters, with the learning rate of the head."""
        return [self.head.group(model)]

    def loss(
        self, model: torch.nn.Module, batch: Batch, generator: torch.Generator, *, step: int
    ) -> Loss:
        """Return the cross entropy of the label maps of the batch."""
        maps = batch[1]
        assert maps is not None
        noisy = self.frozen.add_noise(batch, generator)
        control = labels.one_hot_control(maps.to(self.frozen.device, non_blocking=True))
        with torch.no_grad():
            predict(
                self.head.unet,
                noisy.latents,
                noisy.timesteps,
                noisy.text,
                self.controlnet,
                control,
            )
        loss, accuracy = self.head.loss(model, control, noisy.latents.shape[-2:])
        return Loss(loss, {"head_accuracy": accuracy})

    def save(self, weights: Any, folder: Path) -> None:
        """Write folder/segmentation_head."""
        self.head.save(weights, folder, half=self.save_fp16)
