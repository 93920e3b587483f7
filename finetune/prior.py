"""Train a small text-to-image base model from scratch: tokenizer, text encoder and U-Net.

The second step of training a new base model, after `vae.py`. Reads images and captions, never
labels. Crops of all images are encoded once, so an update runs only text encoder and U-Net.

    accelerate launch finetune/prior.py --data DIR --vae DIR/vae --output DIR
    accelerate launch --num_processes 8 finetune/prior.py --data DIR --vae DIR/vae --output DIR
    python finetune/prior.py --data DIR --vae DIR/vae --output DIR --training.steps 20   # a trial
    python finetune/prior.py --data DIR --vae DIR/vae --init DIR/base --output DIR       # further

Writes OUTPUT/base, a folder that `StableDiffusionPipeline.from_pretrained` loads.
"""

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

if sys.path and sys.path[0] == str(Path(__file__).resolve().parent):  # see CONTRIBUTING.md
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from finetune.network_sizes import TextToImageSizes
from finetune.settings import Crop, RunSettings, Training
from finetune.start import Run, open_samples, require_crop_multiple, start_run
from pipeline.config import parse
from pipeline.dataset import Sample
from pipeline.errors import UserError, guard
from pipeline.model_files import read_config
from pipeline.models import find_base, find_folder
from pipeline.setting_checks import require_between
from pipeline.size_grid import size_grid

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, DDIMScheduler
    from transformers import CLIPTokenizer

    from finetune.base_model import TextToImage


@dataclass(frozen=True)
class Config(TextToImageSizes, RunSettings):
    """Settings of the base model training."""

    RENAMED: ClassVar[dict[str, str]] = {"half_weights": "save_fp16"}

    data: tuple[str, ...] = ()
    """dataset folders with images and captions (`prompt` of each metadata row)"""
    vae: str | None = None
    """folder of the trained autoencoder"""
    init: str | None = None
    """base model whose tokenizer, text encoder and U-Net are trained further; None starts from
    scratch"""
    output: Path | None = None
    """run folder; OUTPUT/base is written"""
    caption_dropout: float = 0.1
    """share of samples trained with the empty prompt, for classifier-free guidance"""
    logit_normal: tuple[float, float] | None = None
    """location and scale of logit-normal timesteps, None for uniform ones"""
    uniform_share: float = 0.0
    """share of the timesteps that are uniform, with --logit-normal. A text encoder that is trained
    from scratch learns the looks at high noise, so leave out --logit-normal at first"""
    crops_per_image: int = 3
    """crops of each image that are encoded"""
    cache_on_device: bool = False
    """keep the latents in the memory of the device and sample the batches there"""
    holdout: int = 0
    """images at the end of the data that are not trained on; with `training.ema_sigma_rel`, their
    loss selects the width of the averaged weights"""
    save_fp16: bool = True
    """save U-Net and autoencoder weights as float16"""
    crop: Crop = field(default_factory=lambda: Crop((64, 128), (0.5, 0.5, 0.5, 0.75, 1.0)))
    training: Training = field(
        default_factory=lambda: Training(
            steps=3000,
            batch_size=16,
            learning_rate=6e-4,
            warmup_steps=100,
            schedule="cosine",
            ema_decay=0.999,
            checkpoint_interval=250,
        )
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        require_between(self, 0, 1, "caption_dropout", "uniform_share")
        require_between(self, 1, 2**16, "crops_per_image")
        require_between(self, 0, float("inf"), "holdout")
        if self.logit_normal and not self.logit_normal[1] > 0:
            location, scale = self.logit_normal
            raise UserError(f"--logit-normal {location:g} {scale:g}: the scale must be above 0")

    def check(self) -> None:
        """Raise `UserError` for settings that do not fit each other."""
        if not self.init:
            self.check_multiples()
        if self.uniform_share and not self.logit_normal:
            raise UserError(
                f"--uniform-share {self.uniform_share:g}: all timesteps are uniform already; give "
                "--logit-normal as well, or leave it out"
            )
        if not self.vae:
            raise UserError("--vae: no folder given; name the autoencoder from finetune/vae.py")


def crop_multiple(config: Config, vae: Path, init: str | None) -> int:
    """Return what the sides of crops must be multiples of, in pixels."""
    channels = config.channels
    if init:
        channels = read_config(Path(init) / "unet", "unet")["block_out_channels"]
    latent_levels = len(read_config(vae, "vae")["block_out_channels"])
    return size_grid(latent_levels, len(channels)).size_multiple


def main() -> int | None:
    """Check settings and inputs, then import torch and train."""
    config, call = parse(Config, __doc__)
    config.check()
    samples = open_samples(config.data, labelled=False)
    vae_folder = find_folder(str(config.vae), "vae")
    if config.holdout >= len(samples):
        raise UserError(f"--holdout {config.holdout}: --data has {len(samples)} images in all")
    init = find_base(config.init) if config.init else None
    multiple = crop_multiple(config, vae_folder, init)
    require_crop_multiple(config.crop, multiple, "for networks of these levels")
    run = start_run(config, call, samples, vae=("vae", vae_folder), init=("base", init))
    if run is not None:
        fit(config, run, vae_folder, init, samples)
    return None


def fit(
    config: Config, run: Run, vae_folder: Path, init: str | None, samples: list[Sample]
) -> None:
    """Train text encoder and U-Net of an open run."""
    import torch

    from finetune.loop import train
    from finetune.losses import LogitNormal
    from finetune.tasks.text_to_image import TextToImageTask, prepare_latents, spread_prompts
    from pipeline.models import load_network

    # Models
    torch.manual_seed(config.seed)
    vae = load_network("vae", None, vae_folder)
    vae = vae.requires_grad_(False).to(run.accelerator.device)
    model, scheduler, tokenizer = make_networks(config, vae, init, samples)

    # Data
    latents = prepare_latents(
        run,
        vae,
        tokenizer,
        samples,
        config.crop,
        crops_per_image=config.crops_per_image,
        num_held_out=config.holdout,
        caption_dropout=config.caption_dropout,
    )

    # Training
    timesteps = None
    if config.logit_normal:
        timesteps = LogitNormal(*config.logit_normal, config.uniform_share)
    task = TextToImageTask(
        run,
        model,
        vae,
        tokenizer,
        scheduler,
        latents,
        on_device=config.cache_on_device,
        logit_normal=timesteps,
        prompts=spread_prompts(samples),
        crop_px=config.crop.size_px,
        save_fp16=config.save_fp16,
    )
    train(run, task)


def make_networks(
    config: Config, vae: "AutoencoderKL", init: str | None, samples: list[Sample]
) -> "tuple[TextToImage, DDIMScheduler, CLIPTokenizer]":
    """Load the networks, scheduler and tokenizer of `init`, or build new ones."""
    from finetune.base_model import build_text_to_image, load_text_to_image
    from finetune.tokenizer import train_tokenizer

    if not init:
        captions = [sample.caption for sample in samples]
        tokenizer = train_tokenizer(captions, config.vocabulary, config.text_length)
        model, scheduler = build_text_to_image(config, config.crop.size_px, vae, tokenizer)
        return model, scheduler, tokenizer
    model, scheduler, tokenizer = load_text_to_image(init)
    if model.unet.config.in_channels != vae.config.latent_channels:
        raise UserError(
            f"--init {init}: its U-Net takes {model.unet.config.in_channels} latent channels but "
            f"--vae has {vae.config.latent_channels}; give the autoencoder it was trained with"
        )
    return model, scheduler, tokenizer


if __name__ == "__main__":
    guard(main)
