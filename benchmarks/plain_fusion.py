"""Multi-resolution latent fusion as it was published, plain and slow, to compare with.

DGInStyle (Jia et al., ECCV 2024) read to the letter: a base pass; decoded, enlarged by Lanczos,
encoded; then a canvas of tiles, each evaluated and stepped alone, the steps averaged, and large
regions overwritten after every step with the base pass's latent plus fresh noise of timestep t-1.
Stock forward passes of diffusers, nothing shared, batched, kept or skipped.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from scipy import ndimage


@dataclass
class Plain:
    """Stock networks, a DDIM scheduler with its timesteps set, and the sizes in latent pixels."""

    unet: Any
    controlnet: Any
    vae: Any
    scheduler: Any
    base: tuple[int, int]
    canvas: tuple[int, int]
    tile: tuple[int, int]
    stride: tuple[int, int]
    large_area: float
    guidance_scale: float
    control_scale: float

    @torch.no_grad()
    def draw(self, label: np.ndarray, states: torch.Tensor, seed: int) -> torch.Tensor:
        """Return the final latent, 1xCxhxw; `states` are the negative's and the prompt's, 2xLxD."""
        generator = torch.Generator().manual_seed(seed)
        base = self.base_pass(label, states, generator)
        return self.high_resolution_pass(label, states, base, generator)

    @torch.no_grad()
    def base_pass(
        self, label: np.ndarray, states: torch.Tensor, generator: torch.Generator
    ) -> torch.Tensor:
        """Return the clean latent of the label map as one tile."""
        shape = (1, self.unet.config.in_channels, *self.base)
        latents = torch.randn(shape, generator=generator)
        control = self.control(label, self.base)
        for timestep in self.scheduler.timesteps:
            noise = self.predict(latents, timestep, states, control)
            latents = self.scheduler.step(noise, timestep, latents).prev_sample
        return latents

    @torch.no_grad()
    def high_resolution_pass(
        self, label: np.ndarray, states: torch.Tensor, base: torch.Tensor,
        generator: torch.Generator,
    ) -> torch.Tensor:  # fmt: skip
        """Return the clean latent of the canvas, its large regions held on the base pass."""
        target = self.enlarge(base, generator)
        held = self.large_regions(label)
        shape = (1, self.unet.config.in_channels, *self.canvas)
        latents = torch.randn(shape, generator=generator)
        control = self.control(label, self.canvas)
        (height, width), px = self.tile, self.latent_px
        for timestep in self.scheduler.timesteps:
            total, count = torch.zeros_like(latents), torch.zeros_like(latents)
            for top in self.starts(0):
                for left in self.starts(1):
                    view = latents[:, :, top : top + height, left : left + width]
                    rows = slice(top * px, (top + height) * px)
                    columns = slice(left * px, (left + width) * px)
                    noise = self.predict(view, timestep, states, control[:, :, rows, columns])
                    stepped = self.scheduler.step(noise, timestep, view).prev_sample
                    total[:, :, top : top + height, left : left + width] += stepped
                    count[:, :, top : top + height, left : left + width] += 1
            last = timestep == self.scheduler.timesteps[-1]
            level = torch.tensor([0 if last else int(timestep) - 1])
            fresh = torch.randn(target.shape, generator=generator)
            noisy = self.scheduler.add_noise(target, fresh, level)
            latents = torch.where(held, noisy, total / count)
        return latents

    @property
    def latent_px(self) -> int:
        """Picture pixels per latent pixel."""
        return 2 ** (len(self.vae.config.block_out_channels) - 1)

    def starts(self, axis: int) -> list[int]:
        """Return the tile starts; a last tile at the border where the stride does not divide."""
        last = self.canvas[axis] - self.tile[axis]
        return sorted({*range(0, last + 1, self.stride[axis]), last})

    def control(self, label: np.ndarray, size: tuple[int, int]) -> torch.Tensor:
        """Return the one-hot map 1x20xHxW of a latent size; void is channel 19."""
        pixels = size[1] * self.latent_px, size[0] * self.latent_px
        ids = np.array(Image.fromarray(label).resize(pixels, Image.Resampling.NEAREST))
        classes = np.where(ids < 19, ids, 19)
        return torch.from_numpy(np.stack([classes == k for k in range(20)])).float()[None]

    def predict(
        self, latents: torch.Tensor, timestep: torch.Tensor, states: torch.Tensor,
        control: torch.Tensor,
    ) -> torch.Tensor:  # fmt: skip
        """Return the guided prediction of one tile."""
        pair = latents.repeat(2, 1, 1, 1)
        down, mid = self.controlnet(
            pair, timestep, states, control.repeat(2, 1, 1, 1),
            conditioning_scale=self.control_scale, return_dict=False,
        )  # fmt: skip
        negative, positive = self.unet(
            pair, timestep, states, down_block_additional_residuals=down,
            mid_block_additional_residual=mid,
        ).sample.chunk(2)  # fmt: skip
        return negative + self.guidance_scale * (positive - negative)

    def enlarge(self, latents: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Decode, enlarge to the canvas, encode and draw from the posterior."""
        factor, px = self.vae.config.scaling_factor, self.latent_px
        decoded = self.vae.decode(latents / factor).sample[0]
        pixels = ((decoded + 1) * 127.5).round().clamp(0, 255).byte().movedim(0, -1).numpy()
        size = self.canvas[1] * px, self.canvas[0] * px
        image = np.array(Image.fromarray(pixels).resize(size, Image.Resampling.LANCZOS))
        picture = torch.from_numpy(image).movedim(-1, 0)[None].float() / 127.5 - 1
        return self.vae.encode(picture).latent_dist.sample(generator) * factor

    def large_regions(self, label: np.ndarray) -> torch.Tensor:
        """Return the bool mask 1x1xhxw of 8-connected regions of one class above the area."""
        mask = np.zeros(label.shape, dtype=np.uint8)
        for class_id in range(19):
            regions, count = ndimage.label(label == class_id, structure=np.ones((3, 3)))
            for region in range(1, count + 1):
                if (regions == region).sum() > self.large_area * label.size:
                    mask[regions == region] = 1
        small = Image.fromarray(mask).resize(self.canvas[::-1], Image.Resampling.NEAREST)
        return torch.from_numpy(np.array(small)).bool()[None, None]
