"""A head for diffusion models as one-step regressors: label maps are images of the autoencoder.

As in StableMTL (CVPR 2026) the U-Net maps the latent of an image to the latent of its label map in
colours, in one step and without noise; the loss is taken between latents. A decoded pixel belongs
to the class of the nearest colour. The backbone has the U-Net's output, the tap `conv_out`, as its
only feature; nothing is learned outside the U-Net. Colours, time step and the treatment of void are
ours.
"""

from typing import Any

import torch
from mmseg.models.decode_heads.decode_head import BaseDecodeHead
from torch import nn
from torch.nn import functional

from pipeline.latents import decode_latents, encode_latents


def class_colors(num_classes: int) -> torch.Tensor:
    """Return one colour in [-1, 1] per class, Kx3: points of a regular lattice, far apart."""
    side = next(n for n in range(2, 100) if n**3 > num_classes)
    values = torch.linspace(-1, 1, side)
    lattice = torch.cartesian_prod(values, values, values)
    return lattice[1 : num_classes + 1]  # the first, black, is that of void


class LatentRegressionHead(BaseDecodeHead):
    """Decodes predicted latents BxCxhxw to logits BxKxHxW at the size of the image.

    `temperature` divides the squared distances of colours; `loss_weight` multiplies the mean
    squared error of the latents, where a cell with a void pixel counts as one without error.
    """

    def __init__(
        self, *, temperature: float = 0.1, loss_weight: float = 1.0, **options: Any
    ) -> None:
        super().__init__(dropout_ratio=0, **options)
        self.conv_seg = nn.Identity()  # this head has no weights
        self.temperature, self.loss_weight = temperature, loss_weight
        self.register_buffer("colors", class_colors(self.num_classes), persistent=False)
        self._autoencoder: tuple[Any, ...] = ()  # a tuple: not registered as a submodule

    def use_autoencoder(self, vae: Any) -> None:
        """Take the frozen autoencoder of the base model; the segmentor calls this once."""
        self._autoencoder = (vae,)

    def forward(self, inputs: tuple[torch.Tensor, ...]) -> torch.Tensor:
        """Return the logits: minus the squared distance to the colour of each class."""
        image = decode_latents(self._autoencoder[0], self._transform_inputs(inputs))
        # the square of the pixel itself is the same for all classes
        products = torch.einsum("bchw,kc->bkhw", image, self.colors)
        squares = self.colors.square().sum(1)[:, None, None]
        return (2 * products - squares) / self.temperature

    def loss(
        self, inputs: tuple[torch.Tensor, ...], batch_data_samples: list[Any], train_cfg: Any
    ) -> dict[str, torch.Tensor]:
        """Return the mean squared error between predicted latents and those of the labels."""
        latents = self._transform_inputs(inputs)
        labels = self._stack_batch_gt(batch_data_samples)
        with torch.no_grad():
            wanted = encode_latents(self._autoencoder[0], self.paint(labels[:, 0]))
        void = (labels == self.ignore_index).float()
        valid = 1 - functional.adaptive_max_pool2d(void, latents.shape[-2:])
        errors = (latents - wanted).square().mean(1, keepdim=True)
        return {"loss_latent": self.loss_weight * (errors * valid).mean()}

    def paint(self, labels: torch.Tensor) -> torch.Tensor:
        """Return labels BxHxW as images Bx3xHxW in [-1, 1]; void is black."""
        table = torch.cat([self.colors, -torch.ones_like(self.colors[:1])])
        void = torch.full_like(labels, self.num_classes)
        ids = torch.where(labels == self.ignore_index, void, labels).long()
        return table[ids].movedim(-1, 1)
