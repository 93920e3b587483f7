"""The benchmarks of one GPU, step by step, each in a process of its own; see scripts/gpu/bench.sh.

    python benchmarks/gpu/suite.py --output OUT               # at most 12 minutes, H100 or H200
    python benchmarks/gpu/suite.py --output OUT --toy         # rehearsal on a CPU, small networks
    python benchmarks/gpu/suite.py --output OUT --only tiles_sd15 attention

A step that fails, or takes longer than its limit, does not stop the others. The result files
OUT/gpu_HARDWARE_DATE_COMMIT.json and .md are written again after each step. Networks have random
weights. Times are those of CUDA events; compilation is measured apart. Exit code 3 if a step did
not end well.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

if sys.path and sys.path[0] == str(Path(__file__).resolve().parent):
    sys.path[0] = str(Path(__file__).resolve().parent.parent.parent)

from benchmarks.machine import describe
from benchmarks.measure import PACKAGES, Spread, show, slug
from pipeline import files
from pipeline.errors import EXIT_INCOMPLETE, guard

ROOT = Path(__file__).resolve().parents[2]
LEAST_S = 15.0  # a step is not begun with less time left


@dataclass(frozen=True)
class Plan:
    """A step: how long it may take, and the function that makes it, found when it runs."""

    limit_s: float
    find: Callable[[], Callable[[Any], object]]


def _tiles(family: str) -> Callable[[Any], object]:
    from benchmarks.gpu import tiles

    return partial(tiles.tiles, family=family)


def _of_tiles(name: str) -> Callable[[Any], object]:
    from benchmarks.gpu import tiles

    return getattr(tiles, name)


def _fused(compiled: bool) -> Callable[[Any], object]:
    from benchmarks.gpu import images

    return partial(images.fused_images, compiled=compiled)


def _of_images(name: str) -> Callable[[Any], object]:
    from benchmarks.gpu import images

    return getattr(images, name)


def _training(compiled: bool) -> Callable[[Any], object]:
    from benchmarks.gpu import training

    return partial(training.training, compiled=compiled)


def _segmenter() -> Callable[[Any], object]:
    from benchmarks.gpu import segmenter

    return segmenter.segmenter


def _tests() -> Callable[[Any], object]:
    return run_tests


STEPS = {  # the most important first: the last ones may find no time left
    "tiles_sd15": Plan(220, partial(_tiles, "sd15")),
    "fused_eager": Plan(130, partial(_fused, False)),
    "training_eager": Plan(80, partial(_training, False)),
    "tests": Plan(110, _tests),
    "batches": Plan(50, partial(_of_tiles, "batches")),
    "segmenter": Plan(50, _segmenter),
    "fused_compiled": Plan(200, partial(_fused, True)),
    "stock_images": Plan(240, partial(_of_images, "stock_images")),
    "tiles_sd21": Plan(220, partial(_tiles, "sd21")),
    "attention": Plan(40, partial(_of_tiles, "attention")),
    "batch_equality": Plan(60, partial(_of_images, "batch_equality")),
    "training_compiled": Plan(170, partial(_training, True)),
}


def run_tests(step: Any) -> None:
    """Run the tests that need a GPU."""
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-m",
        "gpu",
        "-q",
        "-p",
        "no:cacheprovider",
        "tests/gpu",
    ]
    if step.toy:
        command.append("--collect-only")
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    step.details["tests"] = done.stdout[-6000:]
    step.add("tests that need a GPU, exit code", done.returncode, "", "<= 0")


def run_step(name: str, folder: Path, output: Path, *, toy: bool) -> None:
    """Run one step in this process and write what it found, also if it fails."""
    import torch

    from benchmarks.gpu.device import Step, clocks

    step = Step(folder, toy)
    torch.manual_seed(0)
    torch.set_num_threads(1 if toy else torch.get_num_threads())
    before = clocks()
    try:
        STEPS[name].find()(step)
    finally:
        found = {"rows": step.rows, "details": step.details, "clocks": [before, clocks()]}
        if step.device.type == "cuda":
            found["gpu"] = torch.cuda.get_device_name()
        files.write_json(output, found)


def write_bases(folder: Path, families: set[str], *, toy: bool) -> None:
    """Write the base models that are missing, side by side."""
    running = []
    for family in sorted(families):
        if not (folder / family / "model_index.json").exists():
            command = [
                sys.executable, "benchmarks/random_base.py", "--family", family, "--output",
                str(folder / family), "--controlnet", str(folder / f"{family}_controlnet"),
                "--size", "toy" if toy else "real",
            ]  # fmt: skip
            running.append(subprocess.Popen(command, cwd=ROOT))
    for process in running:
        if process.wait():
            raise RuntimeError("a base model was not written; see the message above")


def child(name: str, arguments: argparse.Namespace, limit_s: float) -> dict[str, Any]:
    """Run a step in a process of its own; return what it found and how it ended."""
    output = arguments.output / "steps" / f"{name}.json"
    output.parent.mkdir(parents=True, exist_ok=True)
    output.unlink(missing_ok=True)
    command = [
        sys.executable, "benchmarks/gpu/suite.py", "--step", name,
        "--output", str(output.resolve()), "--work", str(arguments.work.resolve()),
    ]  # fmt: skip
    start, state, log = time.perf_counter(), "done", ""
    try:
        done = subprocess.run(
            command + ["--toy"] * arguments.toy, cwd=ROOT, capture_output=True, text=True,
            timeout=limit_s,
        )  # fmt: skip
        log = done.stderr[-3000:]
        if done.returncode:
            state = f"failed: {(log.strip().splitlines() or ['no message'])[-1][:200]}"
    except subprocess.TimeoutExpired:
        state = f"stopped after {limit_s:.0f} s"
    found = json.loads(output.read_text()) if output.exists() else {"rows": [], "details": {}}
    if state == "done" and found["details"].get("failed"):
        state = "done in part"
    seconds = round(time.perf_counter() - start, 1)
    return {**found, "state": state, "seconds": seconds, "log": log if state != "done" else ""}


def hardware() -> str:
    """Return the name of the GPU, "cpu" without one."""
    command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except OSError:
        return "cpu"
    return done.stdout.strip().splitlines()[0] if done.stdout.strip() else "cpu"


def write(folder: Path, content: dict[str, Any]) -> None:
    """Write both result files."""
    theme = "gpu-toy" if content["toy"] else "gpu"
    name = "_".join([theme, slug(content["gpu"]), content["date"], content["commit"]])
    files.write_json(folder / f"{name}.json", content)
    files.write_bytes(folder / f"{name}.md", markdown(content).encode())


def markdown(content: dict[str, Any]) -> str:
    """Return the results as a page."""
    versions = ", ".join(f"{name} {version}" for name, version in content["versions"].items())
    lines = [
        f"# Benchmarks of one GPU, {content['date']}",
        "",
        f"{content['gpu']}; {content['processor']}, {content['machine']}. {versions}. "
        f"Commit {content['commit']}. Random weights.",
        "Median (lowest to highest). The ceiling is computed from FLOPs and memory traffic of an "
        "H200; a better figure is a measuring error.",
    ]
    if content["toy"]:
        lines += ["", "**Rehearsal with small networks: the figures mean nothing.**"]
    for name, step in content["steps"].items():
        lines += ["", f"## {name}: {step['state']}, {step['seconds']:g} s", ""]
        if step["rows"]:
            lines += [
                "| measurement | result | goal | ceiling | reached |",
                "|---|---|---|---|---|",
            ]
        for row in step["rows"]:
            spread = Spread(row["median"], row["low"], row["high"], row["repeats"])
            reached = {True: "yes", False: "no", None: ""}[row.get("met")]
            lines.append(
                f"| {row['name']} | {show(spread, row['unit'])} | {row['goal']} | "
                f"{row['ceiling']} | {reached} |"
            )
        for note in ("failed", "unsupported"):
            for part, reason in step["details"].get(note, {}).items():
                lines.append(f"\n- {note}: {part} ({reason})")
        for moment, values in zip(("before", "after"), step.get("clocks", []), strict=False):
            if values:
                shown = ", ".join(f"{key} {value}" for key, value in values.items())
                lines.append(f"\n{moment}: {shown}")
    return "\n".join(lines) + "\n"


def main() -> int | None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, required=True, help="folder that receives results")
    parser.add_argument("--work", type=Path, default=Path("/tmp/gpu_bench"), help="base models")
    parser.add_argument("--toy", action="store_true", help="rehearsal on a CPU, small networks")
    parser.add_argument("--only", nargs="+", choices=list(STEPS), help="steps to run")
    parser.add_argument("--seconds", type=float, default=720, help="time of all steps together")
    parser.add_argument("--step", choices=list(STEPS), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.step:
        run_step(arguments.step, arguments.work, arguments.output, toy=arguments.toy)
        return None
    start, content = time.perf_counter(), {**describe(*PACKAGES), "toy": arguments.toy}
    content |= {"gpu": hardware(), "steps": {}}
    names = arguments.only or list(STEPS)
    families = {"sd15"} | ({"sd21"} if "tiles_sd21" in names else set())
    write_bases(arguments.work, families, toy=arguments.toy)
    for name in names:
        left = arguments.seconds - (time.perf_counter() - start)
        if left < LEAST_S:
            content["steps"][name] = {"state": "no time left", "seconds": 0, "rows": [],
                                      "details": {}}  # fmt: skip
        else:
            limit = left if arguments.toy else min(left, STEPS[name].limit_s)
            content["steps"][name] = child(name, arguments, limit)
        write(arguments.output, content)
        print(f"{name}: {content['steps'][name]['state']}", flush=True)
    print(markdown(content))
    bad = [name for name, step in content["steps"].items() if step["state"] != "done"]
    return EXIT_INCOMPLETE if bad else None


if __name__ == "__main__":
    guard(main)
