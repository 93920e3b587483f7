"""Denoising of one or several canvases together, tile by tile in calls of a fixed shape.

A canvas's bytes do not depend on which others are drawn with it: if several are, all network calls
take `batch` tiles, the missing ones zeros; a canvas drawn by itself has its tiles dealt evenly to
as few calls. Per step the tiles' predictions are averaged and ONE solver step moves each canvas.
"""

import copy
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from generation import tiles
from generation.sampler.denoiser import Denoiser
from generation.sampler.fusion import RegionConstraint, guided, noise_levels
from generation.settings import Config
from pipeline.errors import UserError

Job = tuple["Canvas", int]  # a canvas and one of its tiles


class Canvas:
    """One image during one denoising pass, in latent pixels.

    `noise`: 1xCxhxw, standard normal. `conditions`: per ControlNet the condition 1xKxHxW of the
    whole canvas in pixels. `rows`: the rows of (negative, prompt) among the primed texts, or the
    prompt's alone. `start`: latent 1xCxhxw to start from at `config.strength`, None for noise.
    """

    def __init__(
        self,
        config: Config,
        scheduler: Any,
        *,
        noise: torch.Tensor,
        conditions: Sequence[torch.Tensor],
        rows: Sequence[int],
        tile: tuple[int, int],
        boxes: list[tiles.Box],
        paste: RegionConstraint | None = None,
        start: torch.Tensor | None = None,
    ) -> None:
        self.config, self.conditions, self.rows = config, conditions, rows
        self.tile, self.boxes, self.paste = tile, boxes, paste
        self.scheduler = copy.deepcopy(scheduler)
        self.levels = noise_levels(self.scheduler)
        self.latents = noise * float(self.scheduler.init_noise_sigma)
        self.first = first_step(config) if start is not None else 0
        if start is not None:
            alpha, sigma = self.levels[self.first]
            self.latents = alpha * start + sigma * noise
            if hasattr(self.scheduler, "set_begin_index"):
                self.scheduler.set_begin_index(self.first)
        weight = torch.from_numpy(tiles.tile_weights(tile, config.tile_weight))
        self.weight = weight.to(noise.device)
        self.total = torch.zeros_like(self.latents)
        self.weights = torch.zeros_like(self.latents[:, :1])
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
        if len(self._embeddings) < self.config.condition_cache_tiles:
            self._embeddings[index] = made
        return made

    def add(self, index: int, prediction: torch.Tensor) -> None:
        """Add the prediction CxHxW of tile `index` to the weighted mean of this step."""
        self.total[self.window(index)] += self.weight * prediction
        self.weights[self.window(index)] += self.weight

    def step(self, number: int) -> None:
        """Move the canvas by solver step `number`; where no tile lies the prediction is 0."""
        scheduler, timestep = self.scheduler, self.scheduler.timesteps[number]
        mean = torch.where(self.weights > 0, self.total / self.weights.clamp(min=1e-12), 0)
        if self.paste:
            kind = scheduler.config.prediction_type
            mean = self.paste.before_step(mean, self.latents, self.levels[number], kind)
        self.latents = scheduler.step(mean, timestep, self.latents, return_dict=False)[0]
        if self.paste:
            self.latents = self.paste.after_step(self.latents, scheduler, number)
        self.total.zero_()
        self.weights.zero_()


def first_step(config: Config) -> int:
    """Return the solver step at which an image of `config.strength` starts."""
    return config.steps - max(1, round(config.steps * config.strength))


def guided_step(config: Config, number: int) -> bool:
    """Tell whether solver step `number` evaluates both halves of the guidance."""
    first, last = config.guidance_interval
    return config.guidance_scale != 1 and first <= number / config.steps < last


class TileBatcher:
    """Calls the networks with `batch` tiles at a time and halves `batch` when memory runs out."""

    def __init__(self, denoiser: Denoiser, config: Config, batch: int) -> None:
        self.denoiser, self.config, self.batch = denoiser, config, batch

    def denoise(self, canvases: list[Canvas]) -> None:
        """Denoise all canvases to their clean latents."""
        jobs = [(canvas, index) for canvas in canvases for index in range(len(canvas.boxes))]
        for number in range(canvases[0].first, self.config.steps):
            self._predict(jobs, number)
            for canvas in canvases:
                canvas.step(number)

    def _predict(self, jobs: list[Job], number: int) -> None:
        done = 0
        while done < len(jobs):
            size = self._call_size(len(jobs))
            group = jobs[done : done + size]
            try:
                predictions = self._evaluate(group, number, size)
            except torch.OutOfMemoryError:
                self._use_less_memory()
                continue
            for (canvas, index), prediction in zip(group, predictions, strict=False):
                canvas.add(index, prediction)
            done += len(group)

    def _call_size(self, num_tiles: int) -> int:
        """Return the tiles per call; compiled calls and those of several images are fixed."""
        if self.config.image_batch > 1 or self.config.compile:
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

    def _evaluate(self, group: list[Job], number: int, size: int) -> torch.Tensor:
        """Return the guided float32 predictions of `size` tiles, BxCxhxw."""
        views, embeddings, rows, corners = [], [], [], []
        for canvas, index in group:
            timestep = canvas.scheduler.timesteps[number]
            latents = canvas.scheduler.scale_model_input(canvas.latents, timestep)
            views.append(latents[0][canvas.window(index)])
            embeddings.append([e[0] for e in canvas.embeddings(self.denoiser, index)])
            rows.append(canvas.rows)
            corners.append(canvas.corner_px(index))
        padding = size - len(group)
        views += [torch.zeros_like(views[0])] * padding
        embeddings += [[torch.zeros_like(e) for e in embeddings[0]]] * padding
        rows += [rows[0]] * padding
        corners += [(0, 0)] * padding
        pair = guided_step(self.config, number)
        texts = torch.from_numpy(np.array(rows).T[-1 - pair :].ravel()).to(self.denoiser.device)
        stacked = [torch.stack(parts) for parts in zip(*embeddings, strict=True)]
        output = self.denoiser(torch.stack(views), number, stacked, texts, corners)
        if not pair:
            return output
        negative, positive = output.chunk(2)
        return guided(negative, positive, self.config.guidance_scale)
