"""Learns scene tokens from unlabelled images: the task that segtrain/adapt.py gives to the loop."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch.nn import functional

from pipeline import files, images
from pipeline.averages import update_average
from segtrain.protocol import Size
from segtrain.segmenter import Segmenter


class ScenePrompt(torch.nn.Module):
    """Scene tokens SxD that learn, and their moving average, which labels the images.

    Everything else of the segmenter's network is frozen, and no part of this module.
    """

    def __init__(self, segmenter: Segmenter, scene: int, confidence: float) -> None:
        super().__init__()
        network = segmenter.model.requires_grad_(False)
        initial = network.backbone.text.scenes[scene].clone()
        self.tokens = torch.nn.Parameter(initial)
        self.average: torch.Tensor
        self.register_buffer("average", initial.clone())
        self.confidence = confidence
        self._network = (network,)  # a tuple: not registered as a submodule

    def logits(self, pixels: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """Return the logits BxKxhxw of the network under a scene prompt."""
        network = self._network[0]
        return network.decode_head(network.extract_feat(pixels, scene=tokens))

    def forward(self, groups: Sequence[torch.Tensor]) -> torch.Tensor:
        """Return the mean loss of the current tokens over images BxCxHxW, grouped by size."""
        pad = self._network[0].backbone.extractor.pad  # before they are mirrored
        count = sum(len(pixels) for pixels in groups)
        return sum(len(pixels) / count * self._loss(pad(pixels)) for pixels in groups)

    def _loss(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return the loss on mirrored images against the labels that the average gives them."""
        with torch.no_grad():
            confidence, labels = self.logits(pixels, self.average).softmax(1).max(1)
        mirrored = self.logits(pixels.flip(3), self.tokens).flip(3)
        loss = functional.cross_entropy(mirrored, labels, reduction="none")
        parts = zip(loss, labels, confidence, strict=True)
        return torch.stack([class_mean(*part, self.confidence) for part in parts]).mean()


def class_mean(
    loss: torch.Tensor, labels: torch.Tensor, confidence: torch.Tensor, threshold: float
) -> torch.Tensor:
    """Return the mean over an image's classes of their mean loss where it is confident.

    `loss`, `labels` (class ids), `confidence` (0..1): HxW. 0 where no pixel reaches `threshold`.
    In a mean over pixels the frequent classes teach themselves, and rare ones are lost.
    """
    sure = confidence >= threshold
    counts = labels[sure].bincount().clamp_min(1)
    return (loss[sure] / counts[labels[sure]]).sum() / max(len(labels[sure].unique()), 1)


class Adaptation:
    """The task of learning `scene` on images in the given `order`, around and around.

    `predictions`: for online adaptation, the file for the prediction of each image, which is made
    before the image is learned from; empty for offline adaptation.
    """

    def __init__(
        self,
        segmenter: Segmenter,
        scene: ScenePrompt,
        paths: Sequence[Path],
        order: Sequence[int],
        *,
        steps: int,
        batch_size: int,
        ema_decay: float,
        size_px: Size | None,
        predictions: Sequence[Path] = (),
    ) -> None:
        self.segmenter, self.scene = segmenter, scene
        self.paths, self.order, self.predictions = paths, order, predictions
        self.steps, self.batch_size = steps, batch_size
        self.ema_decay, self.size_px = ema_decay, size_px

    @property
    def modules(self) -> Mapping[str, torch.nn.Module]:
        """The scene prompt."""
        return {"scene": self.scene}

    def batches(self, first: int, rank: int, world: int) -> Iterator[list[list[int]]]:
        """Yield the indices of the images of each step, one micro-batch."""
        for step in range(first, self.steps):
            begin = (step * world + rank) * self.batch_size
            count = len(self.order)
            yield [[self.order[(begin + i) % count] for i in range(self.batch_size)]]

    def count(self, batch: list[int]) -> Mapping[str, int]:
        """Return nothing: there is one set."""
        return {}

    def loss(self, model: torch.nn.Module, batch: list[int], step: int) -> torch.Tensor:
        """Return the loss of a batch; online, predict its images first."""
        if self.predictions:
            self._predict(batch)
        paths = [self.paths[index] for index in batch]
        groups = self.segmenter.prepare_by_size(paths, self.size_px)
        return model([pixels for pixels, _ in groups])

    def _predict(self, batch: list[int]) -> None:
        self.segmenter.model.scene = self.scene.average.clone()
        for index in batch:
            label = self.segmenter(self.paths[index], size_px=self.size_px)
            files.make_folder(self.predictions[index].parent)
            files.write_bytes(self.predictions[index], images.encode_png(label))

    def after_update(self) -> None:
        """Move the average towards the tokens."""
        update_average([self.scene.average], [self.scene.tokens], 1 - self.ema_decay)
