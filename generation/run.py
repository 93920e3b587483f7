"""Generate a labelled dataset of n street scenes from label maps.

    python generation/run.py --n 8                              # small, right after set-up
    python generation/run.py --n 50000                          # one process
    accelerate launch generation/run.py --n 50000               # all GPUs
    torchrun --nproc-per-node 2 -- generation/run.py --n 100    # two CPU processes; mind the --
    python generation/run.py --n 50000 --shard 3/64 --output s3://bucket/set   # part 3 of 64
    python generation/run.py --n 50000 --ray auto               # on a Ray cluster
    python generation/run.py --n 50000 --dry-run --plan-file plan.jsonl   # what would be done
    python generation/run.py --regenerate runs/filtered --output runs/new # rejected samples again

The same command continues a stopped run; a larger --n adds to it. Running the same command again
while a run is active adds a worker, on this or another machine that shares the output folder.
Workers divide the missing samples among themselves and do not wait for each other.
OUTPUT/status.json holds the progress of all workers. Exit codes: 0 complete, or other workers have
the rest; 2 bad input or setting; 3 some samples could not be generated; 130/143 stopped by
SIGINT/SIGTERM. Launchers turn every code but 0 into 1.
"""

import contextlib
import dataclasses
import math
import sys
import time
from pathlib import Path
from typing import Any

if sys.path and sys.path[0] == str(Path(__file__).resolve().parent):  # see CONTRIBUTING.md
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from generation import (
    card,
    dry_run,
    label_maps,
    plan_file,
    precision,
    ray_workers,
    tar_output,
    worker,
)
from generation.inputs import (
    Inputs,
    check_loadable,
    identify,
    read_inputs,
    row_provenance,
    row_revisions,
)
from generation.outcome import Outcome
from generation.output import RunFolder, package_versions
from generation.regeneration import Regeneration, paths_of, read_regeneration
from generation.settings import Config, default_config
from pipeline import files, ranks
from pipeline.claims import HUNG_S, Claims
from pipeline.config import parse
from pipeline.errors import UserError, guard
from pipeline.metadata import repair_tail
from pipeline.output_folders import require_writable

WAIT_S = 1800


def main() -> int | None:
    """Run the program; see the module docstring."""
    config, call = parse(Config, __doc__, defaults=default_config)
    is_main = ranks.is_main()
    regeneration = read_regeneration(config.regenerate) if config.regenerate else None
    if regeneration:
        config = regeneration.settings(config)
        if not regeneration.rows:
            print(f"{regeneration.folder}: no sample is rejected; nothing to do")
            return 0
    if call.dry_run:
        print_plan(config, regeneration)
        return 0

    # Inputs: what is wrong with settings, models or label maps is found here, before torch
    if config.plan_file:
        raise UserError("--plan-file: is written by --dry-run; add that or leave it out")
    if not is_main and not config.output_address:
        wait_for(config.label_maps_cache)
    inputs = read_inputs(config, regeneration)
    if config.output_address:
        if is_main:
            print_warnings(config, inputs)
            with contextlib.suppress(OSError):  # a machine whose disk is read-only measures again
                save_scan(config, inputs)
        return (ray_workers.fill_tar_set if config.ray else tar_output.run)(config, inputs)

    with files.storage_errors(
        config.output, lambda: dry_run.disk_estimate(len(inputs.rows.missing()), config.crop_px)
    ):
        # Models: can they be loaded?
        if inputs.missing:
            check_loadable(config)
        if is_main:
            print_warnings(config, inputs)
        config = settle_precision(config)

        # Output folder
        folder = open_output(config, inputs, regeneration)
        if is_main:
            prepare_output(config, inputs, folder)

        # Work, shared with other processes, and report
        outcome = work(config, inputs, folder, is_main=is_main)
    outcome.print(is_main=is_main)
    return outcome.exit_code


def print_plan(config: Config, regeneration: Regeneration | None) -> None:
    """Print what a run would do; write it to `plan_file` if that is set."""
    if config.plan_file:
        plan_file.check_plan_file(Path(config.plan_file))
    inputs = read_inputs(config, regeneration)
    if config.output_address:
        inputs = dataclasses.replace(inputs, missing=tar_output.missing(config, inputs))
    if warning := label_maps.mostly_void(inputs.label_maps):
        print(f"streetforge: {config.label_maps_folder}: {warning}", file=sys.stderr)
    print(dry_run.summary(config, inputs.plan, len(inputs.label_maps), len(inputs.missing)))
    missing = inputs.items(inputs.missing)
    print(dry_run.forecast(missing, inputs.specs, config))
    if config.plan_file:
        plan_file.write_plan(Path(config.plan_file), inputs.plan, inputs.specs)


