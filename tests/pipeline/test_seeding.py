"""Randomness is a pure function of integers."""

import numpy as np

from pipeline.seeding import SeededSamples, batches, numpy_generator, seed_of


def test_seeds_differ_by_every_part_and_never_change() -> None:
    keys = [(0, "noise", 0), (1, "noise", 0), (0, "crop", 0), (0, "noise", 1)]
    seeds = [seed_of(s, purpose, i) for s, purpose, i in keys]
    assert len(set(seeds)) == len(keys) and all(0 <= s < 2**63 for s in seeds)
    assert seeds == [seed_of(s, purpose, i) for s, purpose, i in keys]


def test_generators_do_not_disturb_each_other() -> None:
    first = numpy_generator(3, "noise", 5).random(4)
    numpy_generator(3, "noise", 4).random(100)
    np.random.default_rng(0).random()
    assert np.array_equal(first, numpy_generator(3, "noise", 5).random(4))


def test_batches_of_all_ranks_cover_every_position_once() -> None:
    whole = sorted(p for batch in batches(0, 4, 6, 0, 1) for p in batch)
    split = sorted(p for r in range(3) for batch in batches(0, 4, 2, r, 3) for p in batch)
    assert whole == split == list(range(24))


def test_resumed_batches_continue_where_the_run_stopped() -> None:
    whole = list(batches(0, 5, 2, 1, 2))
    assert list(batches(0, 3, 2, 1, 2)) + list(batches(3, 5, 2, 1, 2)) == whole


def test_random_samples_do_not_depend_on_order() -> None:
    samples = SeededSamples(lambda rng: float(rng.random()), seed=7)
    forward = [samples[i] for i in range(5)]
    assert [samples[i] for i in reversed(range(5))][::-1] == forward
    assert len(set(forward)) == 5
