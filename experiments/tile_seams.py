"""Measure how visible the borders of tiles are in fused images.

    python experiments/tile_seams.py --reference runs/ladder/sets/renders \\
        --images runs/ladder/sets/generated [DIR ...]

For each folder of generated images: the mean absolute difference of neighbouring pixels across the
borders of tiles, divided by that across all other pixels, and the same ratio on the reference
images, which have no tiles but the same horizon and margins. A value of 1.0 for generated /
reference means that no seam is measurable.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

if sys.path and sys.path[0] == str(Path(__file__).resolve().parent):  # see CONTRIBUTING.md
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from pipeline.dataset import open_dataset
from pipeline.errors import UserError, guard
from pipeline.images import read_image
from pipeline.markdown import table
from pipeline.reading import expecting, read_json
from pipeline.setting_checks import require_positive

HEADER = ["images", "columns", "rows", "columns, reference", "rows, reference"]


def borders(side: int, tile: int, stride: int) -> list[int]:
    """Return the positions in 1..side-1 where a tile begins or ends along a side in pixels."""
    starts = [*range(0, side - tile, stride), side - tile]
    return sorted({edge for start in starts for edge in (start, start + tile)} - {0, side})


def differences(folder: Path, number: int) -> list[np.ndarray]:
    """Return mean absolute grey differences of neighbours, over images: columns, then rows."""
    totals: list[np.ndarray] = []
    samples = open_dataset(folder, labelled=False)[:number]
    if not samples:
        raise UserError(f"{folder}: holds no images; name a folder that does")
    for sample in samples:
        grey = read_image(sample.image).mean(axis=2)
        pair = [np.abs(np.diff(grey, axis=1)).mean(0), np.abs(np.diff(grey, axis=0)).mean(1)]
        totals = [a + b for a, b in zip(totals, pair, strict=True)] if totals else pair
    return [total / len(samples) for total in totals]


def seam_ratio(profile: np.ndarray, edges: Sequence[int]) -> float:
    """Return the mean of a profile of differences at `edges`, divided by that elsewhere."""
    at = np.zeros(len(profile), bool)
    at[[edge - 1 for edge in edges]] = True  # the difference between pixels edge-1 and edge
    return float(profile[at].mean() / profile[~at].mean())


def row_of(folder: Path, reference: list[np.ndarray], number: int) -> list[str]:
    """Return the row of a folder of generated images."""
    with expecting(folder / "run.json"):
        config = read_json(folder / "run.json", dict)["config"]
        sizes = {name: [int(side) for side in config[name]] for name in ("tile_px", "stride_px")}
    profiles, ratios = differences(folder, number), []
    for axis, (one, other) in enumerate(zip(profiles, reference, strict=True)):
        side = len(one) + 1
        if len(other) != len(one):
            raise UserError(f"--reference: its images have another size than those of {folder}")
        tile, stride = (sizes[name][1 - axis] for name in ("tile_px", "stride_px"))
        edges = borders(side, tile, stride)
        if not edges:
            raise UserError(f"{folder}: its images are one tile wide or high and have no seams")
        ratios.append((seam_ratio(one, edges), seam_ratio(other, edges)))
    values = [*(a / b for a, b in ratios), *(b for _, b in ratios)]
    return [str(folder), *(f"{value:.2f}" for value in values)]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=Path, nargs="+", required=True, help="generated datasets")
    parser.add_argument("--reference", type=Path, required=True, help="renders of the same size")
    parser.add_argument("--n", type=int, default=200, help="images of each folder at most")
    options = parser.parse_args()
    require_positive(options, "n")
    reference = differences(options.reference, options.n)
    print(table(HEADER, [row_of(folder, reference, options.n) for folder in options.images]))


if __name__ == "__main__":
    guard(main)
