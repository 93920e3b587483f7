"""Denoising of one or several canvases together, tile by tile in calls of a fixed shape.

A canvas's bytes do not depend on which others are denoised with it: if several are, all network
calls take `batch` tiles, the missing ones zeros; a canvas denoised by itself has its tiles dealt
evenly to as few calls. Per step the tiles' predictions are averaged and ONE solver step moves each
canvas.
"""

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from generation import tiles
from generation.sampler.correction import Correction, is_finite
from generation.sampler.denoiser import Denoiser
from generation.sampler.fusion import RegionConstraint, noise_levels
from generation.sampler.guidance import Guidance
from pipeline.errors import UserError

Job = tuple["Canvas", int]  # a canvas and one of its tiles


class Canvas:
    """One image during one denoising pass, in latent pixels.

    `noise`: 1xCxhxw, standard normal. `conditions`: per ControlNet the condition 1xKxHxW of the
    whole canvas in pixels. `text_rows`: the rows of (negative, prompt) among the primed texts, or
    the prompt's alone. `tile_weights`: HxW float32, see `tiles.tile_weights`; it has the size of a
    tile. `boxes`: top and left of each tile. `constraint`: what is kept from the base pass.
    `start`: latent 1xCxhxw to start from at step `first_step`, None for noise. The embeddings of up
    to `num_cached` tiles are kept for the next step. `label_shares`: 1x19xhxw, what a correction
    leads to.
    """

    def __init__(
        self,
        scheduler: Any,
        *,
        noise: torch.Tensor,
        conditions: Sequence[torch.Tensor],
        text_rows: Sequence[int],
        tile_weights: np.ndarray,
        boxes: list[tiles.Box],
        constraint: RegionConstraint | None = None,
        start: torch.Tensor | None = None,
        first_step: int = 0,
        num_cached: int = 0,
        label_shares: torch.Tensor | None = None,
    ) -> None:
        self.conditions, self.text_rows, self.boxes = conditions, text_rows, boxes
        self.label_shares = label_shares
        self.constraint, self.num_cached = constraint, num_cached
        self.scheduler = copy.deepcopy(scheduler)
        self.levels = noise_levels(self.scheduler)
        self.latents = noise * float(self.scheduler.init_noise_sigma)
        self.first_step = 0
        if start is not None:
            self.first_step = first_step
            alpha, sigma = self.levels[first_step]
            self.latents = alpha * start + sigma * noise
            if hasattr(self.scheduler, "set_begin_index"):
                self.scheduler.set_begin_index(first_step)
        self.tile = tile_weights.shape
        self.weight = torch.from_numpy(tile_weights).to(noise.device)
        self.total = torch.zeros_like(self.latents)
        self.weights = torch.zeros_like(self.latents[:, :1])
        self.num_uncorrected = torch.zeros((), dtype=torch.long, device=noise.device)
        """Gradients of tiles that were not finite; on the device, so that nothing waits for it."""
        self._embeddings: dict[int, list[torch.Tensor]] = {}

    @property
    def px(self) -> int:
        """Pixels per latent pixel."""
        return self.conditions[0].shape[-1] // self.latents.shape[-1]

    def corner_px(self, index: int) -> tuple[int, int]:
        """Return top and left of tile `index` in pixels of the canvas."""
        top, left = self.boxes[index]
        return top * self.px, left * self.px

    def window(self, index: int) -> tuple[Any, ...]:
        """Return the slices of tile `index`."""
        (top, left), (height, width) = self.boxes[index], self.tile
        return (..., slice(top, top + height), slice(left, left + width))

    def embeddings(self, denoiser: Denoiser, index: int) -> list[torch.Tensor]:
        """Return tile `index`'s condition embeddings; they are cropped before, not after.

        The convolutions of the embedding see the border of the tile, as in training.
        """
        if index in self._embeddings:
            return self._embeddings[index]
        (top, left), height, width = self.corner_px(index), *(n * self.px for n in self.tile)
        window = (..., slice(top, top + height), slice(left, left + width))
        made = [denoiser.embed(k, part[window]) for k, part in enumerate(self.conditions)]
        if len(self._embeddings) < self.num_cached:
            self._embeddings[index] = made
        return made

    def add(self, index: int, prediction: torch.Tensor) -> None:
        """Add the prediction CxHxW of tile `index` to the weighted mean of this step."""
        self.total[self.window(index)] += self.weight * prediction
        self.weights[self.window(index)] += self.weight

    def step(self, number: int) -> None:
        """Move the canvas by denoising step `number`; where no tile lies the prediction is 0."""
        scheduler, timestep = self.scheduler, self.scheduler.timesteps[number]
        mean = torch.where(self.weights > 0, self.total / self.weights.clamp(min=1e-12), 0)
        if self.constraint:
            kind = scheduler.config.prediction_type
            mean = self.constraint.before_step(mean, self.latents, self.levels[number], kind)
        self.latents = scheduler.step(mean, timestep, self.latents, return_dict=False)[0]
        if self.constraint:
            self.latents = self.constraint.after_step(self.latents, scheduler, number)
        self.total.zero_()
        self.weights.zero_()


