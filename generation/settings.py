"""The settings of a generation run: those of the base model, changed by files and flags."""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import tyro

from generation.prompts import Grammar
from pipeline.base_defaults import with_base_defaults
from pipeline.config import LARGEST, require_between, require_positive, to_mapping
from pipeline.errors import UserError
from pipeline.images import MAX_PIXELS
from pipeline.labels import CLASS_NAMES, shipped

DEFAULT_LAYOUTS = shipped("pocket_layouts")
SCHEDULERS = {
    "ddim": ("DDIMScheduler", {"clip_sample": False}),
    "dpm++2m": ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++"}),
    "unipc": ("UniPCMultistepScheduler", {}),
}
NOT_IN_DIGEST = ("n", "output", "plan_file")
OF_THE_BASE = (  # settings that a base model may bring along
    "crop_px", "rcs_min_pixels", "control_scale", "base_scale", "fusion_scale", "fusion",
    "tile_px", "stride_px", "tile_weight", "large_area", "held_classes", "tile_cover", "steps",
    "solver", "guidance_scale", "guidance_interval", "guidance_rescale", "guide_control_from",
    "negative_prompt", "prompt",
)  # fmt: skip
LIMITS = {  # lowest and highest value; what lies outside is a slip, or would never end
    "n": (1, 1_000_000), "seed": (0, LARGEST), "layout_height_px": (0, 16384),
    "rcs_temperature": (0, 1000), "rcs_min_pixels": (0, MAX_PIXELS), "rcs_min_share": (0, 1),
    "control_scale": (0, 10), "strength": (0, 1), "details_window": (0, 10),
    "base_scale": (1 / 16, 16), "fusion_scale": (1 / 16, 16), "large_area": (0, 1),
    "steps": (1, 1000), "guidance_scale": (0, 1000), "guidance_rescale": (0, 1),
    "guide_control_from": (0, 1), "tile_batch": (1, 4096), "image_batch": (1, 1024),
    "cached_tiles": (0, 1_000_000), "vae_tile_px": (0, 16384), "cpu_threads": (1, 1024),
}  # fmt: skip
MIN_TEMPERATURE = 1e-6  # below it the softmax overflows
MAX_TILES = 100_000  # of one image


@dataclass(frozen=True)
class Structure:
    """A second ControlNet that sees the structure of the source picture."""

    kind: Literal["none", "canny", "depth", "soft_edge", "line"] = "none"
    """canny needs nothing more; the others need the extra `controlnet-aux`."""
    controlnet: str = ""
    """Folder of a 3-channel ControlNet for this kind."""
    scale: float = 0.5
    """Factor on its residuals."""
    detector: str = "lllyasviel/Annotators@982e7edaec38759d914a963c48c4726685de7d96"
    """The detector's weights: a folder, or a hub id pinned as owner/name@<40-digit commit>."""
    canny_thresholds: tuple[float, float] = (100.0, 200.0)
    """Lower and upper gradient threshold of canny, for 8-bit grey values."""


