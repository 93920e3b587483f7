"""Generation by one process per GPU, against one process: images per second of a run.

    python benchmarks/many_gpus.py --processes 8 -- --base BASE --controlnet DIR --label-maps LABELS
    python benchmarks/many_gpus.py --processes 2         # the pocket model on two CPU cores

Options after `--` go to generation/run.py. A run has `--images` images per process. The rate
counts only images that are written while all processes generate: after each has written its first
image, and before one has written its last. So loading and compilation do not count. On a CPU the
processes share the memory bus, so the ratio says little about GPUs.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

if sys.path and sys.path[0] == str(Path(__file__).resolve().parent):  # see CONTRIBUTING.md
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import torch

from benchmarks import measure
from pipeline.errors import UserError, guard
from pipeline.launching import launch_prefix
from pipeline.metadata import read_lines
from pipeline.reading import parse_json
from pipeline.setting_checks import require_positive

ROOT = Path(__file__).resolve().parent.parent
GOAL = 0.975  # of the number of processes: 7.8 for eight


def generate(folder: Path, processes: int, images: int, options: list[str]) -> float:
    """Return the images per second of a run of `processes` with `images` each."""
    on_gpus = torch.accelerator.is_available()
    command = [
        *launch_prefix("accelerate", processes, on_gpus), "generation/run.py",
        "--n", str(processes * images), "--output", str(folder), *options,
    ]  # fmt: skip
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    if done.returncode:
        text = done.stderr.decode(errors="replace").strip().splitlines()
        raise UserError(f"{' '.join(command)}: {text[-1] if text else done.returncode}")
    return steady_rate(folder, processes)


def steady_rate(folder: Path, processes: int) -> float:
    """Return the images per second while all processes wrote; raises `UserError` if never."""
    written = []
    for path in sorted(folder.glob("metadata-*.jsonl")):
        rows = [parse_json(line, dict) for _, line, _ in read_lines(path) if line]
        names = [row["image_file_name"] for row in rows if row["status"] == "ok"]
        written.append([(folder / name).stat().st_mtime for name in names])
    if len(written) < processes or min(map(len, written)) < 2:
        raise UserError("--images: a process has written fewer than two images; ask for more")
    begin, end = max(map(min, written)), min(map(max, written))
    count = sum(begin < moment <= end for of_one in written for moment in of_one)
    if end <= begin:
        raise UserError("--images: the processes were not at work together; ask for more")
    return count / (end - begin)


def main() -> None:
    parser = measure.parser(__doc__, repeats=3)
    parser.add_argument("--processes", type=int, default=2, help="processes, one per GPU")
    parser.add_argument("--images", type=int, default=40, help="images per process and run")
    parser.add_argument("options", nargs="*", help="options of generation/run.py, after --")
    arguments = parser.parse_args()
    require_positive(arguments, "images")
    if arguments.processes < 2:
        raise UserError(f"--processes {arguments.processes}: must be 2 or more")
    results = measure.Results("many_gpus", "One process per GPU", arguments)
    images = 6 if results.quick else arguments.images
    options = [*arguments.options, *(["--steps", "2"] if results.quick else [])]
    rates: dict[str, list[float]] = {"one": [], "all": []}
    counts = {"one": 1, "all": arguments.processes}
    with tempfile.TemporaryDirectory() as name:
        for repeat in range(results.repeats):
            for kind, count in counts.items():
                folder = Path(name) / f"{kind}{repeat}"
                rates[kind].append(generate(folder, count, images, options))
    results.add("images per second, one process", measure.Spread.of(rates["one"]), "1/s")
    results.add(
        f"images per second, {arguments.processes} processes",
        measure.Spread.of(rates["all"]),
        "1/s",
    )
    results.add(
        f"{arguments.processes} processes / one",
        measure.ratio(rates, "all", "one"),
        "",
        f">= {GOAL * arguments.processes:.3g}",
    )
    results.write()


if __name__ == "__main__":
    guard(main)
