"""Print one table of the recipe pocket_networks: what generated images add to each network.

    python experiments/networks.py --tables runs/ladder/networks/tables > NAME.md

Reads the comparisons that exist so far, NETWORK.json and NETWORK_photographs.json of
segtrain/compare.py. Networks are sorted by the mean score of their trainings, weakest first, so
that the table shows whether the gain shrinks with the strength of the network. In an order by the
score on the source only, noise alone would show this: a baseline that is low by chance has a high
gain. The mean of baseline and treatment is free of this bias (Oldham, J. Chronic Dis. 1962).
"""

import argparse
import sys
from pathlib import Path
from typing import Any

if sys.path and sys.path[0] == str(Path(__file__).resolve().parent):  # see CONTRIBUTING.md
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from benchmarks.machine import heading
from pipeline.errors import UserError, guard
from pipeline.markdown import table
from pipeline.reading import expecting, read_json

NIGHT_AND_WEATHER = ("acdc", "dark_zurich")
PHOTOGRAPHS = "_photographs"
SETS = {"reinhard": "colours of the collection", "generated": "generated images"}
ORDER = (
    "Gain: score of a training with the set, less that of the source only. Networks are sorted by "
    "the mean score of their three trainings."
)
Cells = dict[str, dict[str, Any]]
"""What a comparison says of an arm, by column."""


def load(folder: Path) -> dict[str, dict[str, Cells]]:
    """Return the arms of each comparison in a folder that compares the trainings of a network."""
    found = {}
    for path in sorted(folder.glob("*.json")):
        with expecting(path):
            arms = {name: dict(arm["columns"]) for name, arm in read_json(path)["arms"].items()}
            if {"source_only", *SETS} <= set(arms):
                found[path.stem] = arms
    return found


def score(cell: dict[str, Any]) -> str:
    """Return mean and standard deviation over seeds."""
    spread = "" if cell["deviation"] is None else f" ± {cell['deviation']:.1f}"
    return f"{cell['mean']:.1f}{spread}"


def gain(cell: dict[str, Any]) -> str:
    """Return the difference to the source only, with the p of the paired test."""
    chance = "" if cell["p"] is None else f" (p {cell['p']:.3f})"
    return f"{cell['difference']:+.1f}{chance}"


def rows_of(
    found: dict[str, dict[str, Cells]], columns: tuple[str, ...]
) -> list[tuple[str, list[str]]]:
    """Return the cells of each network: the score on the source only, then each set's gains."""

    def strength(name: str) -> float:
        return sum(found[name][arm][columns[0]]["mean"] for arm in ("source_only", *SETS))

    order = sorted(found, key=strength)
    return [
        (
            name,
            [score(found[name]["source_only"][columns[0]])]
            + [gain(found[name][one][column]) for one in SETS for column in columns],
        )
        for name in order
    ]


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--tables", required=True, type=Path, help="`tables` of pocket_networks")
    options = parser.parse_args()
    found = load(options.tables)
    targets = {name: arms for name, arms in found.items() if not name.endswith(PHOTOGRAPHS)}
    if not targets:
        raise UserError(
            f"--tables {options.tables}: contains no comparison of source_only, "
            f"{' and '.join(SETS)}; run the recipe pocket_networks first"
        )
    print(heading("python pipeline/run.py --recipe pocket_networks"))
    print("## Gain of each network, mIoU in percent\n")
    print(f"{ORDER}\n")
    with expecting(options.tables):
        columns = ("Avg5", *NIGHT_AND_WEATHER, "dev")
        titles = ("mean of the five targets", "ACDC", "Dark Zurich", "development target")
        heads = [f"{SETS[one]}: {title}" for one in SETS for title in titles]
        rows = [[name, *cells] for name, cells in rows_of(targets, columns)]
        print(table(["network", "source only", *heads], rows))
        photographs = {
            name.removesuffix(PHOTOGRAPHS): arms
            for name, arms in found.items()
            if name.endswith(PHOTOGRAPHS)
        }
        if photographs:
            print("\n## On photographs, mIoU in percent\n")
            (column, *_) = next(iter(photographs.values()))["source_only"]
            rows = [[name, *cells] for name, cells in rows_of(photographs, (column,))]
            print(table(["network", "source only", *SETS.values()], rows))


if __name__ == "__main__":
    guard(main)
