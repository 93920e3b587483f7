"""Crops that are drawn and encoded once, so that an update costs the trained networks alone.

Item i is a function of (run settings, i); the moments of its latent are kept, not a sample, so
every use draws fresh latent noise. A latent cannot be cropped or mirrored afterwards (normalisation
and attention see the whole crop), hence whole crops are kept; a few per picture are enough.

    OUTPUT/cache/<first item>.safetensors     moments nx2xCxhxw float16, labels nxHxW uint8
"""

import json
from collections.abc import Callable
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

from finetune.batches import encode_moments
from pipeline import files
from pipeline.errors import UserError
from pipeline.seeding import numpy_generator

SHARD = 512  # items per file
BATCH = 8  # crops encoded together


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

    def draw(self, rng: Any) -> tuple[torch.Tensor, torch.Tensor | None, str]:
        """Return a random item."""
        return self[int(rng.integers(self.num_items))]


def open_crops(
    accelerator: Accelerator, vae: Any, draw: Callable[[Any], Any], config: Any, folder: Path
) -> Callable[[Any], Any]:
    """Return `draw` itself, or draws from a cache of `config.cached_crops` items made with it."""
    if not config.cached_crops:
        return draw
    cache = prepare(
        accelerator, folder / "cache", config.cached_crops,
        lambda item: draw(numpy_generator(config.seed, "cached crop", item)),
        partial(encode_moments, vae), workers=config.training.workers,
    )  # fmt: skip
    return cache.draw


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
    batches = [
        list(range(start, min(start + BATCH, first + SHARD, num_items)))
        for first in mine
        for start in range(first, min(first + SHARD, num_items), BATCH)
    ]
    loader = iter(
        DataLoader(
            _Items(make),
            batch_sampler=batches,
            num_workers=workers,
            collate_fn=list,  # type: ignore[arg-type]
        )  # fmt: skip
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