@dataclass(frozen=True)
class Call:
    """The tiles of one network call, padded to its size by zeros."""

    tiles: torch.Tensor
    """BxCxhxw"""
    embeddings: list[torch.Tensor]
    """One BxCxhxw per ControlNet."""
    text_rows: list[Sequence[int]]
    corners_px: list[tuple[int, int]]


class TileBatcher:
    """Calls the networks with `batch` tiles at a time and halves `batch` when memory runs out.

    `fixed_shape`: all calls take `batch` tiles, see the module docstring; compiled networks need
    that too. `correction`: changes the predictions of the first steps, None for no change.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        guidance: Guidance,
        batch: int,
        *,
        fixed_shape: bool,
        correction: Correction | None = None,
    ) -> None:
        self.denoiser, self.guidance, self.correction = denoiser, guidance, correction
        self.batch, self.fixed_shape = batch, fixed_shape

    def denoise(self, canvases: list[Canvas]) -> None:
        """Denoise all canvases to their clean latents."""
        jobs = [(canvas, index) for canvas in canvases for index in range(len(canvas.boxes))]
        for step in range(canvases[0].first_step, self.guidance.num_steps):
            self._predict(jobs, step)
            for canvas in canvases:
                canvas.step(step)

    def _predict(self, jobs: list[Job], step: int) -> None:
        done = 0
        while done < len(jobs):
            size = self.call_size(len(jobs))
            group = jobs[done : done + size]
            try:
                predictions = self._evaluate(group, step, size)
            except torch.OutOfMemoryError:
                self._use_less_memory()
                continue
            for (canvas, index), prediction in zip(group, predictions, strict=False):
                canvas.add(index, prediction)
            done += len(group)

    def call_size(self, num_tiles: int) -> int:
        """Return the number of tiles per call."""
        if self.fixed_shape:
            return self.batch
        return math.ceil(num_tiles / math.ceil(num_tiles / self.batch))

    def _use_less_memory(self) -> None:
        if self.batch == 1:
            raise UserError(
                "--tile-px: the device has no memory for a single tile; use --precision bf16, a "
                "smaller tile, or another device"
            )
        self.batch //= 2
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _evaluate(self, group: list[Job], step: int, size: int) -> torch.Tensor:
        """Return the guided and corrected float32 predictions of `size` tiles, BxCxhxw."""
        call = self._gather(group, step, size)
        is_guided = self.guidance.is_used_in(step)
        texts = [rows[-1] for rows in call.text_rows]
        if is_guided:  # all tiles with the negative prompt before all with their own
            texts = [rows[0] for rows in call.text_rows] + texts
        output = self.denoiser(
            call.tiles,
            step,
            call.embeddings,
            torch.tensor(texts, device=self.denoiser.device),
            call.corners_px,
        )
        prediction = self.guidance.combine(*output.chunk(2)) if is_guided else output
        if self.correction and self.correction.is_used_in(step):
            canvas = group[0][0]
            kind = canvas.scheduler.config.prediction_type
            gradient = self._label_gradient(self.correction, call, group, step)
            level = canvas.levels[step]
            prediction = self.correction.correct(prediction, gradient, level, kind)
            for (owner, _), finite in zip(group, is_finite(gradient), strict=False):
                owner.num_uncorrected += ~finite
        return prediction

    def _gather(self, group: list[Job], step: int, size: int) -> Call:
        """Return what the networks are called with for a group of tiles."""
        views, embeddings, text_rows, corners = [], [], [], []
        for canvas, index in group:
            timestep = canvas.scheduler.timesteps[step]
            latents = canvas.scheduler.scale_model_input(canvas.latents, timestep)
            views.append(latents[0][canvas.window(index)])
            embeddings.append([e[0] for e in canvas.embeddings(self.denoiser, index)])
            text_rows.append(canvas.text_rows)
            corners.append(canvas.corner_px(index))
        padding = size - len(group)
        views += [torch.zeros_like(views[0])] * padding
        embeddings += [[torch.zeros_like(e) for e in embeddings[0]]] * padding
        text_rows += [text_rows[0]] * padding
        corners += [(0, 0)] * padding
        stacked = [torch.stack(parts) for parts in zip(*embeddings, strict=True)]
        return Call(torch.stack(views), stacked, text_rows, corners)

    def _label_gradient(
        self, correction: Correction, call: Call, group: list[Job], step: int
    ) -> torch.Tensor:
        """Return the gradient of the cross entropy of the tiles' label maps, BxCxhxw.

        A forward and a backward pass with the prompt alone, in a call of the same shape.
        """
        shares = [
            canvas.label_shares[0][canvas.window(index)]
            for canvas, index in group
            if canvas.label_shares is not None
        ]
        shares += [torch.zeros_like(shares[0])] * (len(call.tiles) - len(group))
        rows = torch.tensor([rows[-1] for rows in call.text_rows], device=self.denoiser.device)

        def features(tiles: torch.Tensor) -> list[torch.Tensor]:
            return self.denoiser.features(
                tiles,
                step,
                call.embeddings,
                rows,
                call.corners_px,
                num_blocks=len(correction.head.projections),
            )

        return correction.gradient(call.tiles, features, torch.stack(shares))
