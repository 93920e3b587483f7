"""Measure whether generated images have the look that their prompt names.

A small classifier is trained on rendered images, validated on rendered images of other scenes, and
applied to the generated ones.

    python experiments/look_adherence.py --train DIR --heldout DIR \\
        --generated DIR [DIR ...] --output adherence.json

The true look is `look` in a rendered row and `condition` in a generated row. For measuring only.
"""

import argparse
import sys
from pathlib import Path

if sys.path and sys.path[0] == str(Path(__file__).resolve().parent):  # see CONTRIBUTING.md
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from pipeline import files
from pipeline.dataset import open_dataset
from pipeline.errors import guard


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument(
        "--train", required=True, help="rendered dataset folder to train the classifier on"
    )
    parser.add_argument(
        "--heldout", required=True, help="rendered dataset folder to validate it on"
    )
    parser.add_argument("--generated", required=True, nargs="+", help="dataset folders to classify")
    parser.add_argument("--output", required=True, type=Path, help="JSON file to write")
    parser.add_argument("--epochs", type=int, default=12, help="training epochs of the classifier")
    arguments = parser.parse_args()
    from generation.quality import looks

    images, indices, names = looks.load(open_dataset(arguments.train, labelled=False))
    model = looks.train(images, indices, len(names), arguments.epochs)

    def measure(folder: str) -> dict:
        samples = open_dataset(folder, labelled=False)
        return looks.accuracy(model, *looks.load(samples, names=names))

    rendered = measure(arguments.heldout)
    result = {"looks": names, "rendered": rendered, "generated": {}}
    for folder in arguments.generated:
        measured = measure(folder)
        measured["share_of_rendered"] = round(100 * measured["top1"] / rendered["top1"], 1)
        result["generated"][folder] = measured
        print(f"{folder}: top-1 {measured['top1']} % (rendered {rendered['top1']} %)", flush=True)
    files.write_json(arguments.output, result)


if __name__ == "__main__":
    guard(main)
