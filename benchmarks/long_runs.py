"""Measure whether cost and memory of an image stay the same in long runs of generation.

    python benchmarks/long_runs.py                     # 100 and 400 images, about two minutes
    python benchmarks/long_runs.py --full              # 100, 1,000 and 5,000 images

Each run is a process of its own. Images are small and take one step, so that what a run does beside
the networks is a large part of their cost. Cost: the seconds in the rows, of the last tenth of the
run divided by the tenth after the first. Memory: the largest resident set of the process.
"""

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

if sys.path and sys.path[0] == str(Path(__file__).resolve().parent):  # see CONTRIBUTING.md
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from benchmarks import measure
from pipeline.errors import guard
from pipeline.metadata import read_rows

ROOT = Path(__file__).resolve().parent.parent
SMALL = (
    "--steps", "1", "--fusion", "none", "--crop-px", "64", "128", "--rare-classes.enabled", "False",
)  # fmt: skip
MEASURE_CHILD = (
    "import resource, subprocess, sys; "
    "subprocess.run(sys.argv[1:], check=True, stdout=2); "
    "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
)
KIB = 1024 if sys.platform != "darwin" else 1  # ru_maxrss is in KiB on Linux, in bytes on macOS


def run(folder: Path, n: int) -> dict[str, float]:
    """Generate `n` images; return seconds of an image early and late, in all, and the memory."""
    command = [sys.executable, "generation/run.py", "--n", str(n), "--output", str(folder), *SMALL]
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", MEASURE_CHILD, *command],
        cwd=ROOT, check=True, capture_output=True, text=True,
    )  # fmt: skip
    wall = time.perf_counter() - start
    rows = [row for _, row in sorted(read_rows(folder).items())]
    seconds, part = [row["seconds"] for row in rows], max(1, n // 10)
    return {
        "early": statistics.median(seconds[part : 2 * part] or seconds),
        "late": statistics.median(seconds[-part:]),
        "wall": wall,
        "memory_mib": int(done.stdout.split()[-1]) * KIB / 2**20,
    }


def main() -> None:
    parser = measure.parser(__doc__, repeats=1)
    parser.add_argument("--full", action="store_true", help="runs of up to 5,000 images")
    arguments = parser.parse_args()
    results = measure.Results("long_runs", "Cost of an image in long runs", arguments)
    sizes = (2,) if arguments.quick else (100, 1000, 5000) if arguments.full else (100, 400)
    found: dict[int, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as name:
        for n in sizes:
            found[n] = run(Path(name) / str(n), n)
    for n, row in found.items():
        results.add(f"cost of an image, {n} images, late / early", row["late"] / row["early"], "",
                    "<= 1.05")  # fmt: skip
    first, last = found[sizes[0]], found[sizes[-1]]
    if len(sizes) > 1:
        per_image = (last["wall"] - first["wall"]) / (sizes[-1] - sizes[0])
        results.add("seconds of an image beyond the first run", per_image, "s")
    results.add(f"memory, {sizes[-1]} images / {sizes[0]}",
                last["memory_mib"] / first["memory_mib"], "", "<= 1.05")  # fmt: skip
    results.details["runs"] = {str(n): row for n, row in found.items()}
    results.write()


if __name__ == "__main__":
    guard(main)
