"""Measure the preflight check on the headers of image pairs.

    python benchmarks/preflight.py                 # 25,000 pairs, two processes
    python benchmarks/preflight.py --quick --force # that it runs

The dataset is written to a temporary folder in the layout of GTA, as hard links to one small image
and one label.
"""

import os
import sys
import tempfile
from pathlib import Path

import numpy as np

if sys.path and sys.path[0] == str(Path(__file__).resolve().parent):  # see CONTRIBUTING.md
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from benchmarks import measure
from pipeline import files, images
from pipeline.catalogue.specs import load_spec
from pipeline.errors import guard
from pipeline.preflight import preflight


def write_tree(root: Path, num_pairs: int) -> None:
    """Write the first pair and link the others to it."""
    rng = np.random.default_rng(0)
    contents = {
        "images": images.encode_png(rng.integers(0, 256, (32, 64, 3), dtype=np.uint8)),
        "labels": images.encode_png(np.full((32, 64), 7, np.uint8)),
    }
    for folder, data in contents.items():
        first = root / folder / "00001.png"
        files.write_bytes(first, data)
        for number in range(2, num_pairs + 1):
            os.link(first, root / folder / f"{number:05d}.png")


def main() -> None:
    parser = measure.parser(__doc__)
    parser.add_argument("--pairs", type=int, default=25_000, help="image pairs of the dataset")
    parser.add_argument("--workers", type=int, default=2, help="processes that check")
    arguments = parser.parse_args()
    results = measure.Results("preflight", "Preflight check", arguments)
    num_pairs = 50 if arguments.quick else arguments.pairs
    with tempfile.TemporaryDirectory() as folder:
        write_tree(Path(folder), num_pairs)

        def check() -> None:
            assert not preflight(load_spec("gta"), Path(folder), "all", workers=arguments.workers)

        seconds = measure.in_turn({"check": check}, results.repeats)["check"]
    name = f"check of {num_pairs} pairs, {arguments.workers} processes"
    results.add(name, measure.Spread.of(seconds), "s")
    results.write()


if __name__ == "__main__":
    guard(main)
