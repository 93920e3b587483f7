"""Print cost and gain of the in-sampling correction, by its scale.

    python experiments/correction_table.py --scores scores.json --looks looks.json \\
        --generated DIR [DIR ...] --output table.md

Reads a score file of the oracle (`segtrain/score.py`), the result of
`experiments/look_adherence.py`, and the dataset folders that both read. Gain: mIoU of the oracle
over all classes and over the small ones, and accuracy of the look classifier. Cost: predictions and
gradients of an image, and its seconds. Also writes OUTPUT.
"""

import argparse
import sys
from pathlib import Path
from statistics import mean
from typing import Any

if sys.path and sys.path[0] == str(Path(__file__).resolve().parent):  # see CONTRIBUTING.md
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from experiments.score_files import load
from pipeline import files
from pipeline.dataset import open_dataset
from pipeline.errors import UserError, guard
from pipeline.labels import CLASS_NAMES, SMALL_CLASSES
from pipeline.markdown import table
from pipeline.output_folders import require_writable
from pipeline.reading import expecting, read_json

HEADER = ["scale", "steps", "images", "mIoU", "small", "look top-1 %", "predictions", "gradients",
          "seconds"]  # fmt: skip


def row_of(folder: Path, targets: dict[str, Any], looks: dict[str, Any]) -> list[str]:
    """Return the row of one generated set."""
    result = targets.get(folder.name)
    if result is None:
        raise UserError(f"--scores: has no target {folder.name}; score this folder first")
    settings = read_json(folder / "run.json", dict)["config"]["correction"]
    rows = [sample.row for sample in open_dataset(folder, labelled=True)]
    ious = [result["iou"].get(CLASS_NAMES[c]) for c in SMALL_CLASSES]
    small = mean(iou for iou in ious if iou is not None)
    steps = settings["steps"] if settings["scale"] else 0
    top1 = next(value["top1"] for key, value in looks.items() if Path(key).name == folder.name)
    costs = [mean(row[name] for row in rows) for name in ("evaluations", "gradients", "seconds")]
    numbers = [result["miou"], small, top1, *costs]
    return [
        f"{settings['scale']:g}",
        f"{steps:g}",
        str(len(rows)),
        *(f"{number:.1f}" for number in numbers),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--scores", type=Path, required=True, help="score file of the oracle")
    parser.add_argument("--looks", type=Path, required=True, help="accuracy of the look classifier")
    parser.add_argument("--generated", type=Path, nargs="+", required=True, help="its targets")
    parser.add_argument("--output", type=Path, required=True, help="Markdown file to write")
    options = parser.parse_args()
    require_writable(options.output.parent)
    with expecting(options.scores):  # and what the folders say of themselves
        (entry,) = load(options.scores).values()
        looks = read_json(options.looks, dict)["generated"]
        rows = [row_of(folder, entry["targets"], looks) for folder in options.generated]
    text = f"{table(HEADER, rows)}\n"
    files.write_bytes(options.output, text.encode())
    print(text)


if __name__ == "__main__":
    guard(main)
