"""The sampler: base pass, reference latent, tiled high-resolution pass, image.

Networks are called in fixed shapes (padded with zeros), so a sample's bytes do not depend on what
else is made. Noise comes from CPU generators in float32, one per sample; solver arithmetic stays
in float32.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from generation import tiles
from generation.sampler.canvas import Canvas, TileBatcher
from generation.sampler.color_transfer import transfer_details
from generation.sampler.fusion import RegionConstraint
from generation.sampler.networks import Networks
from generation.settings import Config
from generation.sizes import padded_crop
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


@dataclass(frozen=True)
class Request:
    """What to draw. `label`: HxW train ids of the crop; `source`: HxWx3 image, where needed."""

    label: np.ndarray
    prompt: str
    seed: int
    source: np.ndarray | None = None


@dataclass
class GeneratedImage:
    """A finished sample. `image`: HxWx3 uint8 of the crop's size, None if it is unusable."""

    image: np.ndarray | None
    problem: str
    tiles: int
    tiles_total: int
    evaluations: int
    """Network evaluations of one image or tile, each with its guidance pair."""


@dataclass(frozen=True)
class PendingImage:
    """An image whose pixels may still be on their way from the device."""

    pixels: torch.Tensor
    """1x3xHxW in [-1, 1], of the canvas."""
    padded_px: tuple[int, int]
    request: Request
    """As it was asked for, without padding."""
    details_px: float
    """Window of the transfer of the source's details, 0 for none."""
    counts: tuple[int, int, int]
    """The image's tiles, tiles in all and evaluations."""

    def picture(self) -> GeneratedImage:
        """Wait for the pixels; check them and bring them to the size of the crop."""
        pixels = self.pixels.cpu()
        image, problem = tensor_to_images(pixels)[0], ""
        if not bool(torch.isfinite(pixels).all()):
            problem = "the image is not finite"
        elif int(image.max()) - int(image.min()) < 2:
            problem = "the image is constant"
        height, width = self.request.label.shape
        image = resize_lanczos(image, self.padded_px)[:height, :width]
        if self.details_px and not problem:
            assert self.request.source is not None
            label, source = self.request.label, self.request.source
            image = transfer_details(image, source, label, self.details_px)
        return GeneratedImage(None if problem else image, problem, *self.counts)


