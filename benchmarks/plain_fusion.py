"""Multi-resolution latent fusion as published, without optimization, for comparison.

Follows DGInStyle (Jia et al., ECCV 2024) exactly. The result of a base pass is decoded, enlarged by
Lanczos and encoded. Then each tile of a canvas is evaluated and stepped separately. The steps are
averaged, and after every step large regions are overwritten with the latent of the base pass plus
fresh noise of timestep t-1. Forward passes are those of diffusers; nothing is shared, batched,
cached or skipped. Regions are found by OpenCV and masks are resized by torch's nearest rule, as in
the released code. The stride must divide canvas minus tile; otherwise a border has no tile.
"""

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image


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
    min_region_share: float
    guidance_scale: float
    controlnet_scale: float
    last_level: int | None = None
    """Timestep whose noise is added in the last step; None means t-1, which is 0 at the end with
    the timesteps of Stable Diffusion 1.5."""

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
        self,
        label: np.ndarray,
        states: torch.Tensor,
        base: torch.Tensor,
        generator: torch.Generator,
    ) -> torch.Tensor:
        """Return the clean latent of the canvas, with large regions fixed to the base pass."""
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
            level = int(timestep) - 1
            if timestep == self.scheduler.timesteps[-1] and self.last_level is not None:
                level = self.last_level
            fresh = torch.randn(target.shape, generator=generator)
            noisy = self.scheduler.add_noise(target, fresh, torch.tensor([level]))
            latents = torch.where(held, noisy, total / count)
        return latents

    @property
    def latent_px(self) -> int:
        """Image pixels per latent pixel."""
        return 2 ** (len(self.vae.config.block_out_channels) - 1)

    def starts(self, axis: int) -> range:
        """Return the tile starts on one axis."""
        length, tile, stride = self.canvas[axis], self.tile[axis], self.stride[axis]
        if (length - tile) % stride:
            raise ValueError(f"stride {stride}: leaves a border of {length} without a tile")
        return range(0, length - tile + 1, stride)

    def control(self, label: np.ndarray, size: tuple[int, int]) -> torch.Tensor:
        """Return the one-hot map 1x20xHxW of a latent size; void is channel 19."""
        pixels = size[0] * self.latent_px, size[1] * self.latent_px
        if pixels[0] < label.shape[0]:  # the published code can only enlarge
            small = Image.fromarray(label).resize(pixels[::-1], Image.Resampling.NEAREST)
            label = np.array(small)
        classes = torch.from_numpy(np.where(label == 255, 19, label)).long()
        planes = torch.stack([classes == k for k in range(20)]).float()[None]
        return F.interpolate(planes, size=pixels, mode="nearest")

    def predict(
        self,
        latents: torch.Tensor,
        timestep: torch.Tensor,
        states: torch.Tensor,
        control: torch.Tensor,
    ) -> torch.Tensor:
        """Return the guided prediction of one tile."""
        pair = latents.repeat(2, 1, 1, 1)
        down, mid = self.controlnet(
            pair,
            timestep,
            states,
            control.repeat(2, 1, 1, 1),
            conditioning_scale=self.controlnet_scale,
            return_dict=False,
        )
        negative, positive = self.unet(
            pair,
            timestep,
            states,
            down_block_additional_residuals=down,
            mid_block_additional_residual=mid,
        ).sample.chunk(2)
        return negative + self.guidance_scale * (positive - negative)

    def enlarge(self, latents: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Decode, enlarge to the canvas, encode and sample from the posterior."""
        factor, px = self.vae.config.scaling_factor, self.latent_px
        decoded = self.vae.decode(latents / factor).sample[0]
        decoded = ((decoded + 1) * 127.5).round().clamp(0, 255).byte().movedim(0, -1)
        size = self.canvas[1] * px, self.canvas[0] * px
        image = Image.fromarray(decoded.numpy()).resize(size, Image.Resampling.LANCZOS)
        pixels = torch.from_numpy(np.array(image)).movedim(-1, 0)[None].float() / 127.5 - 1
        return self.vae.encode(pixels).latent_dist.sample(generator) * factor

    def large_regions(self, label: np.ndarray) -> torch.Tensor:
        """Return the bool mask 1x1xhxw of 8-connected regions of one class above the area."""
        mask = np.zeros(label.shape, dtype=np.float32)
        for class_id in set(np.unique(label).tolist()) - {255}:
            found = cv2.connectedComponentsWithStats(np.uint8(label == class_id), connectivity=8)
            count, regions, statistics, _ = found
            for region in range(1, count):
                if statistics[region, cv2.CC_STAT_AREA] > self.min_region_share * label.size:
                    mask[regions == region] = 1
        whole = torch.from_numpy(mask)[None, None]
        return F.interpolate(whole, size=self.canvas, mode="nearest").bool()
