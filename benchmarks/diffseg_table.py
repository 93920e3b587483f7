"""Print the table of scripts/reproduce/diffseg_table.sh: five targets, with and without generated data.

python benchmarks/diffseg_table.py --workspace runs/diffseg_table
"""  # noqa: E501

import argparse
import sys
from pathlib import Path
from statistics import mean, pstdev
from typing import Any

if sys.path and sys.path[0] == str(Path(__file__).resolve().parent):  # see CONTRIBUTING.md
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from pipeline import files  # noqa: E402
from pipeline.errors import guard  # noqa: E402

TARGETS = ("cityscapes", "bdd100k", "mapillary", "acdc", "dark_zurich")
ARMS = ("source", "generated")


def target_scores(folder: Path) -> dict[str, float] | None:
    """Return the mIoU of a run on each target; None if it is not scored."""
    path = folder / "scores.json"
    if not path.is_file():
        return None
    targets = files.read_json(path)["checkpoints"][0]["targets"]
    return {name: score["miou"] for name, score in targets.items()}


def adapted_scores(folder: Path) -> dict[str, float] | None:
    """Return the mIoU of a run on each target with the scene learned there."""
    found = [target_scores(folder / f"scene_{name}") for name in TARGETS]
    if any(scores is None for scores in found):
        return None
    return {name: value for scores in found for name, value in (scores or {}).items()}


def seconds_per_iteration(folder: Path) -> float:
    """Return the wall time of an update, by the last call that trained."""
    facts = files.read_json(folder / "finished.json")
    return facts["seconds"] / max(facts["steps"] - facts["first_step"], 1)


def row(name: str, runs: list[Path], read: Any) -> str | None:
    """Return a line of the table, None if no run is scored."""
    scored = [(run, scores) for run in runs if (scores := read(run))]
    if not scored:
        return None
    columns = [[scores[target] for _, scores in scored] for target in TARGETS]
    columns.append([mean(scores[t] for t in TARGETS) for _, scores in scored])
    cells = [
        f"{mean(values):.1f}" + (f" ± {pstdev(values):.1f}" if len(values) > 1 else "")
        for values in columns
    ]
    cost = mean(seconds_per_iteration(run) for run, _ in scored)
    size = (runs[0] / "model.safetensors").stat().st_size / 4e6
    return f"| {name} | {' | '.join(cells)} | {len(scored)} | {cost:.2f} | {size:.2f} |"


def table(workspace: Path) -> str:
    """Return the table as markdown."""
    lines = [
        f"| network, data | {' | '.join(TARGETS)} | mean | seeds | s per update | stored M |",
        "|---" * (len(TARGETS) + 5) + "|",
    ]
    for network in sorted(path.name for path in workspace.iterdir() if path.is_dir()):
        for arm in ARMS:
            runs = sorted(workspace.glob(f"{network}/{arm}_[0-9]*"))
            runs = [run for run in runs if (run / "finished.json").is_file()]
            found = [row(f"{network}, {arm}", runs, target_scores)] if runs else []
            if runs:
                found.append(row(f"{network} + adaptation, {arm}", runs, adapted_scores))
            lines += [line for line in found if line]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--workspace", type=Path, default=Path("runs/diffseg_table"))
    print(table(parser.parse_args().workspace))


if __name__ == "__main__":
    guard(main)
