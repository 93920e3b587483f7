"""Shuffled order over the samples of a released set that reads its shards one after the other.

    samples = open_dataset("s3://bucket/set", labelled=True)
    stream = ShardStream(samples, seed=0)
    positions = seeding.batches(first_step, last_step, batch_size, rank, world)
    loader = DataLoader(stream, batch_sampler=list(positions), num_workers=8, collate_fn=list)

Each epoch visits the shards in an order of its own, and shuffles their samples in blocks, as a
buffer of that size would. Position p of the stream is a function of (seed, p) alone. So processes
and workers share out the positions exactly, every sample occurs once in each epoch, and a stopped
training goes on at the position where it was.

segtrain samples with replacement by the shares of its sets, and needs no stream for that: a member
of a shard is one read, wherever it lies. This class is for loops that go through a set by epochs.
"""

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from pipeline.dataset import Sample, read_pair
from pipeline.images import read_image
from pipeline.seeding import numpy_generator
from pipeline.tar_members import find_member


class ShardStream:
    """A map-style dataset without end; its item `position` is a sample of the set, read."""

    def __init__(self, samples: Sequence[Sample], *, seed: int, buffer: int = 1000) -> None:
        """`buffer`: samples that are shuffled among each other; one shard's worth is enough."""
        if not samples or buffer < 1:
            raise ValueError("a stream needs samples, and a buffer of 1 or more")
        self.samples, self.seed, self.buffer = list(samples), seed, buffer
        shards: dict[str, list[int]] = {}
        for number, sample in enumerate(self.samples):
            member = find_member(sample.image)
            shards.setdefault(member.shard if member else "", []).append(number)
        self.shards = [shards[name] for name in sorted(shards)]
        self.order = functools.lru_cache(maxsize=2)(self._order)

    def _order(self, epoch: int) -> np.ndarray:
        """Return the numbers of the samples in the order of an epoch, int64 of their count."""
        turn = numpy_generator(self.seed, "shards", epoch).permutation(len(self.shards))
        numbers = np.concatenate([self.shards[i] for i in turn]).astype(np.int64)
        for block, start in enumerate(range(0, len(numbers), self.buffer)):
            part = numbers[start : start + self.buffer]
            numpy_generator(self.seed, "block", epoch, block).shuffle(part)
        return numbers

    def sample_at(self, position: int) -> Sample:
        """Return the sample at a position, unread; positions go on over all epochs."""
        epoch, rest = divmod(position, len(self.samples))
        return self.samples[self.order(epoch)[rest]]

    def __getitem__(self, position: int) -> dict[str, Any]:
        """Return `id`, `image` HxWx3 uint8 RGB, `label` HxW train ids or None, and `row`."""
        sample = self.sample_at(position)
        if sample.label is None:
            return self._item(sample, read_image(sample.image), None)
        return self._item(sample, *read_pair(sample))

    @staticmethod
    def _item(sample: Sample, image: np.ndarray, label: np.ndarray | None) -> dict[str, Any]:
        return {"id": sample.id, "image": image, "label": label, "row": sample.row}

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in vars(self).items() if k != "order"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self.order = functools.lru_cache(maxsize=2)(self._order)
