"""Segmentation heads for mmsegmentation: DAFormer's fusion head, DeepLabV2 and Mask2Former.

mmsegmentation has no DAFormer head, and its Mask2Former needs mmdetection and compiled operators;
transformers has pixel decoder, masked attention and matched losses in plain PyTorch.
"""

from collections.abc import Sequence
from typing import Any

import torch
from mmcv.cnn import ConvModule
from mmseg.models.decode_heads.decode_head import BaseDecodeHead
from mmseg.models.decode_heads.sep_aspp_head import DepthwiseSeparableASPPModule
from mmseg.models.utils import resize
from transformers import Mask2FormerConfig
from transformers.models.mask2former.modeling_mask2former import (
    Mask2FormerLoss,
    Mask2FormerPixelDecoder,
    Mask2FormerPreTrainedModel,
    Mask2FormerTransformerModule,
)

Predictions = tuple[Sequence[torch.Tensor], Sequence[torch.Tensor]]


class DAFormerHead(BaseDecodeHead):
    """The context-aware fusion head of DAFormer (Hoyer et al., CVPR 2022, section 3.2).

    Embeds each level, stacks them at the finest and fuses them by a separable ASPP.
    """

    def __init__(self, *, embed_dims: int = 256, dilations: tuple[int, ...] = (1, 6, 12, 18),
                 **options: Any) -> None:  # fmt: skip
        super().__init__(input_transform="multiple_select", **options)
        self.embed = torch.nn.ModuleList(
            torch.nn.Conv2d(c, embed_dims, 1) for c in self.in_channels
        )
        shared = {"norm_cfg": self.norm_cfg, "act_cfg": self.act_cfg}
        self.context = DepthwiseSeparableASPPModule(
            dilations=dilations, in_channels=embed_dims * len(self.in_channels),
            channels=self.channels, conv_cfg=None, **shared,
        )  # fmt: skip
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


class DeepLabV2Head(BaseDecodeHead):
    """DeepLabV2's head (Chen et al., TPAMI 2018): a sum of classifiers of several dilations.

    Published networks take two of its four dilations, (6, 12).
    """

    def __init__(self, *, dilations: tuple[int, ...] = (6, 12, 18, 24), **options: Any) -> None:
        super().__init__(channels=1, dropout_ratio=0, **options)
        self.conv_seg = None  # the base class's classifier
        self.classifiers = torch.nn.ModuleList(
            torch.nn.Conv2d(self.in_channels, self.num_classes, 3, padding=d, dilation=d)
            for d in dilations
        )

    def init_weights(self) -> None:
        """Draw small weights, as DeepLab does; there is no classifier of the base class."""
        for classifier in self.classifiers:
            torch.nn.init.normal_(classifier.weight, std=0.01)

    def forward(self, inputs: Any) -> torch.Tensor:
        """Return logits BxKxhxw at the size of the level that `in_index` names."""
        features = self._transform_inputs(inputs)
        return torch.stack([classify(features) for classify in self.classifiers]).sum(0)


class MaskLoss(Mask2FormerLoss):
    """Mask2Former's losses, divided by `num_masks`, the same number on all processes.

    transformers counts the masks by a collective in each decoder output, for which a process
    without labels would keep the others waiting, and divides by the number of processes twice.
    """

    num_masks: torch.Tensor

    def count_masks(self, count: int, device: torch.device) -> None:
        """Take the mean over processes of `count`, at least 1. All processes must call this."""
        total, processes = torch.tensor(float(count), device=device), 1
        if torch.distributed.is_initialized():
            torch.distributed.all_reduce(total)
            processes = torch.distributed.get_world_size()
        self.num_masks = (total / processes).clamp_min(1)

    def get_num_masks(self, class_labels: list[torch.Tensor], device: torch.device) -> torch.Tensor:
        """Return what `count_masks` found."""
        return self.num_masks


class MaskDecoder(Mask2FormerPreTrainedModel):
    """Pixel decoder, queries and class predictor: Mask2Former without its backbone."""

    def __init__(self, config: Mask2FormerConfig, channels: Sequence[int]) -> None:
        super().__init__(config)
        self.pixels = Mask2FormerPixelDecoder(config, feature_channels=list(channels))
        self.queries = Mask2FormerTransformerModule(config.feature_size, config)
        self.class_predictor = torch.nn.Linear(config.hidden_dim, config.num_labels + 1)
        self.post_init()

    def forward(self, maps: Sequence[torch.Tensor]) -> Predictions:
        """Return mask logits BxQxhxw and class logits BxQx(K+1) after each decoder layer."""
        decoded = self.pixels(list(maps), return_dict=True)
        output = self.queries(decoded.multi_scale_features, decoded.mask_features)
        classes = [
            self.class_predictor(state.transpose(0, 1))
            for state in output.intermediate_hidden_states
        ]
        return output.masks_queries_logits, classes