@dataclass(frozen=True)
class Config:
    """All settings of `generation/run.py`, here with the defaults of Stable Diffusion.

    Sizes, steps, guidance and words come with the base model, see `default_config`.
    """

    n: int = 8
    """Size of the finished set; a larger number later adds to the same folder."""
    seed: int = 0
    """Seed of the run; sample i depends on it and on i alone."""
    output: Path = Path("runs/generated")
    """Dataset folder to write. The same command continues it."""
    plan_file: str = ""
    """With --dry-run: write label, crop, prompt and seed of every sample to this JSONL file."""

    layouts: str = ""
    """Dataset folder or folder of label PNGs; empty is the small set shipped with Streetforge."""
    layout_pattern: str = "*.png"
    """Which files of a plain folder are labels, for example '*_labelIds.png'."""
    label_space: str = "train_ids"
    """Name of a file in datasets/labelspaces, or the path of such a YAML."""
    layout_height_px: int = 0
    """Resize every layout (nearest) to this height before cropping; 0 keeps the native size."""
    crop_px: tuple[int, int] = (0, 0)
    """Height and width of the label crop, which is the size of the image written; 0 0: none known,
    otherwise the size that the base was trained on."""
    rcs_temperature: float = 0.01
    """Rare class sampling: class ~ softmax((1 - frequency) / T); 0 draws layouts evenly."""
    rcs_min_pixels: int = 3000
    """A layout serves a class if it has more pixels of it than this (after resizing)."""
    rcs_min_share: float = 0.01
    """Crops are redrawn (10 tries) until the class covers more than this share of the crop."""

    base: str = "pocket"
    """'pocket', a diffusers folder, or a hub id pinned as owner/name@<40-digit commit>."""
    unet: str = ""
    """Folder of another U-Net; empty is the base's own, which is the Style Swap."""
    controlnet: str = "pocket"
    """'pocket' or the folder of a 20-channel ControlNet."""
    control_scale: float = 1.0
    """Factor on the ControlNet's residuals."""
    structure: Structure = field(default_factory=Structure)
    """A second control, taken from the source pictures of the label maps."""
    strength: float = 1.0
    """Below 1 both passes start from the source picture, noised for this share of the steps."""
    details: Literal["generated", "source"] = "generated"
    """'source': the picture drawn gives each class its colours, the source picture its details."""
    details_window: float = 0.1
    """Standard deviation of the window in which colours are compared, in heights of the crop."""

    base_scale: float = 1.0
    """Size of the base pass relative to the crop."""
    fusion_scale: float = 2.0
    """Size of the high-resolution pass relative to the crop; Lanczos-resized to the crop."""
    fusion: Literal["aligned", "reference", "none"] = "aligned"
    """'aligned': paste on the tiles' own noise level; 'reference': DGInStyle; 'none': base only."""
    tile_px: tuple[int, int] = (0, 0)
    """Height and width of a tile of the high-resolution pass, in pixels of that pass: the size that
    the base was trained on."""
    stride_px: tuple[int, int] = (0, 0)
    """Distance of neighbouring tiles; the last tile of an axis is aligned to the border."""
    tile_weight: Literal["uniform", "gaussian"] = "uniform"
    """How overlapping tiles are averaged."""
    large_area: float = 30000 / 512**2
    """A connected component above this share of the crop is kept from the base pass."""
    held_classes: tuple[str, ...] = ()
    """Classes whose large components are kept; none named means all, as in DGInStyle. Where the
    base pass is coarser than the picture, leave out what has details: buildings have windows."""
    tile_cover: Literal["grid", "needed", "adaptive"] = "needed"
    """'grid': all tiles; 'needed': those not wholly in kept regions, with the same result;
    'adaptive': as few of them as cover everything else."""

    steps: int = 20
    """Denoising steps of each pass."""
    solver: Literal["ddim", "dpm++2m", "unipc"] = "dpm++2m"
    """Solver, built from the base's own scheduler config."""
    guidance_scale: float = 7.5
    """Classifier-free guidance; 1 evaluates the prompt alone."""
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    """Share of the steps (from, to) that are guided; the others evaluate the prompt alone."""
    guidance_rescale: float = 0.0
    """Share of the guided prediction rescaled to the contrast of the unguided one (0..1)."""
    guide_control_from: float = 1.0
    """After this share of the steps the other half of the guidance goes without control, so that
    guidance strengthens the label map as well as the prompt (from 0 on: the guess mode of
    ControlNet, Zhang et al., ICCV 2023). 1 never does."""
    tile_batch: int = 9
    """Most tiles per network call; halved if memory runs out."""
    image_batch: int = 1
    """Pictures drawn together: they share the calls of the tiles, and of the base pass."""
    cached_tiles: int = 256
    """Condition embeddings kept per picture; those of further tiles are made at each step."""
    vae_tile_px: int = 0
    """Decode and encode larger pictures in tiles of this size; 0 takes them whole."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Precision of U-Net, ControlNet and text encoder; solver and VAE stay in float32."""
    attention: Literal["native", "xformers"] = "native"
    """Attention kernels: PyTorch's own, or those of xformers (an extra)."""
    compile: bool = False
    """Compile U-Net and ControlNet together with torch.compile; takes minutes, then is faster."""
    channels_last: bool = False
    """Keep convolutions in channels-last layout, which tensor cores read faster."""
    cpu_threads: int = 1
    """Threads of a process without a GPU. It changes the last bit of a sum, so it belongs to the
    settings; to use all cores start one process per core, which is faster as well."""

    negative_prompt: str = ""
    """Prompt of the other half of the guidance; naming the source's own look keeps it out."""
    prompt: tyro.conf.Suppress[Grammar] = field(default_factory=Grammar)
    """Prompt grammar; set it in a YAML file."""

    @property
    def layouts_folder(self) -> Path:
        """The folder of the label maps."""
        return Path(self.layouts) if self.layouts else DEFAULT_LAYOUTS

    def scaled(self, scale: float) -> tuple[int, int]:
        """Return the crop's height and width in pixels of a pass at `scale`."""
        return round(self.crop_px[0] * scale), round(self.crop_px[1] * scale)

    @property
    def held_ids(self) -> list[int]:
        """The train ids of `held_classes`."""
        return [CLASS_NAMES.index(name) for name in self.held_classes or CLASS_NAMES]

    @property
    def needs_pictures(self) -> bool:
        """Whether the source pictures of the label maps are used."""
        return self.structure.kind != "none" or self.strength < 1 or self.details == "source"


