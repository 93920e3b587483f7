"""The context-aware fusion head of DAFormer (Hoyer et al., CVPR 2022, section 3.2)."""

from typing import Any

import torch
from mmcv.cnn import ConvModule
from mmseg.models.decode_heads.decode_head import BaseDecodeHead
from mmseg.models.decode_heads.sep_aspp_head import DepthwiseSeparableASPPModule
from mmseg.models.utils import resize


class DAFormerHead(BaseDecodeHead):
    """Embeds each level, stacks them at the finest and fuses them by a separable ASPP."""

    def __init__(
        self, *, embed_dims: int = 256, dilations: tuple[int, ...] = (1, 6, 12, 18), **options: Any
    ) -> None:
        super().__init__(input_transform="multiple_select", **options)
        self.embed = torch.nn.ModuleList(
            torch.nn.Conv2d(c, embed_dims, 1) for c in self.in_channels
        )
        shared = {"norm_cfg": self.norm_cfg, "act_cfg": self.act_cfg}
        self.context = DepthwiseSeparableASPPModule(
            dilations=dilations,
            in_channels=embed_dims * len(self.in_channels),
            channels=self.channels,
            conv_cfg=None,
            **shared,
        )
        self.fuse = ConvModule(
            len(dilations) * self.channels, self.channels, 3, padding=1, **shared
        )

    def forward(self, inputs: Any) -> torch.Tensor:
        """Return logits BxKxhxw at the size of the finest level."""
        maps = self._transform_inputs(inputs)
        size = maps[0].shape[2:]
        embedded = [
            resize(embed(level), size=size, mode="bilinear", align_corners=self.align_corners)
            for embed, level in zip(self.embed, maps, strict=True)
        ]
        hidden = torch.cat(self.context(torch.cat(embedded, dim=1)), dim=1)
        return self.cls_seg(self.fuse(hidden))
