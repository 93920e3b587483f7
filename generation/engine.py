"""The sampler: base pass, reference latent, tiled high-resolution pass, picture.

One sample at a time. Tiles go through the networks in calls of a fixed shape (padded with
zeros), so a sample's bytes do not depend on what else is made. Noise comes from CPU generators in
float32 and solver arithmetic stays in float32.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image

from generation import tiles
from generation.fusion import Paste, guided, noise_levels
from generation.settings import SCHEDULERS, Config, check_grid
from pipeline import labels, models
from pipeline.errors import UserError
from pipeline.text import Conditioning, PromptEncoder

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass
class Networks:
    """The frozen networks on their device, and the solver of the run."""

    scheduler: Any
    """Prototype with its timesteps set; every pass works on a copy."""
    unet: Any
    controlnet: Any
    embed_control: Any
    """The ControlNet's condition encoder, taken out so that it runs once per tile."""
    vae: Any
    text: PromptEncoder
    device: torch.device
    dtype: torch.dtype
    latent_px: int


@dataclass
class Picture:
    """A finished sample. `image`: HxWx3 uint8 of the crop's size, None if it is unusable."""

    image: np.ndarray | None
    problem: str
    tiles: int
    tiles_total: int
    evaluations: int
    """Network evaluations of one picture or tile, each with its guidance pair."""


def load_networks(config: Config, device: torch.device) -> Networks:
    """Load all networks of a run onto `device`."""
    base = models.find_base(config.base)
    dtype = DTYPES[config.precision]
    text = PromptEncoder(base, device, dtype)
    text.load()
    if config.unet:
        folder = models.find_folder(config.unet)
        unet = models.load_component(str(folder), "unet", subfolder=None)
    else:
        unet = models.load_component(base, "unet")
    folder = models.find_folder(config.controlnet)
    controlnet = models.load_component(str(folder), "controlnet", subfolder=None)
    vae = models.load_component(base, "vae")
    latent_px = models.latent_factor(vae)
    check_grid(config, latent_px, latent_px * 2 ** (len(unet.config.block_out_channels) - 1))
    for module in (unet, controlnet):
        module.to(device).requires_grad_(False).eval()
        if dtype != torch.float32:
            module.to(dtype)
    vae.to(device).requires_grad_(False).eval()
    embed_control = controlnet.controlnet_cond_embedding
    controlnet.controlnet_cond_embedding = torch.nn.Identity()  # receives finished embeddings
    return Networks(
        scheduler=build_scheduler(config, base),
        unet=unet, controlnet=controlnet, embed_control=embed_control, vae=vae, text=text,
        device=device, dtype=dtype, latent_px=latent_px,
    )  # fmt: skip


def build_scheduler(config: Config, base: str) -> Any:
    """Build the solver from the base's own scheduler config, with its timesteps set."""
    class_name, changes = SCHEDULERS[config.solver]
    scheduler = models.load_scheduler(base, class_name, **changes)
    scheduler.set_timesteps(config.steps)
    return scheduler