def run_mapping(config: Config) -> dict[str, Any]:
    """Return the settings that define the samples: all but NOT_IN_DIGEST."""
    mapping = to_mapping(config)
    for name in NOT_IN_DIGEST:
        del mapping[name]
    return mapping


default_config = with_base_defaults(Config, "generation", OF_THE_BASE)


def check(config: Config) -> None:
    """Raise `UserError` for settings that cannot work, without reading any file."""
    check_numbers(config)
    check_known_size(config)
    if unknown := [name for name in config.held_classes if name not in CLASS_NAMES]:
        raise UserError(f"--held-classes {unknown[0]!r}: use {', '.join(CLASS_NAMES)}")
    if config.fusion == "reference" and config.solver != "ddim":
        raise UserError(
            f"--solver {config.solver}: the 'reference' fusion pastes fresh noise after each step, "
            "which only ddim allows; use --solver ddim or --fusion aligned"
        )
    if config.structure.kind != "none" and not config.structure.controlnet:
        raise UserError(
            f"--structure.kind {config.structure.kind}: needs --structure.controlnet, the folder "
            "of a 3-channel ControlNet trained for it"
        )
    pattern = Path(config.layout_pattern)
    if not pattern.parts or pattern.is_absolute() or ".." in pattern.parts:
        raise UserError(
            f"--layout-pattern {config.layout_pattern!r}: must be relative to --layouts and stay "
            "inside it, '*_labelIds.png' say"
        )
    config.prompt.check()
    check_canvas(config)


def check_numbers(config: Config) -> None:
    """Raise `UserError` for numbers out of their range, infinite ones and such as are none."""
    for name, (low, high) in LIMITS.items():
        require_between(config, low, high, name)
    require_positive(config, "guidance_scale", "strength", "details_window")
    if 0 < config.rcs_temperature < MIN_TEMPERATURE:
        raise UserError(
            f"--rcs-temperature {config.rcs_temperature:g}: must be 0, or {MIN_TEMPERATURE:g} or "
            "more"
        )
    first, last = config.guidance_interval
    if not 0 <= first <= last <= 1:
        raise UserError(
            f"--guidance-interval {first:g} {last:g}: must be two shares in 0..1, in order"
        )
    require_between(config.structure, 0, 10, "scale", prefix="structure.")
    low, high = config.structure.canny_thresholds
    if not 0 <= low <= high < math.inf:
        raise UserError(
            f"--structure.canny-thresholds {low:g} {high:g}: must be two numbers of 0 or more, in "
            "order"
        )


