"""Print the tables of scripts/reproduce/diffseg_table.sh: scores on five targets, and cost.

    python experiments/diffseg_table.py --workspace runs/diffseg_table [--cost]

`--cost` trains each network for a few updates and segments a few images, one process per network.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import mean, stdev
from typing import Any

if sys.path and sys.path[0] == str(Path(__file__).resolve().parent):  # see CONTRIBUTING.md
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from pipeline.errors import UserError, guard
from pipeline.pocket.splits import TARGETS
from pipeline.reading import read_json

ARMS = ("source", "generated")
UPDATES, NUM_IMAGES = 6, 10


def target_scores(folder: Path) -> dict[str, float] | None:
    """Return the mIoU of a run on each target; None if it is not scored."""
    path = folder / "scores.json"
    if not path.is_file():
        return None
    targets = read_json(path)["checkpoints"][0]["targets"]
    return {name: score["miou"] for name, score in targets.items()}


def adapted_scores(folder: Path) -> dict[str, float] | None:
    """Return the mIoU of a run on each target with the scene learned there."""
    found = [target_scores(folder / f"scene_{name}") for name in TARGETS]
    if any(scores is None for scores in found):
        return None
    return {name: value for scores in found for name, value in (scores or {}).items()}


def row(name: str, runs: list[Path], read: Any) -> str | None:
    """Return a line of the table, None if no run is scored."""
    scored = [(run, scores) for run in runs if (scores := read(run))]
    if not scored:
        return None
    columns = [[scores[target] for _, scores in scored] for target in TARGETS]
    columns.append([mean(scores[t] for t in TARGETS) for _, scores in scored])
    cells = [
        f"{mean(values):.1f}" + (f" ± {stdev(values):.1f}" if len(values) > 1 else "")
        for values in columns
    ]
    return f"| {name} | {' | '.join(cells)} | {len(scored)} |"


def networks(workspace: Path) -> list[str]:
    """Return the networks of the table that have a finished run."""
    return sorted({path.parent.parent.name for path in workspace.glob("*/*/finished.json")})


def table(workspace: Path) -> str:
    """Return the scores as markdown: mIoU in percent, mean and standard deviation over seeds."""
    lines = [
        f"| network, data | {' | '.join(TARGETS)} | mean | seeds |",
        "|---" * (len(TARGETS) + 3) + "|",
    ]
    for network in networks(workspace):
        for arm in ARMS:
            runs = sorted(workspace.glob(f"{network}/{arm}_[0-9]*"))
            found = [
                row(f"{network}, {arm}", runs, target_scores),
                row(f"{network} + adaptation, {arm}", runs, adapted_scores),
            ]
            lines += [line for line in found if line]
    return "\n".join(lines)


def cost_row(run: Path) -> str:
    """Return a line of the table of costs: the run's network, trained and used again."""
    document = read_json(run / "config.json")
    stored, batch_size = document["settings"], document["config"]["batch_size"]
    with tempfile.TemporaryDirectory() as folder:
        command = [
            sys.executable, "segtrain/train.py", stored["recipe"], "--source", stored["source"],
            "--steps", str(UPDATES), "--batch-size", str(batch_size),
            "--output", f"{folder}/run",
        ]  # fmt: skip
        if stored["cfg_options"]:
            command += ["--cfg-options", *stored["cfg_options"]]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise UserError(f"{run}: training it again failed; run {' '.join(command)}")
        seconds = read_json(Path(folder) / "run" / "finished.json")["seconds"] / UPDATES
    test = subprocess.run(
        [sys.executable, __file__, "--test", run], capture_output=True, text=True, check=True
    )
    result = json.loads(test.stdout.splitlines()[-1])
    return (
        f"| {run.parent.name} | {result['trained'] / 1e6:.2f} | {seconds:.2f} | "
        f"{usage.ru_maxrss / 2**20:.2f} | {result['images_per_second']:.1f} |"
    )


def test_cost(run: Path) -> dict[str, float]:
    """Return trained parameters of a network, and its images per second at test."""
    import numpy as np

    from segtrain.segmenter import Segmenter

    segmenter = Segmenter.from_pretrained(run)
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (NUM_IMAGES, 128, 256, 3), dtype=np.uint8)
    segmenter(images[0])
    start = time.perf_counter()
    for image in images:
        segmenter(image)
    return {
        "trained": sum(p.numel() for p in segmenter.model.parameters() if p.requires_grad),
        "images_per_second": NUM_IMAGES / (time.perf_counter() - start),
    }


def costs(workspace: Path) -> str:
    """Return the costs as markdown."""
    lines = [
        "| network | trained parameters, M | s per update | peak memory in training, GiB | "
        "images per second at inference |",
        "|---" * 5 + "|",
    ]
    for network in networks(workspace):
        runs = sorted(path.parent for path in workspace.glob(f"{network}/*/finished.json"))
        lines.append(cost_row(runs[0]))
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--workspace",
        type=Path,
        default=Path("runs/diffseg_table"),
        help="output folder of the script",
    )
    parser.add_argument("--cost", action="store_true", help="print the table of costs")
    parser.add_argument("--test", type=Path, help="only measure the network of this run")
    options = parser.parse_args()
    if options.test:
        print(json.dumps(test_cost(options.test)))
    else:
        print(costs(options.workspace) if options.cost else table(options.workspace))


if __name__ == "__main__":
    guard(main)
