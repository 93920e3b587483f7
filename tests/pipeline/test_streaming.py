"""The order of a stream over shards: exact epochs, exact shares, exact resume."""

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from torch.utils.data import DataLoader

from pipeline import release, seeding
from pipeline.dataset import Sample, open_dataset, read_pair
from pipeline.streaming import ShardStream
from pipeline.tar_members import find_member

NUM_SAMPLES = 23


@pytest.fixture(scope="module")
def samples(
    tiny_dataset: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> list[Sample]:
    """The samples of a release of five shards."""
    output = tmp_path_factory.mktemp("release") / "set"
    argv = [tiny_dataset(NUM_SAMPLES, 8, 16), "--output", output, "--shard-samples", 5]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["release.py", *map(str, argv)])
        assert release.main() is None
    return open_dataset(output, labelled=True)


def load(samples: list[Sample], first: int, last: int, *, rank: int, world: int, workers: int):
    """Return the ids that a process draws in steps first..last-1, three samples a step."""
    stream = ShardStream(samples, seed=7, buffer=6)
    positions = list(seeding.batches(first, last, 3, rank, world))
    loader = DataLoader(stream, batch_sampler=positions, num_workers=workers, collate_fn=list)
    return [[item["id"] for item in batch] for batch in loader]


def test_every_epoch_holds_every_sample_once(samples: list[Sample]) -> None:
    stream = ShardStream(samples, seed=0, buffer=6)
    epochs = [
        [stream.sample_at(e * NUM_SAMPLES + i).id for i in range(NUM_SAMPLES)] for e in range(3)
    ]
    for ids in epochs:
        assert sorted(ids) == [s.id for s in samples]
    assert epochs[0] != epochs[1] and epochs[0] != sorted(epochs[0])
    item, sample = stream[4], stream.sample_at(4)
    assert item["row"] == sample.row
    for found, wanted in zip((item["image"], item["label"]), read_pair(sample), strict=True):
        assert np.array_equal(found, wanted)


def test_shards_are_read_one_after_the_other(samples: list[Sample]) -> None:
    stream = ShardStream(samples, seed=0, buffer=5)
    shards = [find_member(stream.sample_at(i).image).shard for i in range(NUM_SAMPLES)]
    last = {shard: max(i for i, s in enumerate(shards) if s == shard) for shard in shards}
    first = {shard: shards.index(shard) for shard in shards}
    open_at_once = [sum(first[s] <= i <= last[s] for s in first) for i in range(NUM_SAMPLES)]
    assert max(open_at_once) <= 3 and len(first) == 5


def test_processes_and_workers_share_out_the_positions(samples: list[Sample]) -> None:
    alone = load(samples, 0, 8, rank=0, world=1, workers=0)
    parts = [load(samples, 0, 4, rank=rank, world=2, workers=2) for rank in (0, 1)]
    together = [batch for pair in zip(*parts, strict=True) for batch in pair]
    assert together == alone
    first_epoch = [key for batch in alone for key in batch][:NUM_SAMPLES]
    assert sorted(first_epoch) == [s.id for s in samples]


def test_a_stopped_loop_goes_on_where_it_was(samples: list[Sample]) -> None:
    whole = load(samples, 0, 10, rank=1, world=2, workers=0)
    assert load(samples, 6, 10, rank=1, world=2, workers=1) == whole[6:]
