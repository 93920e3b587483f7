"""Self-training on unlabelled images of a target, for unsupervised domain adaptation.

The moving average of the network labels them (mean teacher, Tarvainen and Valpola, NeurIPS 2017);
pixels it is not sure of become void, and the image joins the batch (as in DAFormer, Hoyer et al.,
CVPR 2022, without its mixing of images). Void counts in the mean of the loss, so that unlabelled
images have the weight of their share of sure pixels, as in DAFormer. The average holds trained
weights only: what is frozen, a diffusion model above all, exists once.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from pipeline.labels import VOID
from segtrain.mixing import seeded_globals
from segtrain.sets import SelfTraining
from segtrain.transforms import with_reader
from segtrain.weight_average import WeightAverage


class UnlabelledSamples:
    """Draws an image with the transforms of its set and a void label."""

    def __init__(self, images: list[Path], pipeline: list[dict[str, Any]]) -> None:
        from mmengine.dataset import Compose

        self.images = images
        steps = [void_label if step["type"] == "LoadAnnotations" else step for step in pipeline]
        self.transforms = Compose(with_reader(steps))

    def __call__(self, rng: np.random.Generator) -> Any:
        """Return one sample as packed by the transforms."""
        path = self.images[int(rng.integers(len(self.images)))]
        with seeded_globals(int(rng.integers(2**63))):
            return self.transforms({"img_path": str(path), "seg_fields": []})


def void_label(results: dict[str, Any]) -> dict[str, Any]:
    """Give a loaded image a label without a class."""
    label = np.full(results["img"].shape[:2], VOID, dtype=np.uint8)
    return {**results, "gt_seg_map": label, "seg_fields": ["gt_seg_map"]}


class Teacher(WeightAverage):
    """Labels unlabelled samples by the moving average of a network's trained weights.

    `unlabelled` samples these.
    """

    def __init__(
        self, network: torch.nn.Module, settings: SelfTraining, unlabelled: UnlabelledSamples
    ) -> None:
        super().__init__(network, settings.ema_decay)
        self.settings, self.unlabelled = settings, unlabelled

    @torch.no_grad()
    def label(self, samples: list[Any]) -> list[Any]:
        """Return the packed samples with labels where the average is sure, void elsewhere."""
        with self.in_place() as network:
            data = network.data_preprocessor(
                {
                    "inputs": [sample["inputs"] for sample in samples],
                    # copies: padding grows their labels, and the loss will pad the samples again
                    "data_samples": [sample["data_samples"].clone() for sample in samples],
                },
                training=True,
            )
            logits = network(data["inputs"], data["data_samples"], mode="tensor")
            logits = functional.interpolate(logits, data["inputs"].shape[-2:], mode="bilinear")
            certainty, labels = logits.softmax(1).max(1)
        labels[certainty < self.settings.confidence] = VOID
        for sample, label in zip(samples, labels, strict=True):
            field = sample["data_samples"].gt_sem_seg
            height, width = field.data.shape[-2:]
            field.data = label[None, :height, :width].to(field.data)
        return samples
