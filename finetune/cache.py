"""Crops that are drawn and encoded once, so that an update costs the trained networks alone.

Item i is a function of (run settings, i); the moments of its latent are kept, not a sample, so
every use draws fresh latent noise. A latent cannot be cropped or mirrored afterwards (normalisation
and attention see the whole crop), hence whole crops are kept; a few per picture are enough.

    OUTPUT/cache/<first item>.safetensors     moments nx2xCxhxw float16, labels nxHxW uint8
"""

import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch.utils.data import DataLoader
from tqdm import tqdm

from finetune.diffusion import collate, encode_moments
from finetune.loop import Batches, drawn_batches
from finetune.settings import Training
from pipeline import files
from pipeline.errors import UserError
from pipeline.latents import images_to_tensor
from pipeline.seeding import numpy_generator, seed_of

SHARD = 512  # items per file
BATCH = 8  # crops encoded together on a CPU
CUDA_BATCH = 64


class CropCache:
    """The prepared crops, read item by item from mapped files; safe in loader processes."""

    def __init__(self, folder: Path, num_items: int) -> None:
        self.num_items = num_items
        paths = [_path(folder, first) for first in range(0, num_items, SHARD)]
        self._shards = [safe_open(path, framework="pt") for path in paths]
        self._captions = [json.loads(shard.metadata()["captions"]) for shard in self._shards]
        self._labelled = "labels" in self._shards[0].keys()  # noqa: SIM118

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor | None, str]:
        """Return (moments 2xCxhxw float16, label HxW uint8 or None, caption)."""
        shard, place = self._shards[index // SHARD], index % SHARD
        label = shard.get_slice("labels")[place] if self._labelled else None
        return shard.get_slice("moments")[place], label, self._captions[index // SHARD][place]

    def moments(self) -> torch.Tensor:
        """Return the moments of all items, Nx2xCxhxw float16, as one tensor in memory."""
        return torch.cat([shard.get_tensor("moments") for shard in self._shards])

    def maps(self) -> torch.Tensor | None:
        """Return the labels of all items, NxHxW uint8, None if there are none."""
        if not self._labelled:
            return None
        return torch.cat([shard.get_tensor("labels") for shard in self._shards])

    def captions(self) -> list[str]:
        """Return the captions of all items."""
        return [caption for captions in self._captions for caption in captions]

    def draw(self, rng: Any) -> tuple[torch.Tensor, torch.Tensor | None, str]:
        """Return a random item."""
        return self[int(rng.integers(self.num_items))]


def crop_batches(
    accelerator: Accelerator,
    vae: Any,
    draw: Callable[[Any], Any],
    config: Any,
    folder: Path,
    *,
    dropout: float = 0.0,
) -> Batches:
    """Return collated batches of the crops that `draw` makes, as the settings want them.

    Drawn as the training goes, or from `config.cached_crops` prepared ones, which are read item by
    item or kept on the device. A share of `dropout` (0..1) of the captions is empty.
    """
    if config.cached_crops:
        cache = prepare_crops(accelerator, vae, draw, config, folder)
        if config.cache_on_device:
            return resident_crops(accelerator, cache, config.training, config.seed, dropout)
        draw = cache.draw

    def draw_with_dropout(rng: np.random.Generator) -> Any:
        image, label, caption = draw(rng)
        return image, label, "" if dropout and rng.random() < dropout else caption

    return drawn_batches(accelerator, draw_with_dropout, collate, config.training, config.seed)


def prepare_crops(
    accelerator: Accelerator, vae: Any, draw: Callable[[Any], Any], config: Any, folder: Path
) -> CropCache:
    """Write and open the cache of `config.cached_crops` items made with `draw`."""
    return prepare(
        accelerator,
        folder / "cache",
        config.cached_crops,
        lambda item: draw(numpy_generator(config.seed, "cached crop", item)),
        partial(encode_moments, vae),
        workers=config.training.workers,
    )


def resident_batches(
    accelerator: Accelerator,
    num_items: int,
    gather: Callable[[torch.Tensor, torch.Generator], Any],
    settings: Training,
    seed: int,
) -> Batches:
    """Return batches of items that lie in the device's memory: no loader, nothing to wait for.

    `gather(numbers, generator)` makes a batch of the B drawn item numbers. Numbers and generator
    are on the CPU, so that all devices draw alike; both are a function of (seed, update,
    micro-batch, rank).
    """

    def start(first: int) -> Iterator[Any]:
        for step in range(first, settings.steps):
            for micro in range(settings.accumulation):
                rank = accelerator.process_index
                generator = torch.Generator()
                generator.manual_seed(seed_of(seed, "resident batch", step, micro, rank))
                numbers = torch.randint(num_items, (settings.batch_size,), generator=generator)
                yield gather(numbers, generator)

    return start


def resident_crops(
    accelerator: Accelerator, cache: CropCache, settings: Training, seed: int, dropout: float = 0.0
) -> Batches:
    """Return collated batches (moments, labels or None, captions) of a cache held by the device.

    A share of `dropout` (0..1) of the captions is empty.
    """
    device = accelerator.device
    moments, maps, captions = cache.moments().to(device), cache.maps(), cache.captions()
    maps = None if maps is None else maps.to(device)

    def gather(numbers: torch.Tensor, generator: torch.Generator) -> Any:
        dropped = torch.rand(len(numbers), generator=generator) < dropout
        chosen = zip(numbers.tolist(), dropped.tolist(), strict=True)
        texts = tuple("" if gone else captions[number] for number, gone in chosen)
        numbers = numbers.to(device, non_blocking=True)
        return moments[numbers], None if maps is None else maps[numbers], texts

    return resident_batches(accelerator, cache.num_items, gather, settings, seed)


def resident_images(
    accelerator: Accelerator, draw: Callable[[Any], np.ndarray], config: Any
) -> Batches:
    """Draw `config.cached_crops` crops HxWx3 once and return batches of them, Bx3xHxW in [-1, 1].

    Crop i is a function of (seed, i); loader processes share the drawing, the device holds bytes.
    """
    training = config.training
    loader = DataLoader(
        _Items(lambda item: draw(numpy_generator(config.seed, "cached crop", item))),
        batch_sampler=_ranges(config.cached_crops, SHARD),
        num_workers=training.workers,
        collate_fn=np.stack,  # type: ignore[arg-type]
    )
    hidden = not accelerator.is_main_process
    parts = [torch.from_numpy(part) for part in tqdm(loader, desc="crops", disable=hidden)]
    images = torch.cat(parts).to(accelerator.device)

    def gather(numbers: torch.Tensor, _: torch.Generator) -> torch.Tensor:
        return images_to_tensor(images[numbers.to(images.device)])

    return resident_batches(accelerator, config.cached_crops, gather, training, config.seed)


def _ranges(num_items: int, size: int) -> list[range]:
    return [range(start, min(start + size, num_items)) for start in range(0, num_items, size)]


class _Items:
    """A map-style dataset of what `make` returns."""

    def __init__(self, make: Callable[[int], Any]) -> None:
        self.make = make

    def __getitem__(self, index: int) -> Any:
        return self.make(index)


def _path(folder: Path, first: int) -> Path:
    return folder / f"{first:08d}.safetensors"


def prepare(
    accelerator: Accelerator,
    folder: Path,
    num_items: int,
    make: Callable[[int], Any],
    encode: Callable[[list[Any]], torch.Tensor],
    *,
    workers: int = 0,
) -> CropCache:
    """Write the missing files of the cache, dealt out to the processes, and open it.

    `make(i)` returns item i as (picture, label or None, caption); `encode` the moments of pictures.
    """
    if accelerator.is_main_process and folder.is_dir():
        files.sweep_temporaries(folder)
    missing = [first for first in range(0, num_items, SHARD) if not _path(folder, first).exists()]
    accelerator.wait_for_everyone()  # all have listed before any writes
    mine = missing[accelerator.process_index :: accelerator.num_processes]
    size = CUDA_BATCH if accelerator.device.type == "cuda" else BATCH
    batches = [
        list(range(start, min(start + size, first + SHARD, num_items)))
        for first in mine
        for start in range(first, min(first + SHARD, num_items), size)
    ]
    loader = iter(
        DataLoader(
            _Items(make),
            batch_sampler=batches,
            num_workers=workers,
            collate_fn=list,  # type: ignore[arg-type]
        )
    )
    hidden = not accelerator.is_main_process
    for first in tqdm(mine, desc="cache", unit="file", disable=hidden, mininterval=2.0):
        items, moments = [], []
        while len(items) < min(SHARD, num_items - first):
            items += (part := next(loader))
            moments.append(encode([picture for picture, _, _ in part]))
        _write(_path(folder, first), torch.cat(moments), items)
    accelerator.wait_for_everyone()
    return CropCache(folder, num_items)


def _write(path: Path, moments: torch.Tensor, items: list[Any]) -> None:
    _, maps, captions = zip(*items, strict=True)
    tensors = {"moments": moments}
    if maps[0] is not None:
        tensors["labels"] = torch.from_numpy(np.stack(maps))
    try:
        with files.replacing(path) as temporary:
            save_file(tensors, temporary, metadata={"captions": json.dumps(captions)})
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"{path}: not written ({error}); free some space and run the same command again, or "
            "lower --cached-crops"
        ) from None
