"""Arms side by side: means and spread over seeds, and paired differences to a baseline."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from segtrain.evaluation import bootstrap
from segtrain.evaluation.published import AVERAGES, Group, PublishedRow, average
from segtrain.evaluation.score_files import Network, Scores
from segtrain.evaluation.score_tables import selection_notes
from segtrain.evaluation.summary import NONE, counts_score
from segtrain.evaluation.tables import Table, interval, number

Values = dict[str, float]  # mIoU in percent by column
MEAN = "mean"


@dataclass(frozen=True)
class Comparison:
    """Networks in arms on the targets that all of them share."""

    scores: Scores
    arms: Mapping[str, Sequence[Network]]
    targets: Sequence[str]
    baseline: str
    resamples: int = bootstrap.RESAMPLES
    seed: int = 0

    @cached_property
    def columns(self) -> list[str]:
        """Targets, then the averages of the field if all their parts are there, else the mean."""
        datasets = {self.scores.datasets[target] for target in self.targets}
        averages = [name for name, parts in AVERAGES.items() if datasets >= set(parts)]
        return [*self.targets, *(averages or [MEAN])]

    def with_means(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Return values by target (numbers, or arrays of draws) with those of all columns."""
        named = {self.scores.datasets[target]: value for target, value in values.items()}
        found = dict(values)
        for column in self.columns[len(self.targets) :]:
            mean = sum(values.values()) / len(values)
            found[column] = mean if column == MEAN else average(named, column)
        return found

    def network_values(self, network: Network) -> Values:
        """Return the mIoU of a network by column."""
        areas = {target: network.images[target].areas.sum(0)[None] for target in self.targets}
        return self.with_means({t: float(bootstrap.mious(a)[0]) for t, a in areas.items()})

    def arm_values(self, arm: str) -> list[Values]:
        """Return the mIoU of each network of an arm by column."""
        return [self.network_values(network) for network in self.arms[arm]]

    def arm_draws(self, arm: str) -> dict[str, np.ndarray]:
        """Return draws of the mean over an arm's networks, by column."""
        draws = {}
        for target in self.targets:
            each = [
                bootstrap.resampled_mious(
                    network.images[target].areas, target, resamples=self.resamples, seed=self.seed
                )
                for network in self.arms[arm]
            ]
            draws[target] = np.mean(each, axis=0)
        return self.with_means(draws)

    @cached_property
    def results(self) -> dict[str, Any]:
        """Scores of all arms and their paired differences to the baseline, as JSON values."""
        draws = {arm: self.arm_draws(arm) for arm in self.arms}
        values = {arm: self.arm_values(arm) for arm in self.arms}
        return {arm: self._result(arm, draws, values) for arm in self.arms}

    def _result(
        self,
        arm: str,
        draws: Mapping[str, Mapping[str, np.ndarray]],
        values: Mapping[str, Sequence[Values]],
    ) -> dict[str, Any]:
        columns = {}
        for column in self.columns:
            each = [one[column] for one in values[arm]]
            cell: dict[str, Any] = {
                "mean": float(np.mean(each)),
                "seeds": each,
                "deviation": bootstrap.seed_spread(each),
                "interval": bootstrap.interval(draws[arm][column]),
            }
            if arm != self.baseline:
                differences = draws[arm][column] - draws[self.baseline][column]
                base = [one[column] for one in values[self.baseline]]
                cell["difference"] = cell["mean"] - float(np.mean(base))
                cell["difference_interval"] = bootstrap.interval(differences)
                cell["p"] = bootstrap.p_value(differences)
            columns[column] = cell
        networks = [network.name for network in self.arms[arm]]
        return {"networks": networks, "columns": columns}

    def document(self, published: Sequence[Group]) -> dict[str, Any]:
        """Return all that the tables say, as JSON values."""
        rows = [row for group in published for row in group.rows]
        return {
            "arms": self.results,
            "baseline": self.baseline,
            "order": list(self.arms),
            "columns": self.columns,
            "targets": list(self.targets),
            "datasets": {target: self.scores.datasets[target] for target in self.targets},
            "resamples": self.resamples,
            "seed": self.seed,
            "selection": {n.name: n.selection for arm in self.arms.values() for n in arm},
            "published": [
                {
                    "method": row.method,
                    "paper": row.paper,
                    "table": row.table,
                    "read": row.read,
                    "scores": {c: v for c in self.columns if (v := self.published(row, c))},
                    "gains": dict(row.gains),
                }
                for row in rows
            ],
        }

    def published(self, row: PublishedRow, column: str) -> float | None:
        """Return a published score for a column; None where our column is of other data.

        Pocket City has targets of the same names, but only prepared datasets are those of papers.
        """
        datasets = {self.scores.datasets[target] for target in self.scores.catalogued}
        if column in AVERAGES:
            return row.value(column) if datasets >= set(AVERAGES[column]) else None
        known = column in self.scores.catalogued
        return row.value(self.scores.datasets[column]) if known else None