class Mask2FormerHead(BaseDecodeHead):
    """Mask2Former (Cheng et al., CVPR 2022), built from the transformers implementation.

    Predicts a class and a mask per query; a pixel takes the class with the largest sum over
    queries of class probability times mask probability.

    `strides`: of the maps in pixels, finest first, three or more; the last three go through
    deformable attention, finer ones are added as in an FPN. Further options are those of
    `Mask2FormerConfig`; `feature_size` must be a multiple of 32.
    """

    def __init__(
        self,
        *,
        strides: Sequence[int],
        feature_size: int = 256,
        num_classes: int,
        dim_feedforward: int = 2048,
        encoder_feedforward_dim: int = 1024,
        encoder_layers: int = 6,
        decoder_layers: int = 10,
        num_attention_heads: int = 8,
        num_queries: int = 100,
        train_num_points: int = 12544,
        **options: Any,
    ) -> None:
        super().__init__(
            input_transform="multiple_select",
            num_classes=num_classes,
            channels=feature_size,
            dropout_ratio=0,
            **options,
        )
        self.conv_seg = None  # the base class's classifier
        config = Mask2FormerConfig(
            feature_size=feature_size,
            mask_feature_size=feature_size,
            hidden_dim=feature_size,
            feature_strides=list(strides),
            common_stride=strides[0],
            num_labels=num_classes,
            dim_feedforward=dim_feedforward,
            encoder_feedforward_dim=encoder_feedforward_dim,
            encoder_layers=encoder_layers,
            decoder_layers=decoder_layers,
            num_attention_heads=num_attention_heads,
            num_queries=num_queries,
            train_num_points=train_num_points,
        )
        self.decoder = MaskDecoder(config, self.in_channels)
        self.weights = {
            "loss_cross_entropy": config.class_weight,
            "loss_mask": config.mask_weight,
            "loss_dice": config.dice_weight,
        }
        self.criterion = MaskLoss(config, self.weights)

    def init_weights(self) -> None:
        """Keep the initialisation of transformers; there is no classifier of the base class."""

    def forward(self, inputs: Any) -> torch.Tensor:
        """Return the logarithm of BxKxhxw scores, sums over queries of class times mask."""
        masks, classes = self.decoder(self._transform_inputs(inputs))
        shares = classes[-1].softmax(-1)[..., :-1]
        scores = torch.einsum("bqk,bqhw->bkhw", shares, masks[-1].sigmoid())
        return scores.clamp_min(1e-6).log()

    def loss(
        self, inputs: Any, batch_data_samples: list[Any], train_cfg: Any
    ) -> dict[str, torch.Tensor]:
        """Return the losses of matched queries after each layer, each kind summed."""
        masks, classes = self.decoder(self._transform_inputs(inputs))
        labels = self._stack_batch_gt(batch_data_samples)[:, 0]
        targets = [self._targets(label) for label in labels]
        self.criterion.count_masks(sum(len(ids) for ids, _ in targets), labels.device)
        labelled = [i for i, (ids, _) in enumerate(targets) if len(ids)]
        if not labelled:  # void alone; keeps all parameters in the graph, as several processes need
            zero = sum(values.sum() for values in (*masks, *classes)) * 0.0
            return dict.fromkeys(self.weights, zero)
        layers = [
            {"masks_queries_logits": m[labelled], "class_queries_logits": c[labelled]}
            for m, c in zip(masks, classes, strict=True)
        ]
        found = self.criterion(
            **layers[-1],
            mask_labels=[targets[i][1] for i in labelled],
            class_labels=[targets[i][0] for i in labelled],
            auxiliary_predictions=layers[:-1],
        )
        return {
            name: weight * sum(value for key, value in found.items() if key.startswith(name))
            for name, weight in self.weights.items()
        }

    def _targets(self, label: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the classes N of a label HxW and their masks NxHxW, float; void has none."""
        ids = label.unique()
        ids = ids[ids != self.ignore_index]
        return ids, (label == ids[:, None, None]).float()
