"""Compare the colours of each class in generated images with rendered images of the same look.

Scores of a segmenter and of a look classifier do not detect too much contrast: a pavement that is
as white at night as at noon is easy to segment, and the sky alone identifies the look. Networks
trained on such images fail on real nights. This program compares, per class, the mean colour of
each image with the mean over rendered images of the same look (0 to 255, mean over channels).

    python experiments/class_colors.py --rendered DIR --generated DIR [DIR ...] --output FILE

`--rendered` is the output of experiments/render_layouts.py. The distance between its own images is
the smallest distance to be expected. For measuring only.
"""

import argparse
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np

if sys.path and sys.path[0] == str(Path(__file__).resolve().parent):  # see CONTRIBUTING.md
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from pipeline import files
from pipeline.dataset import open_dataset, read_pair
from pipeline.errors import UserError, guard
from pipeline.labels import CLASS_NAMES

MIN_PIXELS = 300
CLASSES = ("road", "sidewalk", "building", "vegetation", "terrain", "sky", "car")
Colors = dict[tuple[str, str], list[np.ndarray]]  # (look, class) -> mean colours, one per image


def class_colors(folder: str) -> Colors:
    """Return the mean RGB (0..255) of each class in each image with `MIN_PIXELS` of it."""
    colors: Colors = defaultdict(list)
    for sample in open_dataset(folder, labelled=True):
        image, label = read_pair(sample)
        for name in CLASSES:
            shown = label == CLASS_NAMES.index(name)
            if shown.sum() >= MIN_PIXELS:
                colors[sample.row["condition"], name].append(image[shown].mean(0))
    return colors


def distances(colors: Colors, rendered: Colors) -> dict[str, float]:
    """Return each class's distance (0..255) to the rendered mean, over its looks, and of all."""
    per_class: dict[str, list[float]] = defaultdict(list)
    for (look, name), own in colors.items():
        if (look, name) in rendered:
            wanted = np.mean(rendered[look, name], axis=0)
            per_class[name].append(float(np.mean([np.abs(c - wanted).mean() for c in own])))
    if not per_class:
        raise UserError("--rendered: has no look of --generated; render its label maps")
    result = {name: float(np.mean(per_class[name])) for name in CLASSES if name in per_class}
    result["mean"] = float(np.mean(list(result.values())))
    return {name: round(value, 1) for name, value in result.items()}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--rendered", required=True)
    parser.add_argument("--generated", required=True, nargs="+")
    parser.add_argument("--output", required=True, type=Path)
    arguments = parser.parse_args()
    rendered = class_colors(arguments.rendered)
    result = {
        folder: distances(class_colors(folder), rendered)
        for folder in (arguments.rendered, *arguments.generated)
    }
    for folder, values in result.items():
        print(f"{folder}: " + ", ".join(f"{k} {v}" for k, v in values.items()))
    files.write_json(arguments.output, result)


if __name__ == "__main__":
    guard(main)