def main_table(comparison: Comparison, published: Sequence[Group]) -> Table:
    """Return mIoU by arm and column, and the published rows below."""
    rows = []
    for arm, result in comparison.results.items():
        cells = [_spread(cell) for cell in result["columns"].values()]
        rows.append([arm, str(len(result["networks"])), *cells])
    for group in published:
        for row in group.rows:
            values = [comparison.published(row, column) for column in comparison.columns]
            cells = [number(value, 2) for value in values]
            for position, column in enumerate(comparison.columns):
                gain = row.gains.get(comparison.scores.datasets.get(column, column))
                if gain is not None and column in comparison.scores.catalogued:
                    cells[position] = f"{gain:+.2f} over the best before"
            rows.append([f"{row.method} [{row.paper}, table {row.table}; {row.read}]", "-", *cells])
    return Table("mIoU in percent", ["mIoU %", "networks", *comparison.columns], rows)


def paired_table(comparison: Comparison) -> Table:
    """Return the differences to the baseline with interval and p, one row per arm and column."""
    rows = []
    for arm, result in comparison.results.items():
        for column, cell in result["columns"].items():
            if "p" in cell:
                bounds = interval(cell["difference_interval"], 2)
                rows.append([f"{arm}: {column}", number(cell["difference"], 2, sign=True)]
                            + [bounds, number(cell["p"], 3)])  # fmt: skip
    title = f"Difference to {comparison.baseline}, points"
    return Table(title, [f"minus {comparison.baseline}", "points", "95 % interval", "p"], rows)


def condition_table(comparison: Comparison) -> Table:
    """Return mIoU by condition, mean over the networks of each arm; no rows without conditions."""
    rows = []
    for target in comparison.targets:
        names = comparison.scores.classes[target]
        first = next(iter(comparison.arms.values()))[0].images[target]
        for condition in sorted(first.totals) if len(first.totals) > 1 else ():
            cells = [_condition_cell(arm, target, condition, names)
                     for arm in comparison.arms.values()]  # fmt: skip
            rows.append([f"{target}/{condition or NONE}", *cells])
    return Table("mIoU by condition", ["mIoU %", *comparison.arms], rows)


def _condition_cell(
    arm: Sequence[Network], target: str, condition: str, names: Sequence[str]
) -> str:
    counts = [network.images[target].totals[condition] for network in arm]
    values = [counts_score(one, 0, names)["miou"] for one in counts]
    return number(float(np.mean(values)) if None not in values else None)


def class_table(comparison: Comparison) -> Table:
    """Return IoU by class, mean over targets and networks that have the class."""
    names = dict.fromkeys(n for t in comparison.targets for n in comparison.scores.classes[t])
    rows = []
    for name in names:
        cells = []
        for arm in comparison.arms.values():
            values = [v for one in arm for v in _class_values(comparison, one, name)]
            cells.append(number(float(np.mean(values)) if values else None))
        rows.append([name, *cells])
    return Table("IoU by class, mean over targets", ["IoU %", *comparison.arms], rows)


def _class_values(comparison: Comparison, network: Network, name: str) -> list[float]:
    found = []
    for target in comparison.targets:
        classes = comparison.scores.classes[target]
        if name in classes:
            total = network.images[target].total()
            found.append(counts_score(total, 0, classes)["iou"][name])
    return [value for value in found if value is not None]


def notes_of(comparison: Comparison, published: Sequence[Group]) -> list[str]:
    """Return what stands below the tables."""
    networks = {n.name: n.selection for arm in comparison.arms.values() for n in arm}
    notes = selection_notes(networks)
    notes.append(
        "Mean \u00b1 standard deviation over the networks of an arm. Interval and p: paired "
        f"bootstrap over images, {comparison.resamples} resamples, two-sided; p is not corrected "
        "for the number of comparisons."
    )
    single = [arm for arm, networks in comparison.arms.items() if len(networks) == 1]
    if single:
        notes.append(f"One seed: {', '.join(single)}.")
    if published:
        notes.append("Published rows are in brackets: paper, table, how they were read.")
    return [*notes, *comparison.scores.marks]


def _spread(cell: Mapping[str, Any]) -> str:
    if cell["deviation"] is None:
        return number(cell["mean"])
    return f"{cell['mean']:.1f} \u00b1 {cell['deviation']:.1f}"
