"""Every benchmark runs to its end at toy size; how calls are timed, machines refused, results kept.

No figure is asserted: the machine of a test is not quiet.
"""

import argparse
import importlib
import json
import math
import os
import re
import sys
import time
from pathlib import Path

import pytest
from accelerate.state import AcceleratorState

from benchmarks import many_gpus, measure, suite, workers
from pipeline.dataset_writer import DatasetWriter
from pipeline.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
OTHERS = (
    "diffseg",
    "finetuning",
    "many_gpus",
    "renderer",
    "run_overhead",
)  # not part of `make bench`
QUIET = {"load_average": 0.1, "busy_percent": 1.0, "loop_ms": 10.0, "wall_per_processor_time": 1.0}


@pytest.fixture
def arguments(tmp_path: Path) -> argparse.Namespace:
    return measure.parser("A benchmark.").parse_args(["--results", str(tmp_path)])


def write_paused_set(folder: Path, n: int, **_: int) -> None:
    """Write a set of `n` samples without networks."""
    samples = [workers.paused_sample(index) for index in range(n)]
    rows = [(index, one.image, one.spec.label, {}) for index, one in enumerate(samples)]
    DatasetWriter(folder, config={}).write_all(rows)


@pytest.mark.parametrize("name", [*suite.PROGRAMS, *OTHERS])
def test_program_runs_at_toy_size(name: str, tmp_path: Path, monkeypatch) -> None:
    options = ["--quick", "--force", "--results", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", [f"benchmarks/{name}.py", *options])
    monkeypatch.setattr(measure, "watch_machine", lambda: QUIET)
    if name == "workers":  # real runs of several workers: tests/generation/test_safety.py
        monkeypatch.setattr(workers, "generate", write_paused_set)
    AcceleratorState._reset_state(reset_partial_state=True)  # as in a process of its own
    importlib.import_module(f"benchmarks.{name}").main()
    (path,) = tmp_path.glob("*.json")
    content = json.loads(path.read_text())
    assert path.name.startswith(f"{name}-quick_") and content["quick"]
    assert content["results"] and content["commit"] in path.name
    for row in content["results"]:
        assert all(math.isfinite(row[key]) for key in ("low", "median", "high")), row["name"]
    page = path.with_suffix(".md").read_text()
    assert page.startswith("# ") and "figures mean nothing" in page
    assert all(f"| {row['name']} |" in page for row in content["results"])


def test_the_rate_of_many_gpus_is_that_of_the_time_they_share(tmp_path: Path) -> None:
    moments = {0: (10, 20, 30, 40), 1: (25, 27, 35)}  # both are at work from 25 to 35
    for process, of_one in moments.items():
        rows = []
        for moment in of_one:
            name = f"{process}-{moment}.png"
            (tmp_path / name).touch()
            os.utime(tmp_path / name, (moment, moment))
            rows.append(json.dumps({"status": "ok", "image_file_name": name}) + "\n")
        (tmp_path / f"metadata-00{process}.jsonl").write_text("".join(rows))
    assert math.isclose(many_gpus.steady_rate(tmp_path, 2), 3 / 10)
    with pytest.raises(UserError, match="fewer than two images"):
        many_gpus.steady_rate(tmp_path, 3)


def test_calls_are_made_in_turn() -> None:
    made: list[str] = []

    def first() -> None:
        made.append("first")
        time.sleep(0.01)

    def second() -> float:
        made.append("second")
        return 0.005  # its own measurement

    seconds = measure.in_turn({"first": first, "second": second}, 3)
    assert made == ["first", "second"] * 4  # one round of warm-up
    assert seconds["second"] == [0.005] * 3 and min(seconds["first"]) >= 0.01
    spread = measure.ratio({"a": [2.0, 6.0, 3.0], "b": [1.0, 2.0, 2.0]}, "a", "b")
    assert spread == measure.Spread(2.0, 1.5, 3.0, 3)


@pytest.mark.parametrize(
    ("value", "goal", "met"),
    [(1.0, "<= 1.05", True), (1.1, "<= 1.05", False), (2.5, ">= 2.5", True), (0, "<= 1e-5", True)],
)
def test_goals(value: float, goal: str, met: bool) -> None:
    assert measure.meets(value, goal) is met


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"load_average": 500.0}, "the load average is 500"),
        ({"busy_percent": 60.0}, "other programs use 60 %"),
        ({"wall_per_processor_time": 1.3}, "1.3 times its processor time"),
    ],
)
def test_loaded_machines_are_refused_or_marked(change, reason, arguments, monkeypatch) -> None:
    monkeypatch.setattr(measure, "watch_machine", lambda: QUIET | change)
    with pytest.raises(UserError, match=f"not quiet: .*{reason}.*--force"):
        measure.Results("theme", "A theme", arguments)
    arguments.force = True
    results = measure.Results("theme", "A theme", arguments)
    results.add("speed", 3.0, "1/s", ">= 2")
    path = results.write()
    assert path.name.startswith("theme-forced_")
    assert "**The machine was not quiet" in path.with_suffix(".md").read_text()
    assert reason in json.loads(path.read_text())["disturbed"]


def test_a_suite_does_not_count_the_load_of_its_own_programs(arguments, monkeypatch) -> None:
    state = QUIET | {"load_average": 500.0}
    assert measure.disturbance(state) and not measure.disturbance(state, within_suite=True)
    monkeypatch.setattr(measure, "watch_machine", lambda: QUIET)
    path = measure.Results("theme", "A theme", arguments).write()
    theme, hardware, date, commit = path.stem.split("_")
    assert theme == "theme" and re.fullmatch(r"[a-z0-9-]+-cores", hardware)
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", date) and commit


def test_repeats_below_one_are_refused(arguments, monkeypatch) -> None:
    monkeypatch.setattr(measure, "watch_machine", lambda: QUIET)
    arguments.repeats = 0
    with pytest.raises(UserError, match="--repeats 0: must be 1 or more"):
        measure.Results("theme", "A theme", arguments)


def test_readme_lists_every_program() -> None:
    page = (ROOT / "benchmarks" / "README.md").read_text()
    for name in (*suite.PROGRAMS, *OTHERS):
        assert f"| `{name}.py` |" in page, name
