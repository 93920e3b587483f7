"""Does a generated set rank networks as labelled targets do? Correlation of scores over networks.

A set that does is a stress test: weak conditions show before a target is labelled. Spearman's
coefficient compares ranks, Pearson's values. Both come with an exact or sampled permutation p,
which needs no normal distribution, as networks are few.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.seeding import numpy_generator
from segtrain.evaluation.score_files import Network, Scores
from segtrain.evaluation.summary import NONE, counts_score
from segtrain.evaluation.tables import Table, number

ENOUGH = 8  # networks for a conclusion
PERMUTATIONS = 10_000
ALL = "all"
MEAN = "mean of targets"


@dataclass(frozen=True)
class Correlation:
    """The agreement of two columns of scores."""

    spearman: float | None
    """None where all networks have one score"""
    pearson: float | None
    p_spearman: float | None
    p_pearson: float | None


def network_columns(scores: Scores, network: Network, targets: Sequence[str]) -> dict[str, float]:
    """Return the mIoU of a network on each target and each of its conditions, by "target/name"."""
    found = {}
    for target in targets:
        images, names = network.images[target], scores.classes[target]
        found[f"{target}/{ALL}"] = counts_score(images.total(), 0, names)["miou"]
        for condition, counts in sorted(images.totals.items()) if len(images.totals) > 1 else ():
            found[f"{target}/{condition or NONE}"] = counts_score(counts, 0, names)["miou"]
    return {name: value for name, value in found.items() if value is not None}


def correlate(first: Sequence[float], second: Sequence[float]) -> Correlation:
    """Return the correlations of the scores of N networks on two sets, N at least 3."""
    one, other = np.asarray(first, float), np.asarray(second, float)
    rows = permutations(len(one))
    pearson, p_pearson = _coefficient(one, other, rows)
    spearman, p_spearman = _coefficient(ranks(one), ranks(other), rows)
    return Correlation(spearman, pearson, p_spearman, p_pearson)


def ranks(values: np.ndarray) -> np.ndarray:
    """Return ranks from 1; equal values share the mean of theirs."""
    from scipy.stats import rankdata

    return rankdata(values)


def permutations(length: int) -> np.ndarray:
    """Return all orders of `length` things, BxN, or `PERMUTATIONS` drawn ones where more exist."""
    if math.factorial(length) <= PERMUTATIONS:
        return np.array(list(itertools.permutations(range(length))))
    rng = numpy_generator(0, "permutations", length)
    drawn = rng.permuted(np.tile(np.arange(length), (PERMUTATIONS - 1, 1)), axis=1)
    return np.concatenate([np.arange(length)[None], drawn])


def _coefficient(
    one: np.ndarray, other: np.ndarray, rows: np.ndarray
) -> tuple[float | None, float | None]:
    """Return Pearson's coefficient and its two-sided p over the orders of `rows`."""
    a, b = one - one.mean(), other - other.mean()
    scale = math.sqrt(float((a * a).sum() * (b * b).sum()))
    if not scale:
        return None, None
    value = float((a * b).sum() / scale)
    shuffled = np.abs(b[rows] @ a) / scale
    return value, float((shuffled >= abs(value) - 1e-12).mean())


def correlations(
    scores: Scores, networks: Sequence[Network], generated: Sequence[str], targets: Sequence[str]
) -> dict[str, dict[str, Correlation]]:
    """Return the correlation of each column of the generated sets with each of the targets.

    Columns are whole sets, their conditions, and the mean of the targets.
    """
    left = [network_columns(scores, network, generated) for network in networks]
    right = [network_columns(scores, network, targets) for network in networks]
    for row in right:
        row[MEAN] = float(np.mean([row[f"{target}/{ALL}"] for target in targets]))
    return {
        column: {
            other: correlate([row[column] for row in left], [row[other] for row in right])
            for other in shared(right)
        }
        for column in shared(left)
    }


def shared(rows: Sequence[Mapping[str, float]]) -> list[str]:
    """Return the columns that all networks have a score in."""
    return [name for name in rows[0] if all(name in row for row in rows)]


def correlation_table(found: Mapping[str, Mapping[str, Correlation]]) -> Table:
    """Return Spearman's and Pearson's coefficient with p, one row per pair of columns."""
    rows = [
        [f"{column} with {other}", number(one.spearman, 2), number(one.p_spearman, 3)]
        + [number(one.pearson, 2), number(one.p_pearson, 3)]
        for column, others in found.items()
        for other, one in others.items()
    ]
    header = ["generated with target", "Spearman", "p", "Pearson", "p"]
    return Table("Correlation over networks", header, rows)


def scores_table(
    scores: Scores, networks: Sequence[Network], generated: Sequence[str], targets: Sequence[str]
) -> Table:
    """Return the mIoU of every network in all columns."""
    both = [*generated, *targets]
    found = [network_columns(scores, network, both) for network in networks]
    columns = list(dict.fromkeys(name for row in found for name in row))
    rows = [
        [network.name, *[number(row.get(column)) for column in columns]]
        for network, row in zip(networks, found, strict=True)
    ]
    return Table("mIoU in percent", ["mIoU %", *columns], rows)


def notes_of(number_of_networks: int) -> list[str]:
    """Return what stands below the tables."""
    notes = [
        f"{number_of_networks} networks. p: two-sided, over permutations of the networks; not "
        "corrected for the number of pairs. Networks that share training images or backbone are "
        "not independent."
    ]
    if number_of_networks < ENOUGH:
        notes.insert(
            0,
            f"**Too few networks**: {number_of_networks}, and {ENOUGH} or more are needed before "
            "a correlation says anything.",
        )
    return notes