def check_known_size(config: Config) -> None:
    """Raise `UserError` for sizes below 1, and if the size that a base draws at is not known."""
    names = ("crop_px", "tile_px", "stride_px")
    sizes = {f"--{name.replace('_', '-')}": getattr(config, name) for name in names}
    if unknown := [flag for flag, size in sizes.items() if size == (0, 0)]:
        raise UserError(
            f"{unknown[0]}: the size that --base {config.base} draws at is not known (a "
            "sample_size in its unet/config.json would tell, on this disk); set "
            f"{', '.join(unknown)}"
        )
    for flag, size in sizes.items():
        if min(size) <= 0:
            raise UserError(f"{flag} {size[0]} {size[1]}: both must be 1 or more")


def check_canvas(config: Config) -> None:
    """Raise `UserError` unless both passes are of a size that can be drawn, in tiles that fit."""
    for name in ("base_scale", "fusion_scale"):
        height, width = config.scaled(getattr(config, name))
        if height * width > MAX_PIXELS:
            raise UserError(
                f"--crop-px {config.crop_px[0]} {config.crop_px[1]}: {height}x{width} px with "
                f"--{name.replace('_', '-')} are more than {MAX_PIXELS}; make one of them smaller"
            )
    if config.fusion == "none":
        return
    canvas, tiles = config.scaled(config.fusion_scale), 1
    for axis, name in enumerate(("height", "width")):
        if config.tile_px[axis] > canvas[axis]:
            raise UserError(
                f"--tile-px {config.tile_px}: tile {name} exceeds the {canvas[axis]} px of the "
                "high-resolution pass; make tiles smaller or --fusion-scale larger"
            )
        if config.stride_px[axis] > config.tile_px[axis]:
            raise UserError(
                f"--stride-px {config.stride_px}: {name} exceeds the tile's {config.tile_px[axis]}"
                " px, which leaves gaps; make it at most the tile"
            )
        tiles *= 1 + -(-(canvas[axis] - config.tile_px[axis]) // config.stride_px[axis])
    if tiles > MAX_TILES:
        raise UserError(
            f"--stride-px {config.stride_px}: cuts an image into {tiles} tiles, more than "
            f"{MAX_TILES}; make it larger"
        )


def check_grid(config: Config, latent_px: int, unit: int) -> None:
    """Raise `UserError` unless tiles and strides fit the model's grid; canvases are padded to it.

    `latent_px`: picture pixels per latent pixel. `unit`: picture pixels per pixel of the U-Net's
    deepest level; what the U-Net sees must be a multiple of it.
    """
    smallest = unit  # below it nothing is left in the U-Net's deepest level
    if min(config.crop_px) < smallest:
        raise UserError(
            f"--crop-px {config.crop_px[0]} {config.crop_px[1]}: both must be {smallest} or more "
            "for this base model"
        )
    # Tiles of the autoencoder overlap by a quarter; other sizes would not meet where they should.
    if config.vae_tile_px % (4 * latent_px):
        raise UserError(
            f"--vae-tile-px {config.vae_tile_px}: must be 0 or a multiple of {4 * latent_px} for "
            "this base model, 512 say"
        )
    if config.fusion == "none":
        return
    sizes = {
        "--tile-px: a tile": (config.tile_px, unit),
        "--stride-px: the stride": (config.stride_px, latent_px),
    }
    for name, (size, multiple) in sizes.items():
        if size[0] % multiple or size[1] % multiple:
            raise UserError(
                f"{name} is {size[0]}x{size[1]} px, but height and width must be multiples of "
                f"{multiple} for this base model"
            )


def padded_crop(config: Config, latent_px: int, unit: int) -> tuple[int, int]:
    """Return the height and width to which label crops are padded, the crop's own if it fits.

    The smallest ones for which the base pass is a multiple of `unit` and the high-resolution pass
    of `latent_px` pixels (see `check_grid`).
    """

    def padded(length: int) -> int:
        while (
            round(length * config.base_scale) % unit
            or round(length * config.base_scale) < unit
            or round(length * config.fusion_scale) % latent_px
        ):
            length += 1
        return length

    return padded(config.crop_px[0]), padded(config.crop_px[1])