class Sampler:
    """Draws images for label crops, `config.image_batch` at a time."""

    def __init__(self, networks: Networks, config: Config) -> None:
        self.networks, self.config = networks, config
        self.crop_px = padded_crop(config, networks.grid)
        self.base_px = self._scaled(config.base_pass_scale)
        self.canvas_px = self._scaled(config.canvas_scale)
        self.base_pass = TileBatcher(networks.denoiser, config, config.image_batch)
        self.tile_pass = TileBatcher(networks.denoiser, config, config.tile_batch)

    def draw(self, label: np.ndarray, prompt: str, seed: int) -> GeneratedImage:
        """Return the image of an HxW crop of train ids; all noise comes from `seed`."""
        return self.generate_all([Request(label, prompt, seed)])[0]

    def generate_all(self, requests: Sequence[Request]) -> list[GeneratedImage]:
        """Return the images of up to `config.image_batch` requests, drawn together."""
        return [drawing.picture() for drawing in self.start(requests)]

    @torch.no_grad()
    def start(self, requests: Sequence[Request]) -> list[PendingImage]:
        """Draw as `generate_all` does, but do not wait for an accelerator to decode the images."""
        assert 0 < len(requests) <= self.config.image_batch
        try:
            return self._start_all(requests)
        except torch.OutOfMemoryError:
            raise UserError(
                f"--vae-tile-px {self.config.vae_tile_px}: the device ran out of memory outside "
                "the tiles; decode in tiles of 512, say, or use smaller --crop-px or --image-batch"
            ) from None

    def _start_all(self, requests: Sequence[Request]) -> list[PendingImage]:
        config, networks = self.config, self.networks
        asked, requests = requests, [self._pad(request) for request in requests]
        text = self._encode([request.prompt for request in requests])
        generators = [torch.Generator().manual_seed(request.seed) for request in requests]

        # Base pass
        size = self._latent(self.base_px)
        networks.denoiser.prime(text, self.base_px)
        bases = [
            self._canvas(place, request, generator, size_px=self.base_px, tile=size, grid=[(0, 0)])
            for place, (request, generator) in enumerate(zip(requests, generators, strict=True))
        ]
        self.base_pass.denoise(bases)
        finished, grid = bases, []

        # High-resolution pass
        if config.fusion != "none":
            tile = self._latent(config.tile_px)
            grid = tiles.tile_boxes(
                self._latent(self.canvas_px), tile, self._latent(config.stride_px)
            )
            networks.denoiser.prime(text, self.canvas_px)
            finished = [
                self._canvas(
                    place,
                    request,
                    generator,
                    size_px=self.canvas_px,
                    tile=tile,
                    grid=grid,
                    base=bases[place].latents,
                )
                for place, (request, generator) in enumerate(zip(requests, generators, strict=True))
            ]
            self.tile_pass.denoise(finished)
        return [
            self._decode(canvas, request, len(grid))
            for canvas, request in zip(finished, asked, strict=True)
        ]

    def _scaled(self, scale: float) -> tuple[int, int]:
        return round(self.crop_px[0] * scale), round(self.crop_px[1] * scale)

    def _latent(self, size_px: tuple[int, int]) -> tuple[int, int]:
        factor = self.networks.grid.vae_scale_factor
        return size_px[0] // factor, size_px[1] // factor

    def _pad(self, request: Request) -> Request:
        """Continue the border of the crop to the size that fits the networks' grid."""
        missing = [
            (0, big - own) for big, own in zip(self.crop_px, request.label.shape, strict=True)
        ]
        if not any(after for _, after in missing):
            return request
        source = request.source
        if source is not None:
            source = np.pad(source, [*missing, (0, 0)], mode="edge")
        label = np.pad(request.label, missing, mode="edge")
        return Request(label, request.prompt, request.seed, source)

    def _encode(self, prompts: list[str]) -> Conditioning:
        """Return the negative prompt's states and `config.image_batch` prompts', one row each."""
        prompts += prompts[:1] * (self.config.image_batch - len(prompts))
        return self.networks.text.encode([self.config.negative_prompt, *prompts])

    def _canvas(
        self,
        place: int,
        request: Request,
        generator: torch.Generator,
        *,
        size_px: tuple[int, int],
        tile: tuple[int, int],
        grid: list[tiles.Box],
        base: torch.Tensor | None = None,
    ) -> Canvas:
        """Set up a pass; `base` is the clean latent of the base pass, if there was one."""
        networks, config = self.networks, self.config
        size, paste, boxes = self._latent(size_px), None, grid
        control = resize_nearest(request.label, size_px)
        conditions = [labels.one_hot_control(torch.from_numpy(control)[None])]
        if networks.detector:
            assert request.source is not None
            conditions.append(networks.detector(resize_lanczos(request.source, size_px)))
        if base is not None:
            target = self._reference_latent(base, generator)
            mask = tiles.held_mask(
                request.label,
                size,
                min_share=config.min_region_share,
                classes=config.base_pass_ids,
                fusion=config.fusion,
            )
            boxes = tiles.chosen_boxes(grid, tile, mask, config.tile_selection)
            held = torch.from_numpy(mask)[None, None].to(networks.device)
        noise = self._noise(size, generator)
        if base is not None:
            paste = RegionConstraint(held, target, config.fusion, generator)
        return Canvas(
            config,
            networks.scheduler,
            noise=noise,
            conditions=conditions,
            rows=(0, 1 + place),
            tile=tile,
            boxes=boxes,
            paste=paste,
            start=self._start_latent(request, size_px),
        )

    def _noise(self, size: tuple[int, int], generator: torch.Generator) -> torch.Tensor:
        channels = self.networks.vae.config.latent_channels
        return torch.randn((1, channels, *size), generator=generator).to(self.networks.device)

    def _start_latent(self, request: Request, size_px: tuple[int, int]) -> torch.Tensor | None:
        if self.config.strength == 1:
            return None
        assert request.source is not None
        return self._encode_picture(resize_lanczos(request.source, size_px))

    def _encode_picture(
        self, picture: np.ndarray, generator: torch.Generator | None = None
    ) -> torch.Tensor:
        """Return the latent of an image, a random one of its posterior with a generator."""
        pixels = images_to_tensor([picture]).to(self.networks.device)
        if generator is None:
            return encode_latents(self.networks.vae, pixels)
        return sample_latents(self.networks.vae, pixels, generator)

    def _reference_latent(self, base: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Decode the base pass, enlarge it by Lanczos and encode it at the canvas size."""
        picture = tensor_to_images(decode_latents(self.networks.vae, base))[0]
        enlarged = resize_lanczos(picture, self.canvas_px)
        sampled = self.config.fusion == "reference"
        return self._encode_picture(enlarged, generator if sampled else None)

    def _decode(self, canvas: Canvas, request: Request, tiles_total: int) -> PendingImage:
        config = self.config
        pixels = decode_latents(self.networks.vae, canvas.latents)
        count = len(canvas.boxes) if tiles_total else 0
        counts = (count, tiles_total, (config.steps - canvas.first) * (1 + count))
        window_px = config.color_transfer_window * request.label.shape[0]
        details_px = window_px if config.color_transfer == "source" else 0.0
        return PendingImage(pixels, self.crop_px, request, details_px, counts)
