"""Run the benchmarks of the CPU one after the other; `make bench` calls it.

    python benchmarks/suite.py                         # about 40 minutes on two quiet cores
    python benchmarks/suite.py --only fusion engine
    python benchmarks/suite.py --quick --force         # that all of them run

A program that fails does not stop the others. Results: one Markdown and one JSON file per program.
Exit code 3 if a program failed.
"""

import subprocess
import sys
import time
from pathlib import Path

if sys.path and sys.path[0] == str(Path(__file__).resolve().parent):  # see CONTRIBUTING.md
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from benchmarks import measure
from pipeline.errors import EXIT_INCOMPLETE, UserError, guard

ROOT = Path(__file__).resolve().parent.parent
PROGRAMS = (
    "fusion", "narrow_fusion", "stock_pipelines", "precision", "engine", "workers", "long_runs",
    "data_path", "opening", "preflight", "controlnet_training", "segmentation_training", "start",
)  # fmt: skip


def main() -> int | None:
    parser = measure.parser(__doc__)
    parser.add_argument("--only", nargs="+", choices=PROGRAMS, help="programs to run")
    parser.add_argument("--gta", type=Path, help="folder of GTA label maps, for fusion")
    arguments = parser.parse_args()
    disturbed = measure.disturbance(measure.watch_machine())
    if disturbed and not arguments.force:
        raise UserError(
            f"this machine is not quiet: {disturbed}; wait until it is, or measure all the same "
            "with --force, which marks the results"
        )
    options = ["--within-suite", "--results", str(arguments.results.resolve())]
    options += ["--repeats", str(arguments.repeats)]
    options += [f"--{name}" for name in ("quick", "force") if getattr(arguments, name)]
    failed, times = [], {}
    for program in arguments.only or PROGRAMS:
        extra = ["--gta", str(arguments.gta)] if arguments.gta and program == "fusion" else []
        start = time.perf_counter()
        command = [sys.executable, f"benchmarks/{program}.py", *options, *extra]
        if subprocess.run(command, cwd=ROOT).returncode:
            failed.append(program)
        times[program] = time.perf_counter() - start
    for program, seconds in times.items():
        state = "failed" if program in failed else "done"
        print(f"{program:<24} {seconds / 60:>5.1f} min  {state}")
    print(f"{'all':<24} {sum(times.values()) / 60:>5.1f} min  results: {arguments.results}")
    return EXIT_INCOMPLETE if failed else None


if __name__ == "__main__":
    guard(main)
