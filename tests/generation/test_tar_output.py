"""The loop of a worker that writes tar shards, with invented samples and a store that is slow."""

import os
import signal
import time
from collections.abc import Callable

import numpy as np
import pytest

from generation import tar_output, worker, writer
from generation.samples import FinishedSample, SampleSpec
from pipeline.dataset_writer import encode_sample
from pipeline.remote_files import Store, open_store
from pipeline.tar_set import Shard, TarSet

STOPPED = 128 + signal.SIGTERM
LABEL, IMAGE = np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3), np.uint8)


class SlowSet:
    """Stands for a set behind an address; notes how many samples each shard was committed with."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds, self.committed = seconds, {}

    def commit(self, shard: Shard, samples: list) -> int:
        time.sleep(self.seconds)
        assert shard.number not in self.committed
        self.committed[shard.number] = len(samples)
        return len(samples)


def generate(tar_set: SlowSet, make: Callable[[int], object], n: int = 8) -> int:
    """Run the loop over `n` samples in shards of 4, one at a time."""
    shards = [Shard(first // 4, range(first, first + 4)) for first in range(0, n, 4)]
    saving = tar_output.TarWriter(tar_set, shards)
    return tar_output.generate(lambda indices: [make(*indices)], saving, list(range(n)), 1)


def finished(index: int) -> FinishedSample:
    return FinishedSample(SampleSpec(LABEL, "", 0, index=index), IMAGE)


def test_stop_signal_during_an_upload_commits_all_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    """An upload that outlasts the time that a sample is given after the signal."""
    monkeypatch.setattr(worker, "GRACE_S", 0.05)
    tar_set = SlowSet(0.4)

    def make(index: int) -> FinishedSample:
        if index == 5:
            os.kill(os.getpid(), signal.SIGTERM)
        return finished(index)

    assert generate(tar_set, make) == STOPPED
    assert tar_set.committed == {0: 4, 1: 2}


def test_second_stop_signal_waits_for_the_upload(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.stopping.ECHO_S", 0.0)
    tar_set, commit = SlowSet(0.4), SlowSet.commit

    def stopped_again(shard: Shard, samples: list) -> int:
        if shard.number == 0:
            os.kill(os.getpid(), signal.SIGTERM)
        return commit(tar_set, shard, samples)

    def make(index: int) -> FinishedSample:
        if index == 5:
            os.kill(os.getpid(), signal.SIGTERM)
        return finished(index)

    monkeypatch.setattr(writer, "QUEUE", 8)  # nothing waits for the writer before the signal
    tar_set.commit = stopped_again
    assert generate(tar_set, make) == STOPPED
    assert tar_set.committed == {0: 4, 1: 2}


def test_sample_that_takes_too_long_after_the_signal_is_dropped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(worker, "GRACE_S", 0.05)
    tar_set = SlowSet()

    def make(index: int) -> FinishedSample:
        if index == 5:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(600)
        return finished(index)

    assert generate(tar_set, make) == STOPPED
    assert tar_set.committed == {0: 4, 1: 1}


def test_unusable_images_are_generated_again_before_the_next_samples(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    put, made = writer.WriterThread.put, []

    def put_and_wait(self: writer.WriterThread, sample: FinishedSample) -> None:
        put(self, sample)
        self._queue.join()

    def make(index: int) -> FinishedSample:
        made.append(index)
        spec = SampleSpec(LABEL, "", 0, index=index, retries=made.count(index) - 1)
        return FinishedSample(spec, None if made.count(index) == 1 and index in (1, 7) else IMAGE)

    monkeypatch.setattr(writer.WriterThread, "put", put_and_wait)
    tar_set = SlowSet()
    assert generate(tar_set, make) == 0
    assert made == [0, 1, 1, 2, 3, 4, 5, 6, 7, 7]
    assert tar_set.committed == {0: 4, 1: 4}


def test_worker_that_begins_meanwhile_finds_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another worker looks at the set after each object that the first one writes."""
    store, write = open_store("memory://begun-by-two"), Store.write

    def write_and_look(self: Store, name: str, data: bytes) -> None:
        write(self, name, data)
        TarSet(open_store("memory://begun-by-two"), {"seed": 1}, 4).refuse_other()

    def commit(number: int) -> None:
        sample = encode_sample(4 * number, IMAGE, LABEL, {})
        shard = Shard(number, range(4 * number, 4 * number + 1))
        TarSet(store, {"seed": 1}, 4).commit(shard, [sample])

    monkeypatch.setattr(Store, "write", write_and_look)
    commit(0)
    begun = {"run.json", "classes.json"}
    assert begun < set(store.sizes())
    store.system.rm_file(store.path("classes.json"))  # of a worker killed between the two
    commit(1)
    assert begun < set(store.sizes())
