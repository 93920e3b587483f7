"""Segmentors that train a diffusion backbone under several prompts.

Prompt randomization (PTDiffSeg, Gong et al., BMVC 2024): each step sees the source scene prompt and
a random other one, and the prediction should not depend on which. IPKL (DIFF, Ji et al., ICASSP
2025): a branch that is told the classes and where they are, from the ground truth, teaches the one
that is told nothing. Both use one head; at test only the plain branch runs.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from mmengine.structures import PixelData
from mmseg.models.decode_heads.decode_head import BaseDecodeHead
from mmseg.models.segmentors import EncoderDecoder
from torch.nn import functional

from pipeline.errors import UserError
from pipeline.labels import NUM_CLASSES
from segtrain.losses import Kind, consistency, ramp, require_rule

PLAIN, SECOND = "plain", "second"


@dataclass(frozen=True)
class Randomization:
    """A second pass under a random scene prompt with this probability."""

    probability: float = 1.0
    weight: float = 1.0
    kind: Kind = "kl"
    temperature: float = 1.0
    stop_gradient: bool = True
    ramp_steps: int = 0

    def __post_init__(self) -> None:
        require_rule(self)


@dataclass(frozen=True)
class Knowledge:
    """A conditional branch over `classes`, () for all; of those present at most `paths` at once.

    `probability`: of the branch in a step; it costs one evaluation per path, so half saves much.
    `second_pass`: at test, predict once more with the branch told what was predicted.
    """

    classes: tuple[int, ...] = ()
    probability: float = 1.0
    second_pass: bool = False
    paths: int = 4
    weight: float = 1.0
    kind: Kind = "mse"
    temperature: float = 1.0
    stop_gradient: bool = True
    ramp_steps: int = 0

    def __post_init__(self) -> None:
        require_rule(self)
        known = range(NUM_CLASSES)
        if wrong := [k for k in self.classes if isinstance(k, bool) or k not in known]:
            raise UserError(f"knowledge.classes {wrong}: must be train ids, 0 to {known[-1]}")
        if not isinstance(self.paths, int) or self.paths < 1:
            raise UserError(f"knowledge.paths {self.paths!r}: must be a whole number, 1 or more")


def require_fit(channels: Sequence[int], reader: Any) -> None:
    """Raise `UserError` unless a neck or head reads maps of the `channels` a backbone gives."""
    wanted, index = getattr(reader, "in_channels", None), getattr(reader, "in_index", None)
    if wanted is None:
        return
    numbers = range(len(channels)) if index is None else index
    numbers = [numbers] if isinstance(numbers, int) else numbers
    found = [channels[i] for i in numbers if -len(channels) <= i < len(channels)]
    if isinstance(wanted, int):  # one map, or several side by side
        wanted, found = [wanted], [sum(found)]
    if list(wanted) != found or len(found) == 0:
        raise UserError(
            f"{type(reader).__name__}: in_channels {list(wanted)} do not fit the maps "
            f"of the backbone, which have {list(channels)}"
        )


class DiffusionSegmentor(EncoderDecoder):
    """`EncoderDecoder` whose backbone is a `DiffusionBackbone`.

    `randomization`, `knowledge`: settings of the dataclasses above, None to leave one out. `scene`
    holds tokens SxD that replace the scene prompt, learned on a target by segtrain/adapt.py.
    """

    def __init__(
        self,
        *,
        randomization: dict[str, Any] | None = None,
        knowledge: dict[str, Any] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.randomization = Randomization(**randomization) if randomization is not None else None
        self.knowledge = Knowledge(**knowledge) if knowledge is not None else None
        if self.knowledge and self.backbone.maps:
            raise UserError("knowledge: its prompts have no token per class; drop the :maps taps")
        require_fit(self.backbone.out_channels, self.neck if self.with_neck else self.decode_head)
        self.scene: torch.Tensor | int = 0
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))

    def extract_feat(self, inputs: torch.Tensor, **options: Any) -> Any:
        """Return the neck's maps of pictures, by default under the scene in use."""
        maps = self.backbone(inputs, **{"scene": self.scene, **options})
        return self.neck(maps) if self.with_neck else maps

    def encode_decode(self, inputs: torch.Tensor, batch_img_metas: list[Any]) -> torch.Tensor:
        """Return the logits BxKxHxW of pictures of any size."""
        height, width = inputs.shape[-2:]
        inputs = self.backbone.extractor.pad(inputs)  # or maps of other strides would not align
        shape = inputs.shape[-2:]
        metas = [{**meta, "img_shape": shape, "pad_shape": shape} for meta in batch_img_metas]
        latents = self.backbone.encode(inputs)
        maps = self.extract_feat(inputs, latents=latents)
        logits = self.decode_head.predict(maps, metas, self.test_cfg)
        if self.knowledge and self.knowledge.second_pass:
            labels = functional.interpolate(logits, shape).argmax(1, keepdim=True)
            if told := self.conditional_options(labels, latents):
                maps = self.extract_feat(inputs, latents=latents, **told)
                logits = self.decode_head.predict(maps, metas, self.test_cfg)
        return logits[..., :height, :width]

    def loss(self, inputs: torch.Tensor, data_samples: list[Any]) -> dict[str, torch.Tensor]:
        """Return the named losses of a batch."""
        step = int(self.steps)
        self.steps += 1
        inputs, data_samples = self._pad(inputs, data_samples)
        latents = self.backbone.encode(inputs)
        rule, second = self._second_branch(data_samples, latents)
        kind = rule.kind if rule else None
        losses, plain = self._branch(inputs, data_samples, latents, {}, PLAIN, kind)
        if rule is None:
            return losses
        more, other = self._branch(inputs, data_samples, latents, second, SECOND, kind)
        # the plain branch learns from the one that knows more; another scene learns from the plain
        student, teacher = (plain, other) if rule is self.knowledge else (other, plain)
        values = [
            consistency(
                s, t, rule.kind, temperature=rule.temperature, stop_gradient=rule.stop_gradient
            )
            for s, t in zip(student, teacher, strict=True)
        ]
        value = sum(values) / len(values)
        losses["consistency.loss"] = rule.weight * ramp(step, rule.ramp_steps) * value
        return losses | more

    def _pad(self, inputs: torch.Tensor, data_samples: list[Any]) -> tuple[torch.Tensor, list[Any]]:
        """Return pictures padded to a size at which maps of all strides align, and their labels."""
        padded = self.backbone.extractor.pad(inputs)
        if padded.shape == inputs.shape:
            return inputs, data_samples
        more = [big - small for big, small in zip(padded.shape, inputs.shape, strict=True)]
        ignore = self.decode_head.ignore_index
        samples = [sample.clone() for sample in data_samples]
        for sample in samples:
            label = functional.pad(sample.gt_sem_seg.data, (0, more[3], 0, more[2]), value=ignore)
            sample.gt_sem_seg = PixelData(data=label)
        return padded, samples

    def _second_branch(
        self, data_samples: list[Any], latents: torch.Tensor
    ) -> tuple[Randomization | Knowledge | None, dict[str, Any]]:
        """Return the rule of this step's second branch and what its backbone is told.

        With both rules a step takes one of them, each as often.
        """
        rules = [rule for rule in (self.randomization, self.knowledge) if rule is not None]
        if not rules:
            return None, {}
        rule = rules[int(self._draw(len(rules)))]
        if self._draw(1.0) >= rule.probability:
            return None, {}
        if isinstance(rule, Knowledge):
            labels = torch.stack([sample.gt_sem_seg.data for sample in data_samples])
            options = self.conditional_options(labels, latents, rule.paths)
            return (rule, options) if self._all_have(options) else (None, {})
        others = len(self.backbone.text.scenes) - 1
        if others == 0:
            return None, {}
        return rule, {"scene": 1 + int(self._draw(others))}

    def _draw(self, limit: float) -> float:
        """Return a number below `limit`, that of the first process in all: they meet in the head's
        synchronised norms, so all must take the same branches."""
        value = torch.rand(())
        if torch.distributed.is_initialized():
            value = value.to(self.steps.device)
            torch.distributed.broadcast(value, src=0)
        return float(value.cpu() * limit)

    def _all_have(self, options: dict[str, Any] | None) -> bool:
        """Tell whether every process has options for its second branch."""
        have = torch.tensor(float(bool(options)), device=self.steps.device)
        if torch.distributed.is_initialized():
            torch.distributed.all_reduce(have, torch.distributed.ReduceOp.MIN)
        return bool(have)

    def _branch(
        self,
        inputs: torch.Tensor,
        data_samples: list[Any],
        latents: torch.Tensor,
        options: dict[str, Any],
        name: str,
        kind: Kind | None,
    ) -> tuple[dict[str, torch.Tensor], Sequence[torch.Tensor]]:
        """Return losses, and what a consistency of `kind` compares: the maps or the logits."""
        maps, head = self.extract_feat(inputs, latents=latents, **options), self.decode_head
        if type(head).loss is BaseDecodeHead.loss:
            logits = head(maps)
            losses = head.loss_by_feat(logits, data_samples)
        else:  # a loss that is no function of the logits
            losses = head.loss(maps, data_samples, self.train_cfg)
            logits = head(maps) if kind not in (None, "feature") else None
        losses = {f"{name}.{key}": value for key, value in losses.items()}
        if name == PLAIN and self.with_auxiliary_head:
            losses |= self._auxiliary_head_forward_train(maps, data_samples)
        return losses, maps if kind == "feature" else [logits]

    def conditional_options(
        self, labels: torch.Tensor, latents: torch.Tensor, paths: int | None = None
    ) -> dict[str, Any] | None:
        """Return classes and masks of labels Bx1xHxW, at most `paths`; None if none is there."""
        assert self.knowledge is not None
        wanted = self.knowledge.classes or range(self.backbone.num_classes)
        present = [int(k) for k in labels.unique().tolist() if int(k) in wanted]
        order = torch.randperm(len(present))[:paths].tolist()
        chosen = sorted(present[i] for i in order)
        if not chosen:
            return None
        height, width = labels.shape[-2:]
        multiple = self.backbone.extractor.multiple
        padded = functional.pad(
            labels.float(), (0, -width % multiple, 0, -height % multiple), value=255
        )
        small = functional.interpolate(padded, size=latents.shape[-2:], mode="nearest")[:, 0]
        masks = torch.stack([(small == k).to(latents.dtype) for k in chosen])
        return {"class_ids": chosen, "masks": masks}
