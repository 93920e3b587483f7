"""Run all stages of a recipe in order; each is a program of its own and can be resumed.

    python pipeline/run.py --recipe pocket
    python pipeline/run.py --recipe pocket --num-processes 8          # every stage on 8 GPUs
    python pipeline/run.py --recipe pocket --dry-run                  # only print the commands

A recipe is a YAML in configs/pipeline/. A stage is complete when its marker file exists, its
command is unchanged and none of its inputs was made again since; complete stages are skipped, so
the same command continues after an interruption. Stages whose command changed run again.
The workspace holds what the stages write, plus logs/<stage>.log and timings.json.
"""

import os
import shlex
import shutil
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if sys.path and sys.path[0] == str(Path(__file__).resolve().parent):  # see CONTRIBUTING.md
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from pipeline import files
from pipeline.config import parse
from pipeline.errors import UserError, guard
from pipeline.launching import (
    complaint,
    forward,
    has_accelerator,
    launch_prefix,
    stop_on_sigterm,
)
from pipeline.output_folders import require_writable
from pipeline.setting_checks import require_between
from pipeline.stage_records import read_record
from pipeline.stages import IN_CHECKOUT, Recipe, Stage, find_recipe, load_recipe

ROOT = Path(__file__).resolve().parent.parent
MOST_PROCESSES = 1024  # of one stage on one machine


@dataclass(frozen=True)
class Config:
    """Settings of a pipeline run."""

    recipe: str = "pocket"
    """Name of a file in configs/pipeline/, or a path to a recipe."""
    workspace: Path | None = None
    """Folder for everything the run writes. None: the one the recipe names."""
    num_processes: int | None = None
    """Processes per accelerate stage; on a machine with GPUs, at most one per GPU. None: one, or
    on a CPU as many as the recipe says for the stage."""
    values: tuple[str, ...] = ()
    """NAME=TEXT pairs that replace values of the recipe."""
    only: tuple[str, ...] = ()
    """Stages to consider; empty means all."""
    redo: tuple[str, ...] = ()
    """Stages to run again even if they are complete."""


def process_count(stage: Stage, asked: int | None, accelerator: bool) -> int:
    """Return how many processes a stage gets: those asked for, else its own number on a CPU."""
    if asked or accelerator:
        return asked or 1
    return min(stage.cpu_processes, os.cpu_count() or 1)


def named_values(pairs: tuple[str, ...]) -> dict[str, str]:
    """Return the NAME=TEXT pairs of `--values` as a dict."""
    for pair in pairs:
        if "=" not in pair:
            raise UserError(f"--values {pair}: must be NAME=TEXT")
    return dict(pair.split("=", 1) for pair in pairs)


def plan(recipe: Recipe, config: Config, record: dict[str, Any]) -> list[tuple[Stage, str]]:
    """List the considered stages, each with the reason to run it, empty if it is complete."""
    planned: list[tuple[Stage, str]] = []
    running: set[str] = set()
    for stage in recipe.stages:
        if config.only and stage.name not in config.only:
            continue
        reason = "asked for" if stage.name in config.redo else stale_reason(stage, record)
        if not reason and (again := [n for n in stage.inputs if n in running]):
            reason = f"its input {again[0]} is made again"
        if reason:
            running.add(stage.name)
        planned.append((stage, reason))
    return planned


def stale_reason(stage: Stage, record: dict[str, Any]) -> str:
    """Say why `stage` must run, or return an empty text if it is complete."""
    past = record.get(stage.name)
    if past is None:
        return "not run yet"
    if past["digest"] != stage.fingerprint():
        return "its command changed"
    for name in stage.inputs:
        made = record.get(name, {}).get("finished_at")
        if past["inputs"].get(name) != made:
            return f"its input {name} was made again"
    if past["finished_at"] is None:
        return "unfinished, continues"
    if not stage.marker.exists():
        return f"{stage.marker} is gone"
    return ""


