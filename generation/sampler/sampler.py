"""The sampler: base pass, reference latent, tiled high-resolution pass, image.

Networks are called in fixed shapes (padded with zeros), so a sample's bytes do not depend on what
else is made. Noise comes from CPU generators in float32, one per sample; solver arithmetic stays
in float32.
"""

import time
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from generation import tiles
from generation.sampler.canvas import Canvas, TileBatcher
from generation.sampler.correction import Correction
from generation.sampler.fusion import RegionConstraint
from generation.sampler.guidance import Guidance
from generation.sampler.networks import Networks
from generation.sampler.pending import PendingSample, Stopwatch
from generation.samples import FinishedSample, SampleSpec
from generation.settings import Config
from pipeline import labels
from pipeline.errors import UserError
from pipeline.latents import (
    decode_latents,
    encode_latents,
    images_to_tensor,
    sample_latents,
    tensor_to_images,
)
from pipeline.prompt_encoder import Conditioning
from pipeline.resizing import resize_lanczos, resize_nearest
from pipeline.segmentation_head import label_shares


class Sampler:
    """Generates images for label crops, `config.image_batch` at a time."""

    def __init__(self, networks: Networks, config: Config) -> None:
        self.networks, self.config = networks, config
        self.sizes = config.sizes.padded(networks.grid)
        self.rules = config.region_rules
        self.stopwatch = Stopwatch()
        guidance = Guidance(config.guidance_scale, config.guidance_interval, config.steps)
        fixed_shape = config.image_batch > 1 or config.compile
        self.correction = self._make_correction()
        self.base_pass, self.tile_pass = (
            TileBatcher(
                networks.denoiser,
                guidance,
                batch,
                fixed_shape=fixed_shape,
                correction=self.correction,
            )
            for batch in (config.image_batch, config.tile_batch)
        )

    def _make_correction(self) -> Correction | None:
        """Return the in-sampling correction, None if there is none."""
        settings, head = self.config.correction, self.networks.head
        if not settings.is_on:
            return None
        assert head is not None
        return Correction(head, settings.scale, self.config.corrected_steps, settings.class_balance)

    def generate(self, label: np.ndarray, prompt: str, seed: int) -> FinishedSample:
        """Return the image of an HxW crop of train ids; all noise comes from `seed`."""
        return self.generate_all([SampleSpec(label, prompt, seed)])[0]

    def generate_all(self, specs: Sequence[SampleSpec]) -> list[FinishedSample]:
        """Return the images of up to `config.image_batch` samples, generated together."""
        return [sample.result() for sample in self.start(specs)]

    @torch.no_grad()
    def start(self, specs: Sequence[SampleSpec]) -> list[PendingSample]:
        """Generate as `generate_all` does, but do not wait for an accelerator to decode images."""
        assert 0 < len(specs) <= self.config.image_batch
        group_start = time.perf_counter()
        try:
            finished, tiles_total = self._denoise([self._pad(spec) for spec in specs])
            return [
                self._decode(canvas, spec, tiles_total, group_start, len(specs))
                for canvas, spec in zip(finished, specs, strict=True)
            ]
        except torch.OutOfMemoryError:
            raise UserError(
                f"--vae-tile-px {self.config.vae_tile_px}: the device ran out of memory outside "
                "the tiles; decode in tiles of 512, for example, or use a smaller --crop-px or "
                "--image-batch"
            ) from None

    def _denoise(self, specs: list[SampleSpec]) -> tuple[list[Canvas], int]:
        """Return the denoised canvases of padded samples, and how many tiles a canvas has."""
        denoiser, sizes = self.networks.denoiser, self.sizes
        text = self._encode([spec.prompt for spec in specs])
        generators = [torch.Generator().manual_seed(spec.seed) for spec in specs]

        # Base pass: the whole canvas is one tile
        denoiser.prime(text, sizes.base_px)
        bases = [
            self._base_canvas(number, spec, generator)
            for number, (spec, generator) in enumerate(zip(specs, generators, strict=True))
        ]
        self.base_pass.denoise(bases)
        if not sizes.is_tiled:
            return bases, 0

        # High-resolution pass
        grid = tiles.tile_boxes(
            self._latent(sizes.canvas_px),
            self._latent(sizes.tile_px),
            self._latent(sizes.stride_px),
        )
        denoiser.prime(text, sizes.canvas_px)
        canvases = [
            self._tiled_canvas(number, spec, generator, grid, base.latents)
            for number, (spec, generator, base) in enumerate(
                zip(specs, generators, bases, strict=True)
            )
        ]
        self.tile_pass.denoise(canvases)
        for canvas, base in zip(canvases, bases, strict=True):
            canvas.num_uncorrected += base.num_uncorrected
        return canvases, len(grid)

    def _latent(self, size_px: tuple[int, int]) -> tuple[int, int]:
        factor = self.networks.grid.vae_scale_factor
        return size_px[0] // factor, size_px[1] // factor

    def _pad(self, spec: SampleSpec) -> SampleSpec:
        """Continue the border of the crop to the size that fits the networks' grid."""
        missing = [
            (0, big - own) for big, own in zip(self.sizes.crop_px, spec.label.shape, strict=True)
        ]
        if not any(after for _, after in missing):
            return spec
        source = spec.source
        if source is not None:
            source = np.pad(source, [*missing, (0, 0)], mode="edge")
        return replace(spec, label=np.pad(spec.label, missing, mode="edge"), source=source)

    def _encode(self, prompts: list[str]) -> Conditioning:
        """Return the negative prompt's states and `config.image_batch` prompts', one row each."""
        prompts += prompts[:1] * (self.config.image_batch - len(prompts))
        return self.networks.text.encode([self.config.negative_prompt, *prompts])

    def _base_canvas(self, number: int, spec: SampleSpec, generator: torch.Generator) -> Canvas:
        """Return the canvas of the base pass of sample `number` of a group."""
        size_px = self.sizes.base_px
        size = self._latent(size_px)
        conditions = self._conditions(spec, size_px)
        noise = self._noise(size, generator)
        return self._canvas(number, spec, size_px, noise, conditions, size, [(0, 0)], None)

    def _tiled_canvas(
        self,
        number: int,
        spec: SampleSpec,
        generator: torch.Generator,
        grid: list[tiles.Box],
        base: torch.Tensor,
    ) -> Canvas:
        """Return the canvas of the high-resolution pass; `base`: clean latent of the base pass."""
        size_px = self.sizes.canvas_px
        size, tile = self._latent(size_px), self._latent(self.sizes.tile_px)
        conditions = self._conditions(spec, size_px)
        target = self._reference_latent(base, generator)
        mask = self.rules.held_mask(spec.label, size)
        boxes = tiles.chosen_boxes(grid, tile, mask, self.rules.selection)
        held = torch.from_numpy(mask)[None, None].to(self.networks.device)
        noise = self._noise(size, generator)  # after the noise of the reference latent
        constraint = RegionConstraint(held, target, self.config.fusion, generator)
        return self._canvas(number, spec, size_px, noise, conditions, tile, boxes, constraint)

    def _canvas(
        self,
        number: int,
        spec: SampleSpec,
        size_px: tuple[int, int],
        noise: torch.Tensor,
        conditions: list[torch.Tensor],
        tile: tuple[int, int],
        boxes: list[tiles.Box],
        constraint: RegionConstraint | None,
    ) -> Canvas:
        config = self.config
        return Canvas(
            self.networks.scheduler,
            noise=noise,
            conditions=conditions,
            text_rows=(0, 1 + number),
            tile_weights=tiles.tile_weights(tile, config.tile_weight),
            boxes=boxes,
            constraint=constraint,
            start=self._start_latent(spec, size_px),
            first_step=config.first_step,
            num_cached=config.condition_cache_tiles,
            label_shares=self._label_shares(conditions[0], size_px) if self.correction else None,
        )

    def _label_shares(self, control: torch.Tensor, size_px: tuple[int, int]) -> torch.Tensor:
        """Return the class shares 1x19xhxw of the latent pixels of a canvas, from its control."""
        return label_shares(control, self._latent(size_px)).to(self.networks.device)

    def _conditions(self, spec: SampleSpec, size_px: tuple[int, int]) -> list[torch.Tensor]:
        """Return the condition 1xKxHxW of each ControlNet."""
        control = resize_nearest(spec.label, size_px)
        conditions = [labels.one_hot_control(torch.from_numpy(control)[None])]
        if self.networks.detector:
            assert spec.source is not None
            conditions.append(self.networks.detector(resize_lanczos(spec.source, size_px)))
        return conditions

    def _noise(self, size: tuple[int, int], generator: torch.Generator) -> torch.Tensor:
        channels = self.networks.vae.config.latent_channels
        return torch.randn((1, channels, *size), generator=generator).to(self.networks.device)

    def _start_latent(self, spec: SampleSpec, size_px: tuple[int, int]) -> torch.Tensor | None:
        if self.config.strength == 1:
            return None
        assert spec.source is not None
        return self._encode_image(resize_lanczos(spec.source, size_px))

    def _encode_image(
        self, image: np.ndarray, generator: torch.Generator | None = None
    ) -> torch.Tensor:
        """Return the latent of an image, a random one of its posterior with a generator."""
        pixels = images_to_tensor([image]).to(self.networks.device)
        if generator is None:
            return encode_latents(self.networks.vae, pixels)
        return sample_latents(self.networks.vae, pixels, generator)

    def _reference_latent(self, base: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Decode the base pass, enlarge it by Lanczos and encode it at the canvas size."""
        image = tensor_to_images(decode_latents(self.networks.vae, base))[0]
        enlarged = resize_lanczos(image, self.sizes.canvas_px)
        sampled = self.config.fusion == "reference"
        return self._encode_image(enlarged, generator if sampled else None)

    def _decode(
        self,
        canvas: Canvas,
        spec: SampleSpec,
        tiles_total: int,
        group_start: float,
        group_size: int,
    ) -> PendingSample:
        config = self.config
        num_tiles = len(canvas.boxes) if tiles_total else 0
        num_steps = config.steps - canvas.first_step
        num_corrected = max(0, config.corrected_steps - canvas.first_step)
        transfer_px = 0.0
        if config.color_transfer == "source":
            transfer_px = config.color_transfer_window * spec.label.shape[0]
        return PendingSample(
            spec=spec,
            pixels=decode_latents(self.networks.vae, canvas.latents),
            padded_px=self.sizes.crop_px,
            transfer_px=transfer_px,
            tiles=num_tiles,
            tiles_total=tiles_total,
            evaluations=num_steps * (1 + num_tiles),
            gradients=num_corrected * (1 + num_tiles),
            uncorrected=canvas.num_uncorrected,
            stopwatch=self.stopwatch,
            group_start=group_start,
            group_size=group_size,
        )
