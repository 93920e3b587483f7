"""Text encoder and U-Net of a base model, trained on cached latents and captions."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler
from transformers import CLIPTokenizer

from finetune.averages import WIDTHS, choose_width
from finetune.base_model import TextToImage, make_pipeline, save_base, write_preview_sheet
from finetune.cache import CropCache, prepare
from finetune.crops import TrainingItem, sample_image_crop
from finetune.data import Batches, resident_batches, sampled_batches
from finetune.diffusion import encode_moments, sample_moments
from finetune.loop import Loss, Task
from finetune.losses import LogitNormal, diffusion_loss, noisy_latents
from finetune.settings import Crop
from finetune.start import Run
from finetune.tokenizer import tokenize
from pipeline import files
from pipeline.dataset import Sample
from pipeline.seeding import numpy_generator

HELD_OUT_TIMES = LogitNormal(0.0, 1.4)  # the whole schedule, whatever trains
HELD_OUT_BATCH = 64
NUM_PREVIEWS = 12

TokenBatch = tuple[torch.Tensor, torch.Tensor]
"""Moments Bx2xCxhxw and token ids BxL."""


@dataclass
class CaptionedLatents:
    """Cached latents of images and the token ids of their captions.

    Item i belongs to image i // `crops_per_image`. The first `num_trained` items are trained on.
    """

    crops: CropCache
    captions: torch.Tensor
    """token ids, NxL"""
    empty: torch.Tensor
    """token ids of the empty prompt, L"""
    crops_per_image: int
    num_trained: int
    caption_dropout: float
    """share of items (0..1) that get the empty prompt"""

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return moments 2xCxhxw and token ids L of an item."""
        return self.crops[index].image, self.captions[index // self.crops_per_image]

    def sample(self, rng: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        """Return a random item to train on."""
        moments, ids = self[int(rng.integers(self.num_trained))]
        return moments, self.empty if rng.random() < self.caption_dropout else ids

    def held_out(self) -> TokenBatch:
        """Return the items that are not trained on as one batch."""
        return collate([self[i] for i in range(self.num_trained, self.crops.num_items)])

    def batches(self, run: Run, *, on_device: bool) -> Batches:
        """Return batches of random items, read from files or held by the device."""
        if not on_device:
            return sampled_batches(run, self.sample, collate)
        device = run.accelerator.device
        moments, captions = self.crops.moments().to(device), self.captions.to(device)
        empty = self.empty.to(device)

        def gather(numbers: torch.Tensor, generator: torch.Generator) -> TokenBatch:
            dropped = torch.rand(len(numbers), generator=generator) < self.caption_dropout
            numbers, dropped = (part.to(device, non_blocking=True) for part in (numbers, dropped))
            ids = captions[numbers // self.crops_per_image]
            return moments[numbers], torch.where(dropped[:, None], empty, ids)

        return resident_batches(run, self.num_trained, gather)


def collate(items: list[tuple[torch.Tensor, torch.Tensor]]) -> TokenBatch:
    """Stack items to a batch."""
    moments, ids = zip(*items, strict=True)
    return torch.stack(moments), torch.stack(ids)


def prepare_latents(
    run: Run,
    vae: AutoencoderKL,
    tokenizer: CLIPTokenizer,
    samples: list[Sample],
    crop: Crop,
    *,
    crops_per_image: int,
    num_held_out: int,
    caption_dropout: float,
) -> CaptionedLatents:
    """Encode `crops_per_image` crops of each sample once; the last `num_held_out` are held out."""

    def make(item: int) -> TrainingItem:
        index, repeat = divmod(item, crops_per_image)
        rng = numpy_generator(run.seed, "latent crop", index, repeat)
        image = sample_image_crop(rng, samples[index], crop)
        return TrainingItem(image, None, samples[index].caption)

    num_items = len(samples) * crops_per_image
    crops = prepare(
        run.accelerator,
        run.folder / "cache",
        num_items,
        make,
        partial(encode_moments, vae),
        workers=run.training.workers,
    )
    return CaptionedLatents(
        crops,
        tokenize([sample.caption for sample in samples], tokenizer),
        tokenize([""], tokenizer)[0],
        crops_per_image,
        num_items - num_held_out * crops_per_image,
        caption_dropout,
    )


class TextToImageTask(Task):
    """Trains text encoder and U-Net of a base model.

    `logit_normal` is the distribution of the timesteps, None for uniform ones; the previews are
    generated from `prompts`, at a size of `crop_px`.
    """

    model: TextToImage

    def __init__(
        self,
        run: Run,
        model: TextToImage,
        vae: AutoencoderKL,
        tokenizer: CLIPTokenizer,
        scheduler: DDIMScheduler,
        latents: CaptionedLatents,
        *,
        on_device: bool,
        logit_normal: LogitNormal | None,
        prompts: list[str],
        crop_px: tuple[int, int],
        save_fp16: bool,
    ) -> None:
        self.run, self.model, self.vae = run, model, vae
        self.tokenizer, self.scheduler = tokenizer, scheduler
        self.latents, self.batches = latents, latents.batches(run, on_device=on_device)
        self.logit_normal, self.save_fp16 = logit_normal, save_fp16
        self.prompts, self.crop_px = prompts, crop_px

    def loss(
        self, model: torch.nn.Module, batch: TokenBatch, generator: torch.Generator, *, step: int
    ) -> Loss:
        """Return the denoising loss."""
        moments, ids = (part.to(self.run.accelerator.device) for part in batch)
        latents = sample_moments(moments, generator)
        noisy, target, timesteps = noisy_latents(
            self.scheduler, latents, generator, self.logit_normal
        )
        return Loss(diffusion_loss(model(noisy, timesteps, ids), target))

    def preview(self, weights: Any, step: int) -> dict[str, float]:
        """Write a sheet of images generated from captions of the data."""
        pipeline = make_pipeline(weights, self.vae, self.tokenizer, self.scheduler)
        path = self.run.folder / "previews" / f"step-{step:08d}.png"
        write_preview_sheet(path, pipeline, self.prompts, self.crop_px)
        return {}

    def save(self, weights: Any, folder: Path) -> None:
        """Write folder/base; choose the width of the averages by the held-out loss before."""
        held_out = self.latents.num_trained < self.latents.crops.num_items
        if held_out and self.run.training.ema_sigma_rel:
            score = partial(self._held_out_loss, self.latents.held_out())
            losses = choose_width(folder, weights, WIDTHS, score)
            files.write_json(folder / "averages.json", {"held_out_loss": losses})
        save_base(
            weights, self.vae, self.tokenizer, self.scheduler, folder / "base", half=self.save_fp16
        )

    @torch.no_grad()
    def _held_out_loss(self, batch: TokenBatch, model: torch.nn.Module) -> float:
        """Return the mean loss on a batch.

        Noise and timesteps are the same at each call, so that losses of several weights compare.
        """
        accelerator, scheduler = self.run.accelerator, self.scheduler
        total, count = 0.0, 0
        generator = torch.Generator(device=accelerator.device)
        for start in range(0, len(batch[0]), HELD_OUT_BATCH):
            part = [tensor[start : start + HELD_OUT_BATCH] for tensor in batch]
            moments, ids = (tensor.to(accelerator.device) for tensor in part)
            generator.manual_seed(start)
            latents = sample_moments(moments, generator)
            noisy, target, timesteps = noisy_latents(scheduler, latents, generator, HELD_OUT_TIMES)
            with accelerator.autocast():
                total += float(diffusion_loss(model(noisy, timesteps, ids), target)) * len(latents)
            count += len(latents)
        return total / count


def spread_prompts(samples: list[Sample]) -> list[str]:
    """Return the captions of samples that are spread evenly over the data, for previews."""
    count = len(samples)
    return [samples[i * count // NUM_PREVIEWS].caption for i in range(NUM_PREVIEWS)]
