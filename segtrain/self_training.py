"""Self-training on unlabelled pictures of a target, for unsupervised domain adaptation.

The moving average of the network labels them (mean teacher, Tarvainen and Valpola, NeurIPS 2017);
pixels it is not sure of become void, and the picture joins the batch (as in DAFormer, Hoyer et al.,
CVPR 2022, without its mixing of pictures). The average holds trained weights only: what is frozen,
a diffusion model above all, exists once.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from pipeline.averages import mean_then_ema_share, update_average
from pipeline.labels import VOID
from segtrain.mixing import SelfTraining, seeded_globals
from segtrain.transforms import with_reader


class UnlabelledSamples:
    """Draws a picture with the transforms of its set and a void label."""

    def __init__(self, pictures: list[Path], pipeline: list[dict[str, Any]]) -> None:
        from mmengine.dataset import Compose

        self.pictures = pictures
        steps = [void_label if step["type"] == "LoadAnnotations" else step for step in pipeline]
        self.transforms = Compose(with_reader(steps))

    def __call__(self, rng: np.random.Generator) -> Any:
        """Return one sample as packed by the transforms."""
        path = self.pictures[int(rng.integers(len(self.pictures)))]
        with seeded_globals(int(rng.integers(2**63))):
            return self.transforms({"img_path": str(path), "seg_fields": []})


def void_label(results: dict[str, Any]) -> dict[str, Any]:
    """Give a loaded picture a label without a class."""
    label = np.full(results["img"].shape[:2], VOID, dtype=np.uint8)
    return {**results, "gt_seg_map": label, "seg_fields": ["gt_seg_map"]}


class Teacher(torch.nn.Module):
    """The moving average of the trained weights of `network`, its buffers being the network's.

    `draw` draws the unlabelled samples that it labels.
    """

    def __init__(
        self, network: torch.nn.Module, settings: SelfTraining, draw: UnlabelledSamples
    ) -> None:
        super().__init__()
        self.settings, self.draw = settings, draw
        self._network = (network,)  # a tuple: not registered as a submodule
        for name, weight in self._trained():
            self.register_buffer(name.replace(".", "/"), weight.detach().clone())
        self.register_buffer("updates", torch.zeros((), dtype=torch.long))

    def _trained(self) -> list[tuple[str, torch.nn.Parameter]]:
        named = self._network[0].named_parameters()
        return [(name, weight) for name, weight in named if weight.requires_grad]

    def follow(self) -> None:
        """Move towards the network; at first the average is the mean of all its states."""
        self.updates += 1
        share = mean_then_ema_share(self.settings.ema_decay, int(self.updates))
        trained = self._trained()
        averages = [self.get_buffer(name.replace(".", "/")) for name, _ in trained]
        update_average(averages, [weight for _, weight in trained], share)

    @contextlib.contextmanager
    def _in_place(self) -> Iterator[torch.nn.Module]:
        """Put the average into the network, in eval mode, for the time of the block."""
        network = self._network[0]
        kept = {name: weight.data for name, weight in self._trained()}
        for name, weight in self._trained():
            weight.data = self.get_buffer(name.replace(".", "/"))
        network.eval()
        try:
            yield network
        finally:
            network.train()
            for name, weight in self._trained():
                weight.data = kept[name]

    @torch.no_grad()
    def label(self, samples: list[Any]) -> list[Any]:
        """Return the packed samples with labels where the average is sure, void elsewhere."""
        with self._in_place() as network:
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
