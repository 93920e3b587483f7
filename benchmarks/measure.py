"""What the programs of this folder share: calls timed in turn, a quiet machine, result files.

A program measures two ways to do the same thing in one process, one call of each in turn, and
reports the median of the pairwise ratios. A result names the machine, its load, the versions and
the commit. On a loaded machine a program stops before it measures; `--force` goes on and marks the
result.
"""

import argparse
import os
import re
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from benchmarks.machine import describe
from pipeline import files
from pipeline.errors import UserError
from pipeline.setting_checks import require_positive

REPEATS = 5
PACKAGES = ("torch", "diffusers", "transformers", "accelerate", "mmsegmentation", "numpy", "pillow")
MOST_LOAD = 0.5  # load average per core
MOST_BUSY = 15.0  # per cent of all cores, by other programs
MOST_LOST = 1.05  # wall time / processor time of the calibration loop
WATCH_S = 2.0
ROUNDS, ROUND_SIZE = 15, 200_000


@dataclass(frozen=True)
class Spread:
    """The median and the range of repeated measurements."""

    median: float
    low: float
    high: float
    repeats: int

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """Summarize one or more values."""
        return cls(statistics.median(values), min(values), max(values), len(values))


def in_turn(
    calls: Mapping[str, Callable[[], object]], repeats: int, *, warm_up: bool = True
) -> dict[str, list[float]]:
    """Return the seconds of each call, `repeats` times, one call of each in turn (A/B/A/B).

    A call that returns a float has measured its own seconds. `warm_up` makes each call once before.
    """
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for repeat in range(-1 if warm_up else 0, repeats):
        for name, call in calls.items():
            start = time.perf_counter()
            own = call()
            elapsed = own if isinstance(own, float) else time.perf_counter() - start
            if repeat >= 0:
                seconds[name].append(elapsed)
    return seconds


def ratio(seconds: Mapping[str, Sequence[float]], first: str, second: str) -> Spread:
    """Return the seconds of `first` divided by those of `second`, repeat by repeat."""
    return Spread.of([a / b for a, b in zip(seconds[first], seconds[second], strict=True)])


def repeated(call: Callable[[], object], times: int) -> Callable[[], None]:
    """Return a call that makes `call` several times, where one takes too short to be timed."""

    def all_of_them() -> None:
        for _ in range(times):
            call()

    return all_of_them


def parser(doc: str | None, *, repeats: int = REPEATS) -> argparse.ArgumentParser:
    """Return a parser with the options that all programs have; the docstring is its help."""
    made = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--repeats", type=int, default=repeats, help="repeats of each measurement")
    made.add_argument("--quick", action="store_true", help="toy sizes: show that the program runs")
    made.add_argument(
        "--force", action="store_true", help="measure on a loaded machine; marks the result"
    )
    made.add_argument(
        "--results",
        type=Path,
        default=Path("runs/benchmarks"),
        help="folder that receives THEME_HARDWARE_DATE_COMMIT.md and .json (runs/benchmarks)",
    )
    made.add_argument("--within-suite", action="store_true", help=argparse.SUPPRESS)
    return made


def calibrate() -> dict[str, float]:
    """Time a fixed loop; return its milliseconds and the wall time divided by processor time."""
    wall, lost = [], []
    for _ in range(ROUNDS):
        before = time.perf_counter(), time.thread_time()
        total = 0
        for number in range(ROUND_SIZE):
            total += number & 7
        elapsed = time.perf_counter() - before[0]
        wall.append(1000 * elapsed)
        lost.append(elapsed / (time.thread_time() - before[1]))
    return {
        "loop_ms": round(statistics.median(wall), 2),
        "wall_per_processor_time": round(statistics.median(lost), 3),
    }


def watch_machine() -> dict[str, float]:
    """Return load average, the share of all cores that others use, and the calibration loop."""
    load = os.getloadavg()[0]
    busy = psutil.cpu_percent(interval=WATCH_S)  # this process sleeps meanwhile
    return {"load_average": round(load, 2), "busy_percent": busy, **calibrate()}


def disturbance(state: Mapping[str, float], *, within_suite: bool = False) -> str:
    """Return what speaks against measuring now, an empty text if nothing does.

    `within_suite`: the load average is that of the program before, so it does not count.
    """
    most = MOST_LOAD * (os.cpu_count() or 1)
    if state["load_average"] > most and not within_suite:
        return f"the load average is {state['load_average']:g}, above {most:g}"
    if state["busy_percent"] > MOST_BUSY:
        return f"other programs use {state['busy_percent']:g} % of the processor"
    if state["wall_per_processor_time"] > MOST_LOST:
        return f"a loop took {state['wall_per_processor_time']:g} times its processor time"
    return ""


