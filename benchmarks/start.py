"""Measure how long programs take to start: --help, and the first image of the pocket model.

python benchmarks/start.py                         # about two minutes
"""

import subprocess
import sys
import tempfile
import time
from pathlib import Path

if sys.path and sys.path[0] == str(Path(__file__).resolve().parent):  # see CONTRIBUTING.md
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from benchmarks import measure
from pipeline.errors import UserError, guard

ROOT = Path(__file__).resolve().parent.parent
PROGRAMS = (
    "generation/run.py", "finetune/unet.py", "finetune/controlnet.py", "segtrain/train.py",
    "segtrain/score.py", "pipeline/run.py", "pipeline/prepare.py",
)  # fmt: skip


def show_help(program: str) -> None:
    """Run a program with --help in a process of its own."""
    command = [sys.executable, program, "--help"]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)


def first_image(folder: Path) -> float:
    """Return the seconds from the command to the first image in a new output folder."""
    command = [sys.executable, "generation/run.py", "--n", "1", "--output", str(folder)]
    start = time.perf_counter()
    running = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    seconds = 0.0
    while not seconds and running.poll() is None:
        if next(folder.glob("metadata*.jsonl"), None):
            seconds = time.perf_counter() - start
        time.sleep(0.01)
    if running.wait():
        raise UserError(f"{' '.join(command)}: failed; run it to see why")
    return seconds or time.perf_counter() - start


def main() -> None:
    arguments = measure.parser(__doc__).parse_args()
    results = measure.Results("start", "Start of the programs", arguments)
    programs = PROGRAMS[:1] if arguments.quick else PROGRAMS
    calls = {program: (lambda program=program: show_help(program)) for program in programs}
    seconds = measure.in_turn(calls, results.repeats, warm_up=not arguments.quick)
    for program, values in seconds.items():
        results.add(f"python {program} --help", measure.Spread.of(values), "s", "<= 1")
    with tempfile.TemporaryDirectory() as name:
        numbers = iter(range(10**6))
        first = measure.in_turn(
            {"first": lambda: first_image(Path(name) / str(next(numbers)))},
            results.repeats,
            warm_up=not arguments.quick,
        )["first"]
    results.add("first image of the pocket model after the command", measure.Spread.of(first), "s",
                "<= 8")  # fmt: skip
    results.details["seconds"] = {**seconds, "first image": first}
    results.write()


if __name__ == "__main__":
    guard(main)
