"""The settings of a generation run: those of the base model, changed by files and flags."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import tyro

from generation.precision import AUTO
from generation.prompts import Grammar
from generation.setting_groups import CorrectionSettings, RareClasses, SecondControl
from generation.shards import parse_shard
from generation.sizes import CanvasSizes
from generation.tiles import RegionRules
from pipeline.addresses import address_of
from pipeline.base_defaults import with_base_defaults
from pipeline.config import to_mapping
from pipeline.errors import UserError
from pipeline.labels import CLASS_NAMES, shipped
from pipeline.ray_cluster import Demand, check_demand
from pipeline.remote_files import local_path, work_folder
from pipeline.setting_checks import require_between, require_positive, require_seed

DEFAULT_LABEL_MAPS = shipped("pocket_label_maps")
SCHEDULERS: dict[str, tuple[str, dict[str, Any]]] = {
    "ddim": ("DDIMScheduler", {"clip_sample": False}),
    "dpm++2m": ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++"}),
    "unipc": ("UniPCMultistepScheduler", {}),
}
NOT_IN_DIGEST = (
    "n", "output", "plan_file", "shard", "shard_samples", "ray", "ray_workers", "regenerate",
)  # fmt: skip
OF_THE_BASE = (  # settings that a base model may bring along
    "crop_px",
    "rare_classes",
    "controlnet_scale",
    "base_pass_scale",
    "canvas_scale",
    "fusion",
    "tile_px",
    "stride_px",
    "tile_weight",
    "min_region_share",
    "base_pass_classes",
    "tile_selection",
    "steps",
    "scheduler",
    "guidance_scale",
    "guidance_interval",
    "guess_mode_from",
    "negative_prompt",
    "prompt",
)
LIMITS = {  # lowest and highest value; what lies outside is a slip, or would never end
    "n": (1, 1_000_000),
    "shard_samples": (1, 99_999),
    "label_height_px": (0, 16384),
    "controlnet_scale": (0, 10),
    "strength": (0, 1),
    "color_transfer_window": (0, 10),
    "base_pass_scale": (1 / 16, 16),
    "canvas_scale": (1 / 16, 16),
    "min_region_share": (0, 1),
    "steps": (1, 1000),
    "guidance_scale": (0, 1000),
    "guess_mode_from": (0, 1),
    "tile_batch": (1, 4096),
    "image_batch": (1, 1024),
    "condition_cache_tiles": (0, 1_000_000),
    "vae_tile_px": (0, 16384),
    "cpu_threads": (1, 1024),
}


@dataclass(frozen=True)
class Config:
    """All settings of `generation/run.py`, here with the defaults of Stable Diffusion.

    Sizes, steps, guidance and prompt come with the base model, see `default_config`.
    """

    RENAMED: ClassVar[dict[str, str]] = {
        "layouts": "label_maps",
        "layout_pattern": "label_pattern",
        "layout_height_px": "label_height_px",
        "rcs_temperature": "rare_classes.temperature",
        "rcs_min_pixels": "rare_classes.min_pixels",
        "rcs_min_share": "rare_classes.min_share",
        "control_scale": "controlnet_scale",
        "structure": "second_control",
        "details": "color_transfer",
        "details_window": "color_transfer_window",
        "base_scale": "base_pass_scale",
        "fusion_scale": "canvas_scale",
        "large_area": "min_region_share",
        "held_classes": "base_pass_classes",
        "tile_cover": "tile_selection",
        "solver": "scheduler",
        "guide_control_from": "guess_mode_from",
        "cached_tiles": "condition_cache_tiles",
    }

    n: int = 8
    """size of the finished dataset; a larger number later adds to the same folder"""
    seed: int = 0
    """seed of the run; sample i depends on this seed and on i alone"""
    output: Path = Path("runs/generated")
    """dataset folder to write, or an address that fsspec opens (s3://bucket/set), where samples are
    written as tar shards; the same command continues it"""
    regenerate: tuple[Path, ...] = ()
    """dataset folders of one run, for example the output of generation/filter.py: generate their
    rejected samples again, those with the status `withdrawn` or `failed` and those that marks.json
    excludes. Settings are those of that run, noise is new, --output receives these samples only
    """
    shard: str = ""
    """i/n, with i from 0 to n - 1: this process generates part i of n, independently of others"""
    shard_samples: int = 250
    """samples per tar shard if --output is an address; an interrupted shard is generated again"""
    ray: str = ""
    """address of a Ray cluster ('auto', host:port, ray://host:port), or 'local': run one actor per
    GPU there, without GPUs one per `cpu_threads` CPUs; needs the extra `ray`"""
    ray_workers: int = 0
    """actors on the Ray cluster; actors that do not fit wait for further nodes. 0 uses as many as
    fit"""
    plan_file: str = ""
    """with --dry-run: write label map, crop, prompt and seed of every sample to this JSONL file"""

    label_maps: str = ""
    """dataset folder, or folder of label PNGs; empty takes the small set that is shipped"""
    label_pattern: str = "*.png"
    """which files of a plain folder are label maps, for example '*_labelIds.png'"""
    label_space: str = "train_ids"
    """name of a file in datasets/labelspaces, or the path of such a YAML file"""
    label_height_px: int = 0
    """resize every label map (nearest neighbour) to this height before cropping; 0 keeps the native
    size"""
    crop_px: tuple[int, int] = (0, 0)
    """height and width of the label crop and of the image written; 0 0 takes the size that the base
    model was trained on"""
    rare_classes: RareClasses = field(default_factory=RareClasses)
    """rare class sampling (DAFormer): a class ~ softmax((1 - frequency) / temperature), then a
    label map that holds it"""

    base: str = "pocket"
    """base model: 'pocket', a diffusers folder, or a hub id pinned as owner/name@<40-digit
    commit>"""
    unet: str = ""
    """folder of another U-Net; empty takes the base model's own, which is the Style Swap"""
    controlnet: str = "pocket"
    """'pocket', or the folder of a ControlNet with 20 condition channels"""
    controlnet_scale: float = 1.0
    """factor on the residuals of the ControlNet (diffusers: controlnet_conditioning_scale)"""
    second_control: SecondControl = field(default_factory=SecondControl)
    """a second ControlNet, conditioned on the source images of the label maps"""
    strength: float = 1.0
    """below 1, both passes start from the source image, noised for this share of the steps
    (SDEdit; diffusers' image-to-image strength)"""
    color_transfer: Literal["none", "source"] = "none"
    """'source' writes the source image in the generated image's local class colours (Reinhard
    colour transfer) in place of the generated image"""
    color_transfer_window: float = 0.1
    """standard deviation of the Gaussian window of the colour statistics, as a share of the crop's
    height"""

    base_pass_scale: float = 1.0
    """size of the base pass relative to the crop"""
    canvas_scale: float = 2.0
    """size of the high-resolution pass relative to the crop; its image is resized to the crop by
    Lanczos"""
    fusion: Literal["aligned", "reference", "none"] = "aligned"
    """'aligned' pastes regions at the noise level of the tiles; 'reference' is DGInStyle's
    algorithm; 'none' runs the base pass alone"""
    tile_px: tuple[int, int] = (0, 0)
    """height and width of a tile of the high-resolution pass, in its pixels; 0 0 takes the size
    that the base model was trained on"""
    stride_px: tuple[int, int] = (0, 0)
    """distance of neighbouring tiles; the last tile of an axis is aligned to the border"""
    tile_weight: Literal["uniform", "gaussian"] = "uniform"
    """weights with which overlapping tiles are averaged"""
    min_region_share: float = 30000 / 512**2
    """connected components above this share of the crop are kept from the base pass"""
    base_pass_classes: tuple[str, ...] = ()
    """classes whose large components are kept from the base pass; none named means all, as in
    DGInStyle. If the base pass has a lower resolution than the output, exclude classes with fine
    detail such as buildings"""
    tile_selection: Literal["all", "uncovered", "greedy"] = "uncovered"
    """'all' evaluates every tile; 'uncovered' skips tiles that lie wholly in kept regions, with the
    same result; 'greedy' takes few tiles that together cover the rest"""

    steps: int = 20
    """denoising steps of each pass (diffusers: num_inference_steps)"""
    scheduler: Literal["ddim", "dpm++2m", "unipc"] = "dpm++2m"
    """scheduler, built from the base model's own scheduler config"""
    guidance_scale: float = 7.5
    """classifier-free guidance scale; 1 evaluates the prompt alone"""
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    """from which to which share of the steps guidance is applied; the others evaluate the prompt
    alone"""
    correction: CorrectionSettings = field(default_factory=CorrectionSettings)
    """in-sampling correction by a segmentation head on features of the U-Net"""
    guess_mode_from: float = 1.0
    """from this share of the steps on, the unconditional branch runs without ControlNet, so
    guidance also amplifies the label map (guess mode, Zhang et al., ICCV 2023); 1 never does"""
    tile_batch: int = 9
    """largest number of tiles per network call; halved if memory runs out"""
    image_batch: int = 1
    """images generated together: they share the network calls"""
    condition_cache_tiles: int = 256
    """number of tiles per image whose condition embedding is kept; those of further tiles are
    computed at each step"""
    vae_tile_px: int = 0
    """decode and encode larger images in tiles of this size (diffusers' VAE tiling); 0 does not
    tile"""
    precision: Literal["fp32", "fp16", "bf16", "auto"] = "fp32"
    """precision of U-Net, ControlNet and text encoder; scheduler and VAE stay in float32. 'auto'
    measures at the first start of a run whether bf16 is faster than fp32 on this machine; the
    choice is kept in OUTPUT/precision.json and is that of all workers"""
    attention: Literal["native", "xformers"] = "native"
    """attention kernels: PyTorch's own, or those of xformers (an extra)"""
    compile: bool = False
    """compile U-Net and ControlNet together by torch.compile: takes minutes, then runs faster"""
    channels_last: bool = False
    """keep convolutions in channels-last layout, which tensor cores read faster"""
    cpu_threads: int = 1
    """threads of a process without a GPU. The number changes the last bit of a sum, so it is one of
    the settings that define a run; to use all cores, start one process per core"""

    negative_prompt: str = ""
    """prompt of the unconditional branch; naming the source's look leads away from it"""
    prompt: tyro.conf.Suppress[Grammar] = field(default_factory=Grammar)
    """prompt grammar; set it in a YAML file"""

    def __post_init__(self) -> None:
        """Raise `UserError` for numbers out of their range, infinite ones and not-a-numbers."""
        require_seed(self.seed)
        for name, (low, high) in LIMITS.items():
            require_between(self, low, high, name)
        require_positive(self, "guidance_scale", "strength", "color_transfer_window")
        first, last = self.guidance_interval
        if not 0 <= first <= last <= 1:
            raise UserError(
                f"--guidance-interval {first:g} {last:g}: must be two shares in 0..1, in order"
            )
        if unknown := [name for name in self.base_pass_classes if name not in CLASS_NAMES]:
            raise UserError(f"--base-pass-classes {unknown[0]!r}: use {', '.join(CLASS_NAMES)}")
        pattern = Path(self.label_pattern)
        if not pattern.parts or pattern.is_absolute() or ".." in pattern.parts:
            raise UserError(
                f"--label-pattern {self.label_pattern!r}: must be relative to --label-maps and "
                "stay inside it, for example '*_labelIds.png'"
            )

    def check(self) -> None:
        """Raise `UserError` for settings that do not fit each other, without reading any file."""
        self._check_known_sizes()
        if self.fusion == "reference" and self.scheduler != "ddim":
            raise UserError(
                f"--scheduler {self.scheduler}: the 'reference' fusion pastes fresh noise after "
                "each step, which only ddim allows; use --scheduler ddim or --fusion aligned"
            )
        if self.second_control.is_on and not self.second_control.controlnet:
            raise UserError(
                f"--second-control.kind {self.second_control.kind}: needs "
                "--second-control.controlnet, the folder of a 3-channel ControlNet trained for it"
            )
        self.prompt.check()
        parse_shard(self.shard)
        if address_of(self.output) and not self.output_address:
            raise UserError(
                f"--output {self.output}: is on this machine; write {local_path(str(self.output))}"
            )
        if self.regenerate and self.output_address:
            raise UserError(
                f"--regenerate: writes a folder of this machine, --output {self.output} is none; "
                "name a folder, then upload it by pipeline/release.py"
            )
        if self.ray and self.shard:
            raise UserError(
                f"--shard {self.shard}: with --ray {self.ray} the cluster divides the samples; "
                "leave one of the two out"
            )
        if self.precision == AUTO and (self.ray or self.shard or self.output_address):
            raise UserError(
                "--precision auto: is chosen by the first process of an output folder, for those "
                "that share the folder; with --ray, --shard or an address as --output name it: "
                "bf16 or fp32"
            )
        check_demand(Demand(self.ray, self.ray_workers))

    def _check_known_sizes(self) -> None:
        """Raise `UserError` for sizes below 1, and if the base model's own size is not known."""
        names = ("crop_px", "tile_px", "stride_px")
        sizes = {f"--{name.replace('_', '-')}": getattr(self, name) for name in names}
        if unknown := [flag for flag, size in sizes.items() if size == (0, 0)]:
            raise UserError(
                f"{unknown[0]}: the image size of --base {self.base} is not known (sample_size in "
                "its unet/config.json, if it is on this disk); set "
                f"{', '.join(unknown)}"
            )
        for flag, size in sizes.items():
            if min(size) <= 0:
                raise UserError(f"{flag} {size[0]} {size[1]}: both must be 1 or more")

    @property
    def output_address(self) -> str | None:
        """The address of the output, None if it is a folder of this machine."""
        return address_of(self.output) if local_path(str(self.output)) is None else None

    @property
    def label_maps_cache(self) -> Path:
        """The file of this machine that keeps what was measured of the label maps."""
        folder = self.output
        if address := self.output_address:
            folder = work_folder(address, Path("runs/generation_work"))
        return folder / "label_maps.json"

    @property
    def label_maps_folder(self) -> Path:
        """The folder of the label maps."""
        return Path(self.label_maps) if self.label_maps else DEFAULT_LABEL_MAPS

    @property
    def sizes(self) -> CanvasSizes:
        """The sizes of crop, passes and tiles."""
        return CanvasSizes(
            crop_px=self.crop_px,
            base_pass_scale=self.base_pass_scale,
            canvas_scale=self.canvas_scale,
            tile_px=self.tile_px,
            stride_px=self.stride_px,
            is_tiled=self.fusion != "none",
        )

    @property
    def region_rules(self) -> RegionRules:
        """Which regions are kept from the base pass, and which tiles are evaluated."""
        ids = [CLASS_NAMES.index(name) for name in self.base_pass_classes or CLASS_NAMES]
        return RegionRules(self.min_region_share, ids, self.tile_selection, self.fusion)

    @property
    def first_step(self) -> int:
        """The first denoising step of images that start from a source image, see `strength`."""
        return self.steps - max(1, round(self.steps * self.strength))

    @property
    def guess_mode_step(self) -> int:
        """The step from which the unconditional branch runs without ControlNet."""
        return round(self.steps * self.guess_mode_from)

    @property
    def corrected_steps(self) -> int:
        """The number of steps, from the first on, that are corrected."""
        if not self.correction.is_on:
            return 0
        return max(1, round(self.steps * self.correction.steps))

    @property
    def needs_source_images(self) -> bool:
        """Whether the source images of the label maps are used."""
        return self.second_control.is_on or self.strength < 1 or self.color_transfer == "source"


def run_mapping(config: Config) -> dict[str, Any]:
    """Return the settings that define the samples: all but NOT_IN_DIGEST."""
    mapping = to_mapping(config)
    for name in NOT_IN_DIGEST:
        del mapping[name]
    return mapping


default_config = with_base_defaults(Config, "generation", OF_THE_BASE)
