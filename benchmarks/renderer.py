"""Measure how many labelled images of 128x256 Pocket City renders per second on one core.

    python benchmarks/renderer.py [--n 120]

Renders each split in turn, in one process with one thread. The rate refers to processor time.
Nothing is written or compressed.
"""

import sys
import time
from pathlib import Path

if sys.path and sys.path[0] == str(Path(__file__).resolve().parent):  # see CONTRIBUTING.md
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from benchmarks import measure
from pipeline.errors import guard
from pipeline.pocket.splits import SPLITS
from pipeline.pocket_city import render_sample
from pipeline.setting_checks import require_positive


def seconds_of(split: str, n: int) -> float:
    """Return the seconds of processor time of `n` images."""
    started = time.process_time()
    for index in range(n):
        render_sample(index, split, (128, 256))
    return time.process_time() - started


def main() -> None:
    parser = measure.parser(__doc__)
    parser.add_argument("--n", type=int, default=60, help="images of each split and repeat")
    arguments = parser.parse_args()
    require_positive(arguments, "n")
    results = measure.Results("renderer", "Rendering Pocket City", arguments)
    n = 1 if arguments.quick else arguments.n
    splits = sorted(SPLITS)[:2] if arguments.quick else sorted(SPLITS)
    calls = {split: (lambda split=split: seconds_of(split, n)) for split in splits}
    for split, seconds in measure.in_turn(calls, results.repeats).items():
        rates = measure.Spread.of([n / value for value in seconds])
        results.add(f"images per second and core, {split}", rates, "1/s")
    results.write()


if __name__ == "__main__":
    guard(main)
