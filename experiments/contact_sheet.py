"""Put samples of generated sets on one sheet: label, source image and generated image.

    python experiments/contact_sheet.py --generated DIR [DIR ...] --source DIR --output sheet.jpg

A column shows the first sample of one condition; several sets of the same label maps are placed
one below the other. `--source` is the dataset folder of the label maps. `--render LOOK ...`,
without folders, shows one rendered scene of Pocket City in these looks instead.
"""

import argparse
import sys
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

if sys.path and sys.path[0] == str(Path(__file__).resolve().parent):  # see CONTRIBUTING.md
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from pipeline.dataset import open_dataset, read_pair
from pipeline.errors import UserError, guard
from pipeline.images import read_image
from pipeline.labels import colorize
from pipeline.pocket.splits import SEEDS_PER_SPLIT
from pipeline.sample_views import source_image
from pipeline.setting_checks import require_seed

GAP = 6


def titled(image: np.ndarray, title: str) -> np.ndarray:
    """Return the image under a white strip with its title."""
    strip = np.full((22, image.shape[1], 3), 255, dtype=np.uint8)
    cv2.putText(strip, title, (4, 16), cv2.FONT_HERSHEY_SIMPLEX, 0.45, (30, 30, 30), 1, cv2.LINE_AA)
    return np.concatenate([strip, image])


def grid(cells: list[np.ndarray], columns: int) -> np.ndarray:
    """Return equally large cells side by side with white gaps, `columns` in a row."""
    height, width = cells[0].shape[:2]
    rows = -(-len(cells) // columns)
    sheet = np.full(
        (rows * (height + GAP) + GAP, columns * (width + GAP) + GAP, 3), 255, dtype=np.uint8
    )
    for i, cell in enumerate(cells):
        top = GAP + (i // columns) * (height + GAP)
        left = GAP + (i % columns) * (width + GAP)
        sheet[top : top + height, left : left + width] = cell
    return sheet


def generated_cells(generated: list[str], source: Path, conditions: list[str]) -> list[np.ndarray]:
    """Return label, source and generated images of the first sample of each condition."""
    others = [{s.id: s for s in open_dataset(name, labelled=True)} for name in generated[1:]]
    first = {}
    for sample in open_dataset(generated[0], labelled=True):
        first.setdefault(sample.row["condition"], sample)
    cells = []
    for condition in conditions or sorted(first):
        sample = first[condition]
        image, label = read_pair(sample)
        original = source_image(sample, source)
        if original is None:
            raise UserError(
                f"--source {source}: has no image for {sample.id}; name the dataset folder of the "
                "label maps"
            )
        more = [read_image(samples[sample.id].image) for samples in others]
        column = np.concatenate([colorize(label), original, image, *more])
        cells.append(titled(column, condition.replace("_", " ")))
    return cells


def rendered_cells(looks: list[str], seed: int) -> list[np.ndarray]:
    """Return one scene of the source in each of the looks."""
    from pipeline.pocket.collection import GAME, LOOKS
    from pipeline.pocket.render import render_pair
    from pipeline.pocket.scene import make_scene
    from pipeline.pocket.splits import scene_seed
    from pipeline.pocket.targets import DEVELOPMENT_LOOKS, TARGET_LOOKS

    table = {"game": GAME, **LOOKS, **TARGET_LOOKS, **DEVELOPMENT_LOOKS}
    scene = make_scene(scene_seed("source", seed))
    pairs = [(name, render_pair(scene, table[name], 128, 256, seed)) for name in looks]
    cells = [titled(image, name.replace("_", " ")) for name, (image, _) in pairs]
    return [titled(colorize(pairs[0][1][1]), "label"), *cells]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--generated", nargs="+", metavar="DIR", help="generated dataset folders")
    parser.add_argument("--source", type=Path, help="dataset folder of the label maps")
    parser.add_argument(
        "--conditions", nargs="*", default=[], help="conditions to show; default: all"
    )
    parser.add_argument(
        "--render",
        nargs="*",
        default=[],
        metavar="LOOK",
        help="show one rendered scene in these looks",
    )
    parser.add_argument("--seed", type=int, default=3, help="scene of --render")
    parser.add_argument("--columns", type=int, default=4, help="images per row")
    parser.add_argument("--output", required=True, type=Path, help="image file to write")
    arguments = parser.parse_args()
    require_seed(arguments.seed, largest=SEEDS_PER_SPLIT - 1)
    if arguments.generated:
        if not arguments.source:
            parser.error("--generated needs --source, the dataset folder of the label maps")
        cells = generated_cells(arguments.generated, arguments.source, arguments.conditions)
    else:
        cells = rendered_cells(arguments.render, arguments.seed)
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(grid(cells, arguments.columns)).save(arguments.output, quality=90)


if __name__ == "__main__":
    guard(main)
