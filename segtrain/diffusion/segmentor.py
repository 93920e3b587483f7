"""Segmentors that train a diffusion backbone under several prompts.

Prompt randomization (PTDiffSeg, Gong et al., BMVC 2024): each step runs under the source scene
prompt and a random other one, and a consistency loss ties the predictions. IPKL (DIFF, Ji et al.,
ICASSP 2025): a conditional branch receives one prompt and one ground-truth mask per class, and the
unconditional branch is trained to match it. Both branches share one head; testing runs the
unconditional branch alone.
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
from segtrain.latent_regression import LatentRegressionHead
from segtrain.losses import Kind, consistency, require_branch

FIRST, SECOND = "plain", "second"  # before the names of losses in the log


@dataclass(frozen=True)
class PromptRandomization:
    """A second branch under a random scene prompt; it learns from the first.

    `probability` of the branch in a step; `weight` and `kind` of the consistency loss, "mse" or
    "kl" at `temperature`; `stop_gradient` of the first branch.
    """

    probability: float = 1.0
    weight: float = 1.0
    kind: Kind = "kl"
    temperature: float = 1.0
    stop_gradient: bool = True

    def __post_init__(self) -> None:
        require_branch(self, "prompt_randomization")


@dataclass(frozen=True)
class Ipkl:
    """A conditional branch that knows the classes of the batch; the first branch learns from it.

    `classes`: the train ids that get a prompt, () for all. `max_classes` in one step; each costs
    one evaluation of the U-Net. The other fields are those of `PromptRandomization`;
    `stop_gradient` is of the conditional branch.
    """

    classes: tuple[int, ...] = ()
    max_classes: int = 4
    probability: float = 1.0
    weight: float = 1.0
    kind: Kind = "mse"
    temperature: float = 1.0
    stop_gradient: bool = True

    def __post_init__(self) -> None:
        require_branch(self, "ipkl")
        known = range(NUM_CLASSES)
        if wrong := [k for k in self.classes if isinstance(k, bool) or k not in known]:
            raise UserError(f"ipkl.classes {wrong}: must be train ids, 0 to {known[-1]}")
        if not isinstance(self.max_classes, int) or self.max_classes < 1:
            raise UserError(
                f"ipkl.max_classes {self.max_classes!r}: must be a whole number, 1 or more"
            )


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

    `prompt_randomization`, `ipkl`: settings of the dataclasses above, None to leave one out.
    `scene` holds tokens SxD that replace the scene prompt, learned on a target by
    segtrain/adapt.py.
    """

    def __init__(
        self,
        *,
        prompt_randomization: dict[str, Any] | None = None,
        ipkl: dict[str, Any] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.prompt_randomization = (
            None if prompt_randomization is None else PromptRandomization(**prompt_randomization)
        )
        self.ipkl = None if ipkl is None else Ipkl(**ipkl)
        if self.ipkl and self.backbone.attention_taps:
            raise UserError("ipkl: its prompts have no token per class; drop the :maps taps")
        require_fit(self.backbone.out_channels, self.neck if self.with_neck else self.decode_head)
        if isinstance(self.decode_head, LatentRegressionHead):
            self.decode_head.use_autoencoder(self.backbone.extractor.vae)
        self.scene: torch.Tensor | int = 0
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))  # of training, so far

    def extract_feat(self, inputs: torch.Tensor, **options: Any) -> Any:
        """Return the neck's maps of images, by default under the scene in use."""
        maps = self.backbone(inputs, **{"scene": self.scene, **options})
        return self.neck(maps) if self.with_neck else maps

    def encode_decode(self, inputs: torch.Tensor, batch_img_metas: list[Any]) -> torch.Tensor:
        """Return the logits BxKxHxW of images of any size."""
        height, width = inputs.shape[-2:]
        inputs = self.backbone.extractor.pad(inputs)  # or maps of other strides would not align
        shape = inputs.shape[-2:]
        metas = [{**meta, "img_shape": shape, "pad_shape": shape} for meta in batch_img_metas]
        latents = self.backbone.encode(inputs)
        maps = self.extract_feat(inputs, latents=latents)
        logits = self.decode_head.predict(maps, metas, self.test_cfg)
        return logits[..., :height, :width]

    def loss(self, inputs: torch.Tensor, data_samples: list[Any]) -> dict[str, torch.Tensor]:
        """Return the named losses of a batch."""
        self.steps += 1
        inputs, data_samples = self._pad(inputs, data_samples)
        latents = self.backbone.encode(inputs)
        branch, options = self._second_branch(data_samples, latents)
        compared = branch is not None
        losses, first = self._branch(inputs, data_samples, latents, {}, FIRST, compared)
        if branch is None:
            return losses
        more, second = self._branch(inputs, data_samples, latents, options, SECOND, compared)
        # The conditional branch of IPKL teaches; a branch under another scene learns
        student, teacher = (first, second) if branch is self.ipkl else (second, first)
        losses["consistency.loss"] = branch.weight * consistency(
            student,
            teacher,
            branch.kind,
            temperature=branch.temperature,
            stop_gradient=branch.stop_gradient,
        )
        return losses | more

    def _pad(self, inputs: torch.Tensor, data_samples: list[Any]) -> tuple[torch.Tensor, list[Any]]:
        """Return images padded to a size at which maps of all strides align, and their labels."""
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
    ) -> tuple[PromptRandomization | Ipkl | None, dict[str, Any]]:
        """Return the settings of this step's second branch and the options of its backbone.

        With both kinds a step has one of them, each with the same probability.
        """
        branches = [b for b in (self.prompt_randomization, self.ipkl) if b is not None]
        if not branches:
            return None, {}
        branch = branches[int(self._random_number(len(branches)))]
        if self._random_number(1.0) >= branch.probability:
            return None, {}
        if isinstance(branch, Ipkl):
            labels = torch.stack([sample.gt_sem_seg.data for sample in data_samples])
            options = self.conditional_options(labels, latents, branch.max_classes)
            if self._all_have(options) and options is not None:
                return branch, options
            return None, {}
        others = len(self.backbone.text.scenes) - 1
        if others == 0:
            return None, {}
        return branch, {"scene": 1 + int(self._random_number(others))}

    def _random_number(self, limit: float) -> float:
        """Return a uniform number in [0, limit), drawn on rank 0 and broadcast.

        All ranks take the same branch; SyncBatchNorm would wait forever otherwise.
        """
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
        compared: bool,
    ) -> tuple[dict[str, torch.Tensor], torch.Tensor | None]:
        """Return the named losses of a branch and its logits, None unless they are `compared`."""
        maps, head = self.extract_feat(inputs, latents=latents, **options), self.decode_head
        if type(head).loss is BaseDecodeHead.loss:
            logits = head(maps)
            losses = head.loss_by_feat(logits, data_samples)
        else:  # a loss that is no function of the logits
            losses = head.loss(maps, data_samples, self.train_cfg)
            logits = head(maps) if compared else None
        losses = {f"{name}.{key}": value for key, value in losses.items()}
        if name == FIRST and self.with_auxiliary_head:
            losses |= self._auxiliary_head_forward_train(maps, data_samples)
        return losses, logits

    def conditional_options(
        self, labels: torch.Tensor, latents: torch.Tensor, max_classes: int | None = None
    ) -> dict[str, Any] | None:
        """Return classes and masks of labels Bx1xHxW, at most `max_classes`; None for none."""
        assert self.ipkl is not None
        wanted = self.ipkl.classes or range(self.backbone.num_classes)
        present = [int(k) for k in labels.unique().tolist() if int(k) in wanted]
        order = torch.randperm(len(present))[:max_classes].tolist()
        chosen = sorted(present[i] for i in order)
        if not chosen:
            return None
        below, right = self.backbone.extractor.grid.padding(labels.shape[-2:])
        padded = functional.pad(labels.float(), (0, right, 0, below), value=255)
        small = functional.interpolate(padded, size=latents.shape[-2:], mode="nearest")[:, 0]
        masks = torch.stack([(small == k).to(latents.dtype) for k in chosen])
        return {"class_ids": chosen, "masks": masks}
