"""Print the tables of the recipe pocket_ladder: the gain from each further training set.

    python experiments/ladder.py --workspace runs/ladder > experiments/results/NAME.md
    python experiments/ladder.py --workspace runs/ladder --photographs runs/photographs

Reads the score files of `pipeline/run.py --recipe pocket_ladder` that exist so far. Every cell is a
mean over seeds with its standard deviation.
"""

import argparse
import re
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import mean, stdev
from typing import Any

if sys.path and sys.path[0] == str(Path(__file__).resolve().parent):  # see CONTRIBUTING.md
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from benchmarks.machine import heading
from pipeline.errors import UserError, guard
from pipeline.labels import CLASS_NAMES, SMALL_CLASSES
from pipeline.markdown import table
from pipeline.pocket.splits import TARGETS
from pipeline.reading import expecting, read_json

SETS = {
    "source_only": "nothing (source only)",
    "random_colors": "the source in random colours",
    "reinhard": "the source in the colours of the collection (Reinhard)",
    "reinhard_rows": "the source in the colours of the collection (Reinhard, row by row)",
    "fda": "the source in the colours of the collection (FDA)",
    "generated": "generated images",
    "recolored": "the source in the colours of the generated images",
    "reconstructions": "renders, reconstructed by the autoencoder",
    "renders": "renders",
}
SMALL = [CLASS_NAMES[i] for i in SMALL_CLASSES]
Entry = dict[str, Any]
"""What a score file says of one network: its targets, each with mIoU and IoU per class."""


def load(folder: Path) -> dict[tuple[str, int], list[Entry]]:
    """Return what the files FOLDER/<part>/<set>_<updates>_<seed>.json say, by (set, updates).

    Each list has one entry per seed, with the targets of all parts. A network that misses a part
    is left out.
    """
    parts: dict[tuple[str, int, int], list[Entry]] = {}
    for path in sorted(folder.glob("*/*.json")):
        if found := re.fullmatch(r"(\w+)_(\d+)_(\d+)", path.stem):
            with expecting(path):
                (entry,) = read_json(path)["checkpoints"]
                targets = dict(entry["targets"])
                for values in targets.values():
                    mean([values["miou"], *(v for v in values["iou"].values() if v is not None)])
            parts.setdefault((found[1], int(found[2]), int(found[3])), []).append(targets)
    wanted = max(map(len, parts.values()), default=0)
    entries: dict[tuple[str, int], list[Entry]] = {}
    for (name, updates, _), targets in sorted(parts.items()):
        if len(targets) == wanted:
            whole = {target: values for part in targets for target, values in part.items()}
            entries.setdefault((name, updates), []).append({"targets": whole})
    return entries


def cell(values: list[float]) -> str:
    """Return `mean ± standard deviation`, without deviation if there is one value."""
    return f"{mean(values):.1f}" + (f" ± {stdev(values):.1f}" if values[1:] else "")


def five_targets(entry: Entry) -> float:
    """Return the mean mIoU of the five targets, in percent."""
    return mean(entry["targets"][name]["miou"] for name in TARGETS)


def small_classes(entry: Entry) -> float:
    """Return the mean IoU of the small classes over the five targets, in percent."""
    ious = [entry["targets"][name]["iou"].get(label) for name in TARGETS for label in SMALL]
    return mean(iou for iou in ious if iou is not None)


def on(name: str) -> Callable[[Entry], float]:
    """Return the function that reads the mIoU on one target."""
    return lambda entry: entry["targets"][name]["miou"]


def gains_table(
    entries: dict[tuple[str, int], list[Entry]], columns: dict[str, Callable[[Entry], float]]
) -> str:
    """Return one row per set and number of updates, with the gain over source only."""
    rows = []
    first = next(iter(columns.values()))
    for updates in sorted({number for _, number in entries}):
        baseline = entries.get(("source_only", updates))
        for name, title in SETS.items():
            if found := entries.get((name, updates)):
                cells = [cell([value(e) for e in found]) for value in columns.values()]
                gain = ""
                if baseline and name != "source_only":
                    gain = f"{mean(map(first, found)) - mean(map(first, baseline)):+.1f}"
                rows.append([str(updates), title, str(len(found)), gain, *cells])
    return table(["updates", "source and ...", "seeds", "gain", *columns], rows)


def sets_table(scores: Path) -> str:
    """Return the scores of the oracle and of the look classifier on each set."""
    fidelity, looks = scores / "fidelity.json", scores / "looks.json"
    if not fidelity.exists():
        return ""
    (oracle,) = read_json(fidelity)["checkpoints"]
    top1 = {}
    if looks.exists():
        top1 = {Path(k).name: v["top1"] for k, v in read_json(looks)["generated"].items()}
    best = oracle["targets"]["renders"]["miou"]
    rows = []
    for name, title in SETS.items():
        if seen := oracle["targets"].get(name):
            small = [v for label in SMALL if (v := seen["iou"].get(label)) is not None]
            share, look = f"{100 * seen['miou'] / best:.0f}", top1.get(name)
            rows.append(
                [title, f"{seen['miou']:.1f}", share, f"{mean(small):.1f}"]
                + ["-" if look is None else f"{look:.1f}"]
            )
    header = ["set", "oracle mIoU", "% of renders", "small classes", "look accuracy, %"]
    return table(header, rows)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--workspace", required=True, type=Path, help="workspace of pocket_ladder")
    parser.add_argument("--photographs", type=Path, help="workspace of pocket_photographs")
    options = parser.parse_args()
    entries = load(options.workspace / "scores")
    if not entries:
        raise UserError(
            f"--workspace {options.workspace}: contains no scores of the ladder; run the recipe "
            "pocket_ladder first"
        )
    with expecting(options.workspace / "scores"):
        print_tables(options.workspace, entries, options.photographs)


def print_tables(
    workspace: Path, entries: dict[tuple[str, int], list[Entry]], photographs: Path | None
) -> None:
    """Print all tables."""
    print(heading("python pipeline/run.py --recipe pocket_ladder"))
    columns = {
        "five targets": five_targets,
        "small classes": small_classes,
        "dev": on("dev"),
        "held-out renders": on("heldout"),
    }
    print("## Gain from each training set, mIoU in percent, mean ± standard deviation over seeds\n")
    print(gains_table(entries, columns))
    if seen := sets_table(workspace / "scores"):
        print("## Oracle and look classifier on each set, percent\n")
        print(seen)
    if photographs and (found := load(photographs / "scores")):
        (name,) = next(iter(found.values()))[0]["targets"]
        print(f"## On photographs ({name}), mIoU in percent\n")
        print(gains_table(found, {name: on(name)}))


if __name__ == "__main__":
    guard(main)