class Pass:
    """One denoising pass over a canvas of one or more tiles, in latent pixels.

    `control`: 1x20xHxW float32 in pixels. `text`: of (negative, prompt), or the prompt alone
    without guidance.
    """

    def __init__(
        self, networks: Networks, config: Config, *, control: torch.Tensor, text: Conditioning,
        tile: tuple[int, int], boxes: list[tiles.Box], batch: int,
    ) -> None:  # fmt: skip
        self.networks, self.config, self.text = networks, config, text
        self.tile, self.boxes, self.batch = tile, boxes, batch
        self.tile_px = (tile[0] * networks.latent_px, tile[1] * networks.latent_px)
        self.weight = torch.from_numpy(tiles.tile_weights(tile, config.tile_weight))
        self.weight = self.weight.to(networks.device)
        self.embeddings = [self._embed(control, box) for box in boxes]

    def _embed(self, control: torch.Tensor, box: tiles.Box) -> torch.Tensor:
        px = self.networks.latent_px
        top, left = box[0] * px, box[1] * px
        part = control[..., top : top + self.tile_px[0], left : left + self.tile_px[1]]
        return self.networks.embed_control(part.to(self.networks.device, self.networks.dtype))

    def _evaluate(
        self, latents: torch.Tensor, embeddings: torch.Tensor, timestep: torch.Tensor
    ) -> torch.Tensor:
        """Return the guided float32 prediction for BxCxhxw tiles at one timestep."""
        nets, halves, size = self.networks, self.text.states.shape[0], latents.shape[0]
        sample = latents.to(nets.dtype).repeat(halves, 1, 1, 1)
        repeated = self.text.map(lambda states: states.repeat_interleave(size, dim=0))
        text = repeated.arguments(self.tile_px)
        down, mid = nets.controlnet(
            sample, timestep, **text,
            controlnet_cond=embeddings.repeat(halves, 1, 1, 1),
            conditioning_scale=self.config.control_scale, return_dict=False,
        )  # fmt: skip
        output = nets.unet(
            sample, timestep, **text,
            down_block_additional_residuals=down, mid_block_additional_residual=mid,
            return_dict=False,
        )[0].float()  # fmt: skip
        if halves == 1:
            return output
        negative, positive = output.chunk(2)
        return guided(negative, positive, self.config.guidance_scale, self.config.guidance_rescale)

    def predict(self, latents: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        """Return the weighted mean of all tiles' predictions, 1xCxhxw; 0 where no tile lies."""
        total = torch.zeros_like(latents)
        weights = torch.zeros_like(latents[:, :1])
        height, width = self.tile
        for first in range(0, len(self.boxes), self.batch):
            boxes = self.boxes[first : first + self.batch]
            views = [latents[0, :, t : t + height, x : x + width] for t, x in boxes]
            embeddings = [e[0] for e in self.embeddings[first : first + self.batch]]
            missing = self.batch - len(boxes)
            views += [torch.zeros_like(views[0])] * missing
            embeddings += [torch.zeros_like(embeddings[0])] * missing
            outputs = self._evaluate(torch.stack(views), torch.stack(embeddings), timestep)
            for (top, left), output in zip(boxes, outputs, strict=False):
                window = (..., slice(top, top + height), slice(left, left + width))
                total[window] += self.weight * output
                weights[window] += self.weight
        return torch.where(weights > 0, total / weights.clamp(min=1e-12), 0)

    def run(self, noise: torch.Tensor, paste: Paste | None = None) -> torch.Tensor:
        """Denoise 1xCxhxw standard normal `noise` to clean scaled latents."""
        scheduler = copy.deepcopy(self.networks.scheduler)
        levels = noise_levels(scheduler)
        latents = noise * float(scheduler.init_noise_sigma)
        for step, timestep in enumerate(scheduler.timesteps):
            at = timestep.to(latents.device)
            prediction = self.predict(scheduler.scale_model_input(latents, timestep), at)
            if paste:
                prediction = paste.before_step(
                    prediction, latents, levels[step], scheduler.config.prediction_type
                )
            latents = scheduler.step(prediction, timestep, latents, return_dict=False)[0]
            if paste:
                latents = paste.after_step(latents, scheduler, step)
        return latents


class Sampler:
    """Draws one picture for one label crop."""

    def __init__(self, networks: Networks, config: Config) -> None:
        self.networks, self.config = networks, config
        self.before_prompt = [config.negative_prompt] if config.guidance_scale != 1 else []

    @torch.no_grad()
    def draw(self, label: np.ndarray, prompt: str, seed: int) -> Picture:
        """Return the picture of an HxW crop of train ids; all noise comes from `seed`."""
        generator = torch.Generator().manual_seed(seed)
        text = self.networks.text.encode([*self.before_prompt, prompt])
        latents = self._base(label, text, generator)
        count, total = 0, 0
        if self.config.fusion != "none":
            latents, count, total = self._fuse(label, text, latents, generator)
        decoded = models.decode_latents(self.networks.vae, latents)
        finite = bool(torch.isfinite(decoded).all())
        image = models.tensor_to_images(decoded)[0] if finite else None
        problem = "" if finite else "the picture is not finite"
        if image is not None and int(image.max()) - int(image.min()) < 2:
            image, problem = None, "the picture is constant"
        if image is not None:
            image = resize_lanczos(image, self.config.crop_px)
        return Picture(image, problem, count, total, self.config.steps * (1 + count))

    def _control(self, label: np.ndarray, size: tuple[int, int]) -> torch.Tensor:
        resized = tiles.resize_nearest(label, size)
        return labels.one_hot_control(torch.from_numpy(resized)[None])

    def _noise(self, size: tuple[int, int], generator: torch.Generator) -> torch.Tensor:
        channels = self.networks.vae.config.latent_channels
        return torch.randn((1, channels, *size), generator=generator).to(self.networks.device)

    def _base(
        self, label: np.ndarray, text: Conditioning, generator: torch.Generator
    ) -> torch.Tensor:
        size_px = self.config.scaled(self.config.base_scale)
        size = self._latent(size_px)
        base = Pass(
            self.networks, self.config, control=self._control(label, size_px), text=text,
            tile=size, boxes=[(0, 0)], batch=1,
        )  # fmt: skip
        return base.run(self._noise(size, generator))

    def _latent(self, size_px: tuple[int, int]) -> tuple[int, int]:
        return size_px[0] // self.networks.latent_px, size_px[1] // self.networks.latent_px

    def _reference_latent(
        self, base_latents: torch.Tensor, size_px: tuple[int, int], generator: torch.Generator
    ) -> torch.Tensor:
        """Decode the base pass, enlarge it by Lanczos and encode it at the canvas size."""
        picture = models.tensor_to_images(models.decode_latents(self.networks.vae, base_latents))[0]
        enlarged = models.images_to_tensor([resize_lanczos(picture, size_px)])
        enlarged = enlarged.to(self.networks.device)
        if self.config.fusion == "reference":
            return models.sample_latents(self.networks.vae, enlarged, generator)
        return models.encode_latents(self.networks.vae, enlarged)

    def _fuse(
        self, label: np.ndarray, text: Conditioning, base_latents: torch.Tensor,
        generator: torch.Generator,
    ) -> tuple[torch.Tensor, int, int]:  # fmt: skip
        """Return (canvas latents, tiles evaluated, tiles of the grid)."""
        config = self.config
        size_px = config.scaled(config.fusion_scale)
        size, tile = self._latent(size_px), self._latent(config.tile_px)
        target = self._reference_latent(base_latents, size_px, generator)
        mask = tiles.large_components(label, config.large_area)
        mask = tiles.resize_nearest(mask, size)
        grid = tiles.tile_boxes(size, tile, self._latent(config.stride_px))
        boxes = tiles.needed_boxes(grid, tile, mask) if config.skip_covered_tiles else grid
        canvas = Pass(
            self.networks, config, control=self._control(label, size_px), text=text,
            tile=tile, boxes=boxes, batch=config.tile_batch,
        )  # fmt: skip
        held = torch.from_numpy(mask)[None, None].to(self.networks.device)
        noise = self._noise(size, generator)
        paste = Paste(held, target, config.fusion, generator)
        return canvas.run(noise, paste), len(boxes), len(grid)


def resize_lanczos(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize an HxWx3 uint8 picture to `size` (height, width)."""
    if image.shape[:2] == tuple(size):
        return image
    resized = Image.fromarray(image).resize((size[1], size[0]), Image.Resampling.LANCZOS)
    return np.array(resized)


def memory_errors(call: Callable[[], Any], config: Config) -> Any:
    """Run `call`; running out of device memory becomes a `UserError` with the remedy."""
    try:
        return call()
    except torch.OutOfMemoryError:
        raise UserError(
            f"--tile-batch {config.tile_batch}: the device ran out of memory; lower it, or use "
            "--precision bf16"
        ) from None