class Results:
    """The results of one program: checks the machine, collects figures, writes two files."""

    def __init__(self, theme: str, title: str, arguments: argparse.Namespace) -> None:
        require_positive(arguments, "repeats")
        self.theme, self.title, self.quick = theme, title, bool(arguments.quick)
        self.repeats = 1 if self.quick else arguments.repeats
        self.folder = arguments.results
        self.rows: list[dict[str, Any]] = []
        self.details: dict[str, Any] = {}
        self.state = watch_machine()
        self.disturbed = disturbance(self.state, within_suite=arguments.within_suite)
        if self.disturbed and not arguments.force:
            raise UserError(
                f"this machine is not quiet: {self.disturbed}; wait until it is, or measure "
                "all the same with --force, which marks the result"
            )
        self.about = describe(*PACKAGES)
        self.started = time.perf_counter()

    def add(self, name: str, value: "Spread | float | int", unit: str = "", goal: str = "") -> None:
        """Add a figure; `goal` is "<= number", ">= number" or empty."""
        spread = value if isinstance(value, Spread) else Spread.of([float(value)])
        row = {"name": name, **asdict(spread), "unit": unit, "goal": goal}
        if goal:
            row["met"] = meets(spread.median, goal)
        self.rows.append(row)
        print(f"{name}: {show(spread, unit)}", file=sys.stderr, flush=True)

    def write(self) -> Path:
        """Write the JSON and the Markdown file, print the latter, return the path of the former."""
        seconds = round(time.perf_counter() - self.started, 1)
        content = {
            "theme": self.theme,
            "title": self.title,
            "command": shlex.join(["python", *sys.argv]),
            "quick": self.quick,
            "disturbed": self.disturbed,
            "machine_before": self.state,
            "load_average_after": round(os.getloadavg()[0], 2),
            "seconds": seconds,
            **self.about,
            "results": self.rows,
            "details": self.details,
        }
        path = self.folder / f"{self.name()}.json"
        files.write_json(path, content)
        text = markdown(content)
        files.write_bytes(path.with_suffix(".md"), text.encode())
        print(text)
        return path

    def name(self) -> str:
        """Return THEME_HARDWARE_DATE_COMMIT; the theme says whether sizes or machine were unfit."""
        theme = self.theme + "-quick" * self.quick + "-forced" * bool(self.disturbed)
        hardware = f"{self.about['processor']} {os.cpu_count()} cores"
        return "_".join([theme, slug(hardware), self.about["date"], self.about["commit"]])


def slug(text: str) -> str:
    """Return a text as part of a file name."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def meets(value: float, goal: str) -> bool:
    """Tell whether a value meets a goal such as "<= 1.05"."""
    sign, number = goal.split()
    return bool({"<=": np.less_equal, ">=": np.greater_equal}[sign](value, float(number)))


def show(spread: Spread, unit: str) -> str:
    """Return a figure with its range and unit."""
    text = f"{spread.median:.3g}" if abs(spread.median) < 1000 else f"{spread.median:.0f}"
    if spread.repeats > 1:
        text += f" ({spread.low:.3g} to {spread.high:.3g})"
    return f"{text} {unit}".rstrip()


def markdown(content: Mapping[str, Any]) -> str:
    """Return the result file as a page."""
    versions = ", ".join(f"{name} {version}" for name, version in content["versions"].items())
    before = content["machine_before"]
    lines = [
        f"# {content['title']}, {content['date']}",
        "",
        f"`{content['command']}`, commit {content['commit']}, {content['seconds']:g} s.",
        f"{content['processor']}, {content['machine']}. {versions}.",
        f"Load average {before['load_average']:g}, other programs {before['busy_percent']:g} %, "
        f"calibration loop {before['loop_ms']:g} ms.",
        "Median (lowest to highest) of the repeats; both sides of a ratio were measured in turn.",
    ]
    if content["quick"]:
        lines += ["", "**Toy sizes (`--quick`): the figures mean nothing.**"]
    if content["disturbed"]:
        lines += ["", f"**The machine was not quiet: {content['disturbed']}.**"]
    lines += ["", "| measurement | result | goal | reached |", "|---|---|---|---|"]
    for row in content["results"]:
        spread = Spread(row["median"], row["low"], row["high"], row["repeats"])
        reached = {True: "yes", False: "no", None: ""}[row.get("met")]
        lines.append(f"| {row['name']} | {show(spread, row['unit'])} | {row['goal']} | {reached} |")
    return "\n".join(lines) + "\n"
