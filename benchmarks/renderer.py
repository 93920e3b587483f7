"""Measure how many labelled images of 128x256 Pocket City renders per second on one core.

    python benchmarks/renderer.py [--n 120] [--repeats 3]

Renders each split in turn, in one process with one thread. The rate refers to processor time;
median and range are over repeats. Nothing is written or compressed. Run it on an idle machine.
"""

import argparse
import json
import statistics
import sys
import time
from pathlib import Path

if sys.path and sys.path[0] == str(Path(__file__).resolve().parent):  # see CONTRIBUTING.md
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from benchmarks.machine import describe
from pipeline.errors import UserError, guard
from pipeline.pocket.splits import SPLITS
from pipeline.pocket_city import render_sample


def rate(split: str, n: int) -> float:
    """Return images per second of processor time."""
    started = time.process_time()
    for index in range(n):
        render_sample(index, split, (128, 256))
    return n / (time.process_time() - started)


def main() -> int | None:
    """Print the table and a description of the machine."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--n", type=int, default=120, help="images of each split and repeat")
    parser.add_argument("--repeats", type=int, default=3, help="repeats of each split")
    options = parser.parse_args()
    if min(options.n, options.repeats) < 1:
        raise UserError("--n and --repeats: must be 1 or more")
    print("| split | images per second and core |\n|---|---|")
    for split in sorted(SPLITS):
        render_sample(0, split, (128, 256))  # imports
        rates = [rate(split, options.n) for _ in range(options.repeats)]
        middle = statistics.median(rates)
        print(f"| {split} | {middle:.0f} ({min(rates):.0f} to {max(rates):.0f}) |", flush=True)
    print(f"\n{json.dumps(describe('numpy', 'opencv-python'))}")
    return None


if __name__ == "__main__":
    guard(main)
