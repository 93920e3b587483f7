"""Run the stages of a recipe; each is a program of its own and can be resumed.

    python pipeline/run.py --recipe pocket
    python pipeline/run.py --recipe pocket --num-processes 8      # every stage on 8 GPUs
    python pipeline/run.py --recipe pocket_ladder --jobs 8        # 8 stages at a time, a GPU each
    python pipeline/run.py --recipe pocket --dry-run              # only print the commands

A recipe is a YAML in configs/pipeline/. A stage is complete when its marker file exists, its
command is unchanged and none of its inputs was made again since; complete stages are skipped, so
the same command continues after an interruption. Stages whose command changed run again.
The workspace holds what the stages write, plus logs/<stage>.log and timings.json.
"""

import os
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path

if sys.path and sys.path[0] == str(Path(__file__).resolve().parent):  # see CONTRIBUTING.md
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from pipeline.claims import sole_writer
from pipeline.config import parse
from pipeline.errors import UserError, guard
from pipeline.launching import has_accelerator, stop_on_sigterm
from pipeline.output_folders import require_writable
from pipeline.setting_checks import require_between
from pipeline.stage_runs import Launch, Record, Runner
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
    jobs: int = 1
    """Stages to run at a time, where none reads another. They share the processor cores; on a
    machine with GPUs, each process of a stage has a GPU of its own."""
    values: tuple[str, ...] = ()
    """NAME=TEXT pairs that replace values of the recipe."""
    only: tuple[str, ...] = ()
    """Stages to consider; empty means all."""
    redo: tuple[str, ...] = ()
    """Stages to run again even if they are complete."""


def named_values(pairs: tuple[str, ...]) -> dict[str, str]:
    """Return the NAME=TEXT pairs of `--values` as a dict."""
    for pair in pairs:
        if "=" not in pair:
            raise UserError(f"--values {pair}: must be NAME=TEXT")
    return dict(pair.split("=", 1) for pair in pairs)


def plan(recipe: Recipe, config: Config, record: Record) -> list[tuple[Stage, str]]:
    """List the considered stages, each with the reason to run it, empty if it is complete."""
    planned: list[tuple[Stage, str]] = []
    running: set[str] = set()
    for stage in recipe.stages:
        if config.only and stage.name not in config.only:
            continue
        reason = "asked for" if stage.name in config.redo else record.stale_reason(stage)
        if not reason and (again := [n for n in stage.inputs if n in running]):
            reason = f"its input {again[0]} is made again"
        if reason:
            running.add(stage.name)
        planned.append((stage, reason))
    return planned


def main() -> int | None:
    """Run what is not complete; stop at the first stage that fails."""
    config, call = parse(Config, __doc__)
    if config.num_processes is not None:
        require_between(config, 1, MOST_PROCESSES, "num_processes")
    require_between(config, 1, MOST_PROCESSES, "jobs")
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
    launch = Launch.on(config.num_processes, config.jobs, has_accelerator())
    if call.dry_run:
        for stage, reason in plan(recipe, config, Record.of(recipe.workspace)):
            print(f"# {stage.name}: {stage.about} ({reason or 'complete, skipped'})")
            print(launch.command(stage) + "\n")
        return 0
    require_writable(recipe.workspace, "--workspace")
    signal.signal(signal.SIGTERM, stop_on_sigterm)
    started = time.monotonic()
    with sole_writer(recipe.workspace):
        record = Record.of(recipe.workspace)
        Runner(plan(recipe, config, record), record, launch).run()
    total = time.monotonic() - started
    print(f"\n{config.recipe}: all stages complete, {total:.0f} s in this run", flush=True)
    print(f"results: {recipe.workspace}", flush=True)
    return 0


if __name__ == "__main__":
    guard(main)
