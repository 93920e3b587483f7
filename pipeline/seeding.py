"""Randomness as a pure function of integers.

Nothing samples from a global stream: sample i of a run, or step k of a training, seeds its own
generators from (seed, purpose, index). So no result depends on batch composition, worker or
process count, order or restarts, and resuming needs no saved generator state.
"""

import zlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np


def seed_of(seed: int, purpose: str, *indices: int) -> int:
    """Return a 63-bit seed for `purpose` at `indices` of the run seeded by `seed`."""
    keys = [seed, zlib.crc32(purpose.encode()), *indices]
    state = np.random.SeedSequence(keys).generate_state(2, np.uint32)
    return (int(state[0]) << 31) ^ int(state[1])


def numpy_generator(seed: int, purpose: str, *indices: int) -> np.random.Generator:
    """Return the numpy generator for `purpose` at `indices`."""
    return np.random.Generator(np.random.PCG64(seed_of(seed, purpose, *indices)))


class SeededSamples:
    """A map-style dataset whose item `position` is sampled by its own generator.

    `sample(rng)` returns one training sample. Positions number all samples of a run, over all
    processes, so a resumed run continues with exactly the next one.
    """

    def __init__(self, sample: Callable[[np.random.Generator], Any], seed: int) -> None:
        self.sample, self.seed = sample, seed

    def __getitem__(self, position: int) -> Any:
        return self.sample(numpy_generator(self.seed, "sample", position))


def batches(
    first_step: int, last_step: int, batch_size: int, rank: int, world: int
) -> Iterator[list[int]]:
    """Yield the positions of each batch of `rank`, for steps first_step..last_step-1."""
    for step in range(first_step, last_step):
        start = (step * world + rank) * batch_size
        yield list(range(start, start + batch_size))