def print_warnings(config: Config, inputs: Inputs) -> None:
    """Print a line on label maps that are mostly void, and one on prompts that will be cut."""
    if warning := label_maps.mostly_void(inputs.label_maps):
        print(f"streetforge: {config.label_maps_folder}: {warning}", file=sys.stderr)
    if inputs.missing:
        missing = inputs.items(inputs.missing)
        prompts = [spec.prompt for spec in dry_run.read_some(missing, inputs.specs)]
        if warning := dry_run.cut_prompts(prompts, config.negative_prompt, config.base):
            print(f"streetforge: {warning}", file=sys.stderr)


def wait_for(path: Path) -> None:
    """Wait until the main process has written `path`."""
    deadline = time.monotonic() + WAIT_S
    while not path.exists():
        if time.monotonic() > deadline:
            raise UserError(f"{path}: the main process did not write it; see its message")
        time.sleep(0.2)


def settle_precision(config: Config) -> Config:
    """Replace the precision 'auto' by that of the run, which the first process measures."""
    if config.precision != precision.AUTO:
        return config

    def measure() -> dict[str, Any]:
        from generation.sampler.precision import measure_precision

        return measure_precision(config)

    settled = precision.settle(config.output, measure)
    return dataclasses.replace(config, precision=settled)


def open_output(
    config: Config, inputs: Inputs, regeneration: Regeneration | None = None
) -> RunFolder:
    """Return the output folder, which holds nothing or this very run; nothing is written yet."""
    identity = identify(config, inputs)
    if regeneration:
        identity = regeneration.identity(identity)
    about = {
        **inputs.kept,
        "versions": package_versions(),
        "paths": paths_of(config),
    }
    folder = RunFolder(
        config.output,
        identity,
        about,
        lambda: card.write_dataset_card(config, row_revisions(identity), len(inputs.label_maps)),
    )
    folder.refuse_other(inputs.rows)
    return folder


def prepare_output(config: Config, inputs: Inputs, folder: RunFolder) -> None:
    """Make the folder ready for all processes; those that wait for the scan of the maps go on."""
    dry_run.require_disk(config.output, len(inputs.missing), config.crop_px)
    require_writable(config.output)
    files.sweep_temporaries(config.output)
    folder.restore(inputs.rows)
    save_scan(config, inputs)


def save_scan(config: Config, inputs: Inputs) -> None:
    """Keep the measurements of the label maps for other processes and the next start."""
    label_maps.save_scan(inputs.source, inputs.label_maps, inputs.images, config.label_maps_cache)


def work(config: Config, inputs: Inputs, folder: RunFolder, *, is_main: bool) -> Outcome:
    """Generate what is missing and no other process has claimed; return how that ended."""
    rows, stop_code = inputs.rows, 0
    with Claims(config.output, math.inf if config.ray else HUNG_S) as claims:  # a driver takes once
        if inputs.missing:
            stop_code = generate_missing(config, inputs, folder, claims, show_progress=is_main)
        others = claims.others("metadata")
        rows.update()  # after `others`: a process that ended in between has written all its rows
        complete = all(map(rows.is_done, rows.missing()))
        is_last = claims.end(complete=complete)
    if complete and is_last and not stop_code:
        for path in config.output.glob("metadata-*.jsonl"):
            repair_tail(path)
    return Outcome.of(
        rows, others, is_last=is_last, had_work=bool(inputs.missing), stop_code=stop_code
    )


def generate_missing(
    config: Config, inputs: Inputs, folder: RunFolder, claims: Claims, *, show_progress: bool
) -> int:
    """Load the networks and generate what is missing; return 0, or the code of a stop signal."""
    if config.ray:
        return ray_workers.fill_folder(config, inputs, folder, claims)
    ray_workers.require_no_driver(config.output, claims)
    provenance = row_provenance(folder.identity)
    maker = worker.load_maker(config, inputs.specs, provenance)
    return worker.work_until_done(
        lambda indices: maker.make(inputs.items(indices)),
        folder,
        inputs.rows,
        claims,
        group=config.image_batch,
        show_progress=show_progress,
    )


def console() -> None:
    """Run as the installed command."""
    guard(main)


if __name__ == "__main__":
    guard(main)
