"""The batches of a training: items sampled one by one, or from a cache, on disk or on the device.

All batches of a run are a function of (seed, update, micro-batch, rank), so a resumed run continues
with exactly the next one.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch.utils.data import DataLoader
from tqdm import tqdm

from finetune.cache import SHARD, CropCache, Items, prepare, ranges
from finetune.crops import TrainingItem
from finetune.diffusion import Batch, collate, encode_moments
from finetune.start import Run
from pipeline.latents import images_to_tensor
from pipeline.seeding import SeededSamples, batches, numpy_generator, seed_of
from pipeline.stopping import ignore_stop_signals

Batches = Callable[[int], Iterator[Any]]
"""Gives the micro-batches of this process from update `first` on."""
Sampler = Callable[[np.random.Generator], Any]
"""Returns a random training item; all of its randomness comes from the generator."""


def sampled_batches(run: Run, sample: Sampler, collate: Callable[[list[Any]], Any]) -> Batches:
    """Return batches of the items that `sample` gives one by one, put together by `collate`.

    Each item has its own generator, seeded by its position among all items of the run.
    """
    settings, accelerator = run.training, run.accelerator

    def start(first: int) -> Iterator[Any]:
        positions = batches(
            first * settings.gradient_accumulation,
            settings.steps * settings.gradient_accumulation,
            settings.batch_size,
            accelerator.process_index,
            accelerator.num_processes,
        )
        return iter(
            DataLoader(
                SeededSamples(sample, run.seed),
                batch_sampler=list(positions),
                collate_fn=collate,
                num_workers=settings.workers,
                persistent_workers=settings.workers > 0,
                pin_memory=accelerator.device.type == "cuda",
                worker_init_fn=ignore_stop_signals,
            )
        )

    return start


def crop_batches(
    run: Run,
    vae: AutoencoderKL,
    sample: Callable[[np.random.Generator], TrainingItem],
    *,
    num_cached: int,
    on_device: bool,
    caption_dropout: float = 0.0,
) -> Batches:
    """Return batches of crops for a diffusion training (`finetune.diffusion.Batch`).

    With `num_cached` 0, crops are sampled during the training. Otherwise that many are encoded with
    `vae` before it, and read item by item, or kept on the device. A share of `caption_dropout`
    (0..1) of the captions is replaced by the empty prompt.
    """
    if num_cached:
        cache = prepare(
            run.accelerator,
            run.folder / "cache",
            num_cached,
            lambda item: sample(numpy_generator(run.seed, "cached crop", item)),
            partial(encode_moments, vae),
            workers=run.training.workers,
        )
        if on_device:
            return resident_crops(run, cache, caption_dropout)
        sample = cache.sample

    def sample_with_dropout(rng: np.random.Generator) -> TrainingItem:
        item = sample(rng)
        dropped = caption_dropout and rng.random() < caption_dropout
        return item._replace(caption="") if dropped else item

    return sampled_batches(run, sample_with_dropout, collate)


def resident_batches(
    run: Run, num_items: int, gather: Callable[[torch.Tensor, torch.Generator], Any]
) -> Batches:
    """Return batches of items in the memory of the device: without a loader there is no wait.

    `gather(numbers, generator)` makes a batch of the B sampled item numbers. Numbers and generator
    are on the CPU, so that all kinds of devices use the same ones.
    """

    def start(first: int) -> Iterator[Any]:
        for step in range(first, run.training.steps):
            for micro in range(run.training.gradient_accumulation):
                rank = run.accelerator.process_index
                generator = torch.Generator()
                generator.manual_seed(seed_of(run.seed, "resident batch", step, micro, rank))
                numbers = torch.randint(num_items, (run.training.batch_size,), generator=generator)
                yield gather(numbers, generator)

    return start


def resident_crops(run: Run, cache: CropCache, caption_dropout: float = 0.0) -> Batches:
    """Return batches of a cache held by the device; a share of the captions (0..1) is empty."""
    device = run.accelerator.device
    moments, maps, captions = cache.moments().to(device), cache.maps(), cache.captions()
    maps = None if maps is None else maps.to(device)

    def gather(numbers: torch.Tensor, generator: torch.Generator) -> Batch:
        dropped = torch.rand(len(numbers), generator=generator) < caption_dropout
        chosen = zip(numbers.tolist(), dropped.tolist(), strict=True)
        texts = tuple("" if empty else captions[number] for number, empty in chosen)
        numbers = numbers.to(device, non_blocking=True)
        return moments[numbers], None if maps is None else maps[numbers], texts

    return resident_batches(run, cache.num_items, gather)


def resident_images(
    run: Run, sample: Callable[[np.random.Generator], np.ndarray], num_images: int
) -> Batches:
    """Sample `num_images` images HxWx3 once; return batches of them, Bx3xHxW in [-1, 1].

    Image i is a function of (seed, i). Loader processes share the work; the device holds bytes.
    """
    loader = DataLoader(
        Items(lambda item: sample(numpy_generator(run.seed, "cached crop", item))),
        batch_sampler=ranges(num_images, SHARD),
        num_workers=run.training.workers,
        collate_fn=np.stack,
    )
    hidden = not run.accelerator.is_main_process
    parts = [torch.from_numpy(part) for part in tqdm(loader, desc="crops", disable=hidden)]
    images = torch.cat(parts).to(run.accelerator.device)

    def gather(numbers: torch.Tensor, _: torch.Generator) -> torch.Tensor:
        return images_to_tensor(images[numbers.to(images.device)])

    return resident_batches(run, num_images, gather)
