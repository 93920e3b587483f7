"""Train a small text-to-image base model from scratch: tokenizer, text encoder and U-Net.

The second half of making a base model of one's own, after `vae.py`. Reads pictures and captions,
never labels. Every picture is encoded once into a few latents of drawn crops, so that an update
costs the U-Net alone.

    accelerate launch finetune/prior.py --data DIR --vae DIR/vae --output DIR
    accelerate launch --num_processes 8 finetune/prior.py --data DIR --vae DIR/vae --output DIR
    python finetune/prior.py --data DIR --vae DIR/vae --output DIR --training.steps 20   # a trial
    python finetune/prior.py --data DIR --vae DIR/vae --init DIR/base --output DIR       # go on

Writes OUTPUT/base, a folder that `StableDiffusionPipeline.from_pretrained` loads.
"""

import sys
from dataclasses import dataclass, field
from pathlib import Path

if sys.path and sys.path[0] == str(Path(__file__).resolve().parent):  # see CONTRIBUTING.md
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from finetune.crops import Crop, draw_image_crop
from finetune.new_networks import check_text_to_image
from finetune.programs import begin, open_sources
from finetune.settings import Training
from pipeline.config import parse
from pipeline.errors import UserError, guard
from pipeline.models import find_base, find_folder


@dataclass(frozen=True)
class Config:
    """Settings of the base model training."""

    data: tuple[str, ...] = ()
    """dataset folders with pictures and captions (`prompt` of each metadata row)"""
    vae: str = ""
    """folder of the trained autoencoder"""
    init: str = ""
    """base model to train further: its tokenizer, text encoder and U-Net; "" starts from scratch"""
    output: str = ""
    """run folder; OUTPUT/base is written"""
    seed: int = 0
    """seed of everything drawn"""
    channels: tuple[int, ...] = (64, 96, 128)
    """U-Net channels per resolution; the first one has no attention"""
    layers: int = 1
    """residual blocks per resolution"""
    heads: int = 4
    """attention heads"""
    text_width: int = 96
    """width of the text encoder and of the cross attention"""
    text_layers: int = 2
    """layers of the text encoder"""
    text_length: int = 32
    """tokens of a prompt, start and end mark included"""
    vocabulary: int = 1200
    """largest size of the vocabulary learned from the captions"""
    caption_dropout: float = 0.1
    """share of samples trained with the empty prompt, for classifier-free guidance"""
    logit_normal: tuple[float, float] | None = None
    """location and scale of logit-normal timesteps, None for uniform ones"""
    crops_per_image: int = 3
    """latents prepared of each picture"""
    cache_on_device: bool = False
    """keep the latents in the device's memory and draw the batches there"""
    holdout: int = 0
    """images at the end of the data that are not trained on; their loss chooses the width of the
    averaged weights where `training.ema_sigma_rel` is given"""
    half_weights: bool = True
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
        )  # fmt: skip
    )


def main() -> int | None:
    config, call = parse(Config, __doc__)
    samples = open_sources(config.data, labelled=False)
    vae_folder = find_folder(config.vae or "vae", "vae")
    if config.holdout >= len(samples):
        raise UserError(f"--holdout {config.holdout}: --data has {len(samples)} images in all")
    init = find_base(config.init) if config.init else None
    accelerator, folder = begin(
        config, call, samples, crop_multiple=lambda: check_text_to_image(config, vae_folder, init),
        vae=("vae", vae_folder), init=("base", init),
    )  # fmt: skip
    if accelerator is None:
        return None

    from functools import partial

    import torch

    from finetune import cache
    from finetune.averages import WIDTHS, choose_width
    from finetune.base_model import (
        TextToImage,
        build_text_to_image,
        draw_previews,
        held_out_loss,
        load_text_to_image,
        resident_latents,
        save_base,
        tokenize,
        train_tokenizer,
    )
    from finetune.diffusion import encode_moments, sample_moments
    from finetune.loop import drawn_batches, train
    from finetune.losses import diffusion_loss, noisy_latents
    from pipeline import files, models, runs
    from pipeline.seeding import numpy_generator

    # Models
    torch.manual_seed(config.seed)
    vae = models.load_network("vae", None, vae_folder)
    vae = vae.requires_grad_(False).to(accelerator.device)
    if init:
        unet, text_encoder, scheduler, tokenizer = load_text_to_image(init)
        if unet.config.in_channels != vae.config.latent_channels:
            raise UserError(
                f"--init {init}: its U-Net takes {unet.config.in_channels} latent channels but "
                f"--vae has {vae.config.latent_channels}; give the autoencoder it was trained with"
            )
    else:
        tokenizer = train_tokenizer([s.caption for s in samples], config)
        unet, text_encoder, scheduler = build_text_to_image(config, vae, tokenizer)

    # Latents and tokens, prepared once
    def make(item):
        i, k = divmod(item, config.crops_per_image)
        rng = numpy_generator(config.seed, "latent crop", i, k)
        return draw_image_crop(rng, samples[i], config.crop), None, samples[i].caption

    num_items = len(samples) * config.crops_per_image
    crops = cache.prepare(
        accelerator, folder / "cache", num_items, make, partial(encode_moments, vae),
        workers=config.training.workers,
    )  # fmt: skip
    captions, empty = tokenize([s.caption for s in samples], tokenizer), tokenize([""], tokenizer)
    num_trained = num_items - config.holdout * config.crops_per_image

    def draw(rng):
        number = int(rng.integers(num_trained))
        dropped = rng.random() < config.caption_dropout
        return crops[number][0], empty[0] if dropped else captions[number // config.crops_per_image]

    def collate(items):
        return torch.stack([x for x, _ in items]), torch.stack([ids for _, ids in items])

    if config.cache_on_device:
        data = resident_latents(accelerator, crops, captions, empty[0], num_trained, config)
    else:
        data = drawn_batches(accelerator, draw, collate, config.training, config.seed)

    def loss_function(model, batch, generator):
        moments, ids = (part.to(accelerator.device) for part in batch)
        latents = sample_moments(moments, generator)
        noisy, target, timesteps = noisy_latents(scheduler, latents, generator, config.logit_normal)
        return diffusion_loss(model(noisy, timesteps, ids), target), {}

    def preview(model, step):
        prompts = [samples[i * len(samples) // 12].caption for i in range(12)]
        draw_previews(
            model, vae, tokenizer, scheduler, prompts, folder / "previews", step,
            config.crop.size_px,
        )  # fmt: skip

    model = train(
        accelerator, TextToImage(unet, text_encoder), data, loss_function, config.training,
        seed=config.seed, folder=folder, preview=preview,
    )  # fmt: skip
    if accelerator.is_main_process:
        if config.holdout and config.training.ema_sigma_rel:
            held = range(num_trained, num_items)
            batch = collate([(crops[i][0], captions[i // config.crops_per_image]) for i in held])
            score = partial(held_out_loss, batch, scheduler, accelerator)
            losses = choose_width(folder, model, WIDTHS, score)
            files.write_json(folder / "averages.json", {"held_out_loss": losses})
        save_base(model, vae, tokenizer, scheduler, folder / "base", half=config.half_weights)
        runs.mark_finished(folder, config.training.steps)
    accelerator.end_training()
    return None


if __name__ == "__main__":
    guard(main)
