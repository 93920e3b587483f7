"""Samples that were started: their pixels are fetched, checked and timed when they are asked for.

An accelerator works on while the process prepares the next samples.
"""

import time
from dataclasses import dataclass
from datetime import UTC, datetime

import torch

from generation.sampler.color_transfer import transfer_details
from generation.samples import FinishedSample, SampleSpec
from pipeline.latents import tensor_to_images
from pipeline.resizing import resize_lanczos


class Stopwatch:
    """Measures what a sample costs a process that overlaps the ends of groups with the next ones.

    A group's time runs from its start, or from the end of the group before if that is later, and is
    divided among its samples.
    """

    def __init__(self) -> None:
        self._ended = 0.0
        self._group_start = 0.0
        self._begun = 0.0

    def lap(self, group_start: float, group_size: int) -> float:
        """Return the seconds of a sample that has just been finished."""
        now = time.perf_counter()
        if group_start != self._group_start:  # the first of its group
            self._group_start = group_start
            self._begun = max(group_start, self._ended)
        self._ended = now
        return round((now - self._begun) / group_size, 3)


@dataclass(frozen=True)
class PendingSample:
    """A sample whose pixels may still be on their way from the device."""

    spec: SampleSpec
    pixels: torch.Tensor
    """1x3xHxW in [-1, 1], of the canvas."""
    padded_px: tuple[int, int]
    """Height and width to which the crop was padded."""
    transfer_px: float
    """Window of the transfer of the source's details, 0 for none."""
    tiles: int
    """As in `FinishedSample`."""
    tiles_total: int
    evaluations: int
    gradients: int
    uncorrected: torch.Tensor
    """A number."""
    stopwatch: Stopwatch
    group_start: float
    """`time.perf_counter` at the start of the samples that were generated together."""
    group_size: int

    def result(self) -> FinishedSample:
        """Wait for the pixels; check them and bring them to the size of the crop."""
        pixels = self.pixels.cpu()
        image, problem = tensor_to_images(pixels)[0], ""
        if not bool(torch.isfinite(pixels).all()):
            problem = "the image is not finite"
        elif int(image.max()) - int(image.min()) < 2:
            problem = "the image is constant"
        height, width = self.spec.label.shape
        image = resize_lanczos(image, self.padded_px)[:height, :width]
        if self.transfer_px and not problem:
            assert self.spec.source is not None
            image = transfer_details(image, self.spec.source, self.spec.label, self.transfer_px)
        return FinishedSample(
            spec=self.spec,
            image=None if problem else image,
            problem=problem,
            tiles=self.tiles,
            tiles_total=self.tiles_total,
            evaluations=self.evaluations,
            gradients=self.gradients,
            uncorrected=int(self.uncorrected),
            seconds=self.stopwatch.lap(self.group_start, self.group_size),
            generated_at=datetime.now(UTC).isoformat(timespec="seconds"),
        )
