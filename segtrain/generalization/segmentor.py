"""An encoder and decoder with the options of domain generalization, each on its own or together."""

from typing import Any, NamedTuple

import torch
from mmseg.models.decode_heads.decode_head import BaseDecodeHead
from mmseg.models.segmentors import EncoderDecoder
from mmseg.models.utils import resize
from mmseg.utils import add_prefix

from pipeline.errors import UserError
from segtrain.generalization.boundary import Boundary, boundary_loss
from segtrain.generalization.feature_distance import (
    FeatureDistance,
    Reference,
    masked_distance,
    thing_mask,
)
from segtrain.generalization.style_hallucination import (
    StyleHallucination,
    StyleMemory,
    follow_updates,
    js_divergence,
)

Losses = dict[str, torch.Tensor]


class View(NamedTuple):
    """Images as the backbone saw them, their labels BxHxW, and its deepest map."""

    images: torch.Tensor
    labels: torch.Tensor
    features: torch.Tensor


class Pass(NamedTuple):
    """What one pass of the network gives: losses, logits BxKxhxw, what the backbone saw."""

    losses: Losses
    logits: torch.Tensor | None
    views: list[View]


class Segmentor(EncoderDecoder):
    """`EncoderDecoder` with options of training; None leaves one out. At test it is the same.

    `feature_distance`, `style_hallucination`, `boundary`: settings of the dataclasses of those
    names in this package.
    """

    def __init__(
        self,
        *,
        feature_distance: dict[str, Any] | None = None,
        style_hallucination: dict[str, Any] | None = None,
        boundary: dict[str, Any] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.distance = None if feature_distance is None else FeatureDistance(**feature_distance)
        self.boundary = None if boundary is None else Boundary(**boundary)
        self.styles = (
            None
            if style_hallucination is None
            else StyleMemory(StyleHallucination(**style_hallucination))
        )
        if self.styles:
            follow_updates(self.styles, self)
        self._reference: list[Reference] = []  # a list: not registered as a submodule
        if (self.styles or self.boundary) and type(
            self.decode_head
        ).loss is not BaseDecodeHead.loss:
            raise UserError(
                f"{type(self.decode_head).__name__}: its loss is no function of logits, as "
                "style_hallucination and boundary need; drop them"
            )

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take over the state of a copied network, whose styles count updates of their own."""
        super().__setstate__(state)
        if self.styles:
            follow_updates(self.styles, self)

    def init_weights(self) -> None:
        """Initialise as the recipe says, and keep the backbone's initial weights if needed."""
        super().init_weights()
        self.keep_reference()

    def keep_reference(self) -> None:
        """Take the backbone's present weights as those to which the feature distance is measured.

        To be called after initial weights are loaded and before a checkpoint is.
        """
        if self.distance:
            self._reference[:] = [Reference(self.backbone)]

    def loss(self, inputs: torch.Tensor, data_samples: list[Any]) -> Losses:
        """Return the named losses of a batch."""
        region = self.choose_region(inputs)
        if self.styles is None:
            plain = self.supervise(inputs, data_samples, region)
        else:
            with self.styles.observed(self.backbone) as styles:
                plain = self.supervise(inputs, data_samples, region)
        losses = dict(plain.losses)
        if self.boundary:
            losses["boundary.loss"] = self.boundary.weight * self._boundary(plain, data_samples)
        if self.distance:
            losses["feature_distance.loss"] = self.distance.weight * self._distance(plain.views)
        if self.styles and self.styles.remember(styles[0]):
            with self.styles.hallucinated(self.backbone):
                other = self.supervise(inputs, data_samples, region)
            losses |= add_prefix(other.losses, "style")
            divergence = js_divergence(plain.logits, other.logits)
            losses["style_consistency.loss"] = self.styles.settings.weight * divergence
        return losses

    def choose_region(self, inputs: torch.Tensor) -> Any:
        """Draw what the passes of one step share; nothing here."""

    def supervise(self, inputs: torch.Tensor, data_samples: list[Any], region: Any) -> Pass:
        """Return losses, logits and views of one pass."""
        maps, head = self.extract_feat(inputs), self.decode_head
        if type(head).loss is BaseDecodeHead.loss:
            logits = head(maps)
            losses = head.loss_by_feat(logits, data_samples)
        else:  # a loss that is no function of the logits
            logits, losses = None, head.loss(maps, data_samples, self.train_cfg)
        losses = add_prefix(losses, "decode")
        if self.with_auxiliary_head:
            losses |= self._auxiliary_head_forward_train(maps, data_samples)
        return Pass(losses, logits, [View(inputs, stack_labels(data_samples), maps[-1])])

    def _boundary(self, plain: Pass, data_samples: list[Any]) -> torch.Tensor:
        assert self.boundary is not None and plain.logits is not None
        sets = self.boundary.sets
        names = [sample.metainfo.get("set", "source") for sample in data_samples]
        chosen = [i for i, name in enumerate(names) if not sets or name in sets]
        if not chosen:
            return plain.logits.sum() * 0.0
        labels = plain.views[0].labels[chosen]  # of the size that the logits are for
        size = labels.shape[-2:]
        logits = resize(plain.logits[chosen], size=size, mode="bilinear", align_corners=False)
        share = len(chosen) / len(names)  # a mean over all images, as that of the cross-entropy
        return share * boundary_loss(logits, labels, self.boundary.radius_px)

    def _distance(self, views: list[View]) -> torch.Tensor:
        assert self.distance is not None
        values = []
        for view in views:
            size = view.features.shape[-2:]
            mask = thing_mask(view.labels, size, self.distance.classes, self.distance.min_share)
            reference = self._reference[0].features(view.images)
            values.append(masked_distance(view.features, reference, mask))
        return torch.stack(values).mean()


def stack_labels(data_samples: list[Any]) -> torch.Tensor:
    """Return the labels BxHxW of a batch."""
    return torch.cat([sample.gt_sem_seg.data for sample in data_samples]).long()
