"""Measure the preflight check on the headers of image pairs.

    python benchmarks/preflight.py                 # 25,000 pairs, two processes
    python benchmarks/preflight.py --pairs 500     # a small version

The dataset is written to a temporary folder in the layout of GTA, as hard links to one small image
and one label. Prints one line of JSON.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

if sys.path and sys.path[0] == str(Path(__file__).resolve().parent):  # see CONTRIBUTING.md
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from benchmarks.machine import describe
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
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--pairs", type=int, default=25_000, help="image pairs of the dataset")
    parser.add_argument("--workers", type=int, default=2, help="processes that check")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        write_tree(Path(folder), arguments.pairs)
        start = time.perf_counter()
        faults = preflight(load_spec("gta"), Path(folder), "all", workers=arguments.workers)
        seconds = time.perf_counter() - start
    assert not faults
    result = {
        "pairs": arguments.pairs,
        "workers": arguments.workers,
        "seconds": round(seconds, 2),
        "pairs_per_s": round(arguments.pairs / seconds),
        **describe("pillow", "numpy"),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    guard(main)
