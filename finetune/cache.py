"""Crops that are sampled and encoded once, so that an update costs the trained networks alone.

Item i is a function of (run settings, i). The moments of its latent are kept, not a sample, so
every use has fresh latent noise. A latent cannot be cropped or mirrored afterwards (normalisation
and attention see the whole crop), hence whole crops are kept; a few per image are enough.

    OUTPUT/cache/<first item>.safetensors     moments nx2xCxhxw float16, labels nxHxW uint8
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch.utils.data import DataLoader
from tqdm import tqdm

from finetune.crops import TrainingItem
from pipeline import files
from pipeline.errors import UserError

SHARD = 512  # items per file
BATCH = 8  # crops encoded together on a CPU
CUDA_BATCH = 64


class CropCache:
    """Cached crops, read item by item from memory-mapped files; safe in loader processes."""

    def __init__(self, folder: Path, num_items: int) -> None:
        self.num_items = num_items
        paths = [_path(folder, first) for first in range(0, num_items, SHARD)]
        self._shards = [safe_open(path, framework="pt") for path in paths]
        self._captions = [json.loads(shard.metadata()["captions"]) for shard in self._shards]
        self._labelled = "labels" in self._shards[0].keys()  # noqa: SIM118

    def __getitem__(self, index: int) -> TrainingItem:
        """Return an item with moments 2xCxhxw float16 in place of the image."""
        number, row = divmod(index, SHARD)
        shard = self._shards[number]
        label = shard.get_slice("labels")[row] if self._labelled else None
        return TrainingItem(shard.get_slice("moments")[row], label, self._captions[number][row])

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

    def sample(self, rng: np.random.Generator) -> TrainingItem:
        """Return a random item."""
        return self[int(rng.integers(self.num_items))]


def ranges(num_items: int, size: int) -> list[range]:
    """Split the numbers 0..num_items-1 into ranges of `size`; the last may be shorter."""
    return [range(start, min(start + size, num_items)) for start in range(0, num_items, size)]


class Items:
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
    make: Callable[[int], TrainingItem],
    encode: Callable[[list[Any]], torch.Tensor],
    *,
    workers: int = 0,
) -> CropCache:
    """Write the missing files of the cache, shared among the processes, and open it.

    `make(i)` returns item i with its image HxWx3; `encode` the moments of images, nx2xCxhxw.
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
            Items(make),
            batch_sampler=batches,
            num_workers=workers,
            collate_fn=list,
        )
    )
    hidden = not accelerator.is_main_process
    for first in tqdm(mine, desc="cache", unit="file", disable=hidden, mininterval=2.0):
        items: list[Any] = []
        moments: list[torch.Tensor] = []
        while len(items) < min(SHARD, num_items - first):
            items += (part := next(loader))
            moments.append(encode([image for image, _, _ in part]))
        _write(_path(folder, first), torch.cat(moments), items)
    accelerator.wait_for_everyone()
    return CropCache(folder, num_items)


def _write(path: Path, moments: torch.Tensor, items: list[TrainingItem]) -> None:
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
