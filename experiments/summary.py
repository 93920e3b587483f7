"""Print the tables of a finished `pocket_experiment` run as Markdown.

python experiments/summary.py --workspace runs/experiment > experiments/results/NAME.md
"""

import argparse
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from statistics import mean, stdev
from typing import Any

if sys.path and sys.path[0] == str(Path(__file__).resolve().parent):  # see CONTRIBUTING.md
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from benchmarks.machine import heading
from pipeline.errors import guard
from pipeline.labels import CLASS_NAMES, SMALL_CLASSES
from pipeline.markdown import table
from pipeline.reading import read_json

Scores = dict[str, dict[str, Any]]  # arm -> entry of the score file


def load(path: Path) -> Scores:
    """Return the entries of a score file by name; empty if the file is absent."""
    return {e["name"]: e for e in read_json(path)["checkpoints"]} if path.exists() else {}


def merged(*paths: Path) -> dict[str, Any]:
    """Return the first adherence file with the generated sets of the others added."""
    results = [read_json(path) for path in paths if path.exists()]
    for other in results[1:]:
        results[0]["generated"] |= other["generated"]
    return results[0] if results else {}


def spread(values: Iterable[float]) -> str:
    """Return `mean ± standard deviation (min to max)`."""
    values = list(values)
    if len(values) == 1:
        return f"{values[0]:.1f}"
    return f"{mean(values):.1f} ± {stdev(values):.1f} ({min(values):.1f} to {max(values):.1f})"


def main_table(scores: Scores) -> str:
    """Return the five-target table of the arms `source_<seed>` and `generated_<seed>`."""
    arms = {
        arm: [e for name, e in scores.items() if re.fullmatch(rf"{arm}_\d+", name)]
        for arm in ("source", "generated")
    }
    first = arms["source"][0]["targets"]
    rows = []
    for target in first:
        conditions = first[target].get("conditions") or {}
        lines = [(target, lambda e, t=target: e["targets"][t]["miou"])]
        if len(conditions) > 1:
            lines += [
                (
                    f"  {target}: {c}",
                    lambda e, t=target, c=c: e["targets"][t]["conditions"][c]["miou"],
                )
                for c in conditions
            ]
        for name, value in lines:
            before, after = (list(map(value, arms[a])) for a in ("source", "generated"))
            rows.append([name, spread(before), spread(after), f"{mean(after) - mean(before):+.1f}"])
    before, after = ([e["mean_miou"] for e in arms[a]] for a in ("source", "generated"))
    gain = f"**{mean(after) - mean(before):+.1f}**"
    rows.append(["**mean of the five**", spread(before), spread(after), gain])
    header = ["target", "source only", "source + its images in generated colours", "gain"]
    return table(header, rows)


def class_table(scores: Scores) -> str:
    """Return IoU per class, averaged over targets and seeds, for both arms."""
    rows = []
    for name in CLASS_NAMES:
        cells = [name]
        for arm in ("source", "generated"):
            values = [
                t["iou"][name]
                for n, e in scores.items()
                if re.fullmatch(rf"{arm}_\d+", n)
                for t in e["targets"].values()
                if t["iou"].get(name) is not None
            ]
            cells.append(f"{mean(values):.1f}" if values else "absent")
        rows.append(cells)
    return table(["class", "source only", "source + its images in generated colours"], rows)


def arm_table(scores: Scores, main: Scores, oracle: Scores, adherence: dict[str, Any]) -> str:
    """Return look adherence, fidelity and downstream score of the arms."""
    seen = oracle["oracle"]["targets"] if oracle else {}
    looks = {Path(k).name: v for k, v in adherence["generated"].items()}
    rows = []
    for name, folder, trained in (
        ("the source in generated colours (U_P + C)", "generated", main.get("generated_0")),
        ("generated (the method)", "plain", scores.get("plain")),
        ("the source in random colours", "random_colors", scores.get("random_colors")),
        (
            "the source in the collection's colours",
            "color_transfer",
            scores.get("color_transfer_0"),
        ),
        ("U_S + C, no swap", "no_swap", scores.get("no_swap_0")),
        ("U_P + C trained on U_P", "direct", scores.get("direct")),
    ):
        source = main["source_0"]["mean_miou"]
        gain = (
            f"{trained['mean_miou']:.1f} ({trained['mean_miou'] - source:+.1f})" if trained else "-"
        )
        fidelity = f"{seen[folder]['miou']:.1f}" if folder in seen else "-"
        top1 = f"{looks[folder]['top1']:.1f}" if folder in looks else "-"
        rows.append([name, top1, fidelity, gain])
    return table(["arm", "look top-1 %", "oracle mIoU", "five-target mIoU, seed 0 (gain)"], rows)


def choice_table(scores: Scores) -> str:
    """Return the arms on the development target and on held-out renders."""
    sets = list(next(iter(scores.values()))["targets"])
    rows = [[name, *(f"{e['targets'][s]['miou']:.1f}" for s in sets)] for name, e in scores.items()]
    return table(["arm", *sets], rows)


def oracle_table(oracle: Scores) -> str:
    """Return the oracle's mIoU and its IoU of the small classes, per image set."""
    seen = oracle["oracle"]["targets"]
    small = [CLASS_NAMES[i] for i in SMALL_CLASSES]
    rows = []
    for folder, values in seen.items():
        ious = [values["iou"].get(name) for name in small]
        known = [v for v in ious if v is not None]
        cells = ["absent" if v is None else f"{v:.1f}" for v in ious]
        rows.append([folder, f"{values['miou']:.1f}", f"{mean(known):.1f}", *cells])
    return table(["images", "mIoU", "small, mean", *small], rows)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument(
        "--workspace", required=True, type=Path, help="workspace of pocket_experiment"
    )
    workspace = parser.parse_args().workspace
    folder = workspace / "scores"
    scores, arms, oracle, swap, choices = (
        load(folder / f"{n}.json") for n in ("main", "arms", "oracle", "oracle_swap", "dev")
    )
    adherence = merged(folder / "adherence.json", folder / "adherence_direct.json")
    print(heading("python pipeline/run.py --recipe pocket_experiment"))
    if choices:
        print("## Development target and held-out renders, mIoU in percent\n")
        print(choice_table(choices))
    if scores:
        print("## Five targets, mIoU in percent\n")
        print(main_table(scores))
        print("## IoU per class, mean over targets and seeds\n")
        print(class_table(scores))
    if oracle:
        print("## Oracle segmenter on each image set, IoU in percent\n")
        print(oracle_table(oracle))
    if scores and adherence:
        print(f"## Style Swap\n\nRendered images: top-1 {adherence['rendered']['top1']} %.\n")
        print(arm_table(arms, scores, swap, adherence))
    if "diffusion" in arms:
        print(f"Diffusion backbone, five-target mIoU: {arms['diffusion']['mean_miou']:.1f}\n")


if __name__ == "__main__":
    guard(main)