def run_stage(
    stage: Stage, workspace: Path, record: dict[str, Any], processes: int, accelerator: bool
) -> None:
    """Run one stage, forward its output, keep its log and its record; raise if it fails."""
    prefix = launch_prefix(stage.launcher, processes, accelerator, compiled=stage.compiled)
    threads = max(1, (os.cpu_count() or 1) // processes)
    now: dict[str, Any] = {
        "command": shlex.join(["python", *prefix[1:], *stage.command]),
        "digest": stage.fingerprint(),
        "inputs": {n: record.get(n, {}).get("finished_at") for n in stage.inputs},
        "seconds": 0.0,
        "peak_mb": 0,
        "finished_at": None,
    }
    past = record.get(stage.name)
    same = past is not None and all(past[key] == now[key] for key in ("digest", "inputs"))
    if past and same and past["finished_at"] is None:
        now["seconds"], now["peak_mb"] = past["seconds"], past["peak_mb"]  # an interrupted attempt
    elif past:
        remove_output(stage, workspace)
    record[stage.name] = now
    save_record(workspace, record)
    log = workspace / "logs" / f"{stage.name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    try:
        code, peak_mb = forward([*prefix, *stage.command], log, threads)
    finally:
        now["seconds"] = round(now["seconds"] + time.monotonic() - started, 1)
        save_record(workspace, record)
    now["peak_mb"] = max(now["peak_mb"], peak_mb)
    save_record(workspace, record)
    if code != 0:
        raise UserError(
            f"stage {stage.name} stopped with exit code {code}{complaint(log)}; its log is {log}, "
            f"its command: {now['command']} ; fix the cause and run the same recipe again"
        )
    if not stage.marker.exists():
        raise UserError(
            f"stage {stage.name} ended without writing {stage.marker}; see its log {log}, and "
            "check `output` and `done` of the recipe"
        )
    now["finished_at"] = time.strftime("%Y-%m-%dT%H:%M:%S%z")
    save_record(workspace, record)


def remove_output(stage: Stage, workspace: Path) -> None:
    """Delete the output that an earlier version of this stage wrote in the workspace."""
    if workspace.resolve() not in stage.output.resolve().parents:
        raise UserError(
            f"stage {stage.name}: {stage.output} is outside the workspace and holds an older "
            "result; move it away yourself"
        )
    if stage.output.is_dir():
        shutil.rmtree(stage.output)
    else:
        stage.output.unlink(missing_ok=True)


def save_record(workspace: Path, record: dict[str, Any]) -> None:
    """Write the record of all stages."""
    files.write_json(workspace / "timings.json", {"stages": record})


def main() -> int | None:
    """Run what is not complete; stop at the first stage that fails."""
    config, call = parse(Config, __doc__)
    if config.num_processes is not None:
        require_between(config, 1, MOST_PROCESSES, "num_processes")
    recipe_file, workspace = find_recipe(config.recipe).resolve(), config.workspace
    if workspace is not None:
        workspace = workspace.resolve()
        workspace = workspace.relative_to(ROOT) if ROOT in workspace.parents else workspace
    if IN_CHECKOUT:
        os.chdir(ROOT)  # recipes name programs and configs from here
    recipe = load_recipe(recipe_file, workspace, named_values(config.values))
    unknown = sorted({*config.only, *config.redo} - {s.name for s in recipe.stages})
    if unknown:
        names = ", ".join(s.name for s in recipe.stages)
        raise UserError(f"{unknown[0]}: no such stage; {config.recipe} has {names}")
    accelerator = has_accelerator()
    timings = recipe.workspace / "timings.json"
    record = read_record(timings)
    planned = plan(recipe, config, record)
    if call.dry_run:
        for stage, reason in planned:
            count = process_count(stage, config.num_processes, accelerator)
            prefix = launch_prefix(stage.launcher, count, accelerator, compiled=stage.compiled)
            print(f"# {stage.name}: {stage.about} ({reason or 'complete, skipped'})")
            print(shlex.join(["python", *prefix[1:], *stage.command]) + "\n")
        return 0
    require_writable(recipe.workspace, "--workspace")
    signal.signal(signal.SIGTERM, stop_on_sigterm)
    started = time.monotonic()
    for number, (stage, reason) in enumerate(planned, start=1):
        title = f"[{number}/{len(planned)}] {stage.name}"
        if not reason:
            print(f"{title}: complete, skipped", flush=True)
            continue
        print(f"\n{title}: {stage.about} ({reason})", flush=True)
        count = process_count(stage, config.num_processes, accelerator)
        run_stage(stage, recipe.workspace, record, count, accelerator)
        print(f"{title}: done in {record[stage.name]['seconds']:.0f} s", flush=True)
    total = time.monotonic() - started
    print(f"\n{config.recipe}: all stages complete, {total:.0f} s in this run", flush=True)
    print(f"results: {recipe.workspace}", flush=True)
    return 0


if __name__ == "__main__":
    guard(main)
