"""Generate a labelled dataset of n street scenes from label maps.

    python generation/run.py --n 8                              # small, right after set-up
    python generation/run.py --n 50000                          # one process
    accelerate launch generation/run.py --n 50000               # all GPUs
    torchrun --nproc-per-node 2 -- generation/run.py --n 100    # two CPU processes; mind the --
    python generation/run.py --n 50000 --dry-run --plan-file plan.jsonl   # what would be done

The same command continues a stopped run; a larger --n adds to it. Running the same command again
while a run is active adds a worker, on this or another machine that shares the output folder.
Workers divide the missing samples among themselves and do not wait for each other.
OUTPUT/status.json holds the progress of all workers. Exit codes: 0 complete, or other workers have
the rest; 2 bad input or setting; 3 some samples could not be generated; 130/143 stopped by
SIGINT/SIGTERM. Launchers turn every code but 0 into 1.
"""

import importlib.metadata
import os
import sys
import time
from pathlib import Path
from typing import Any

if sys.path and sys.path[0] == str(Path(__file__).resolve().parent):  # see CONTRIBUTING.md
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from generation import card, dry_run, layouts, worker
from generation.inputs import (
    Inputs,
    check_loadable,
    identify,
    read_inputs,
    row_revisions,
)
from generation.output import CACHE_NAME, RunFolder
from generation.settings import Config, default_config
from pipeline import files
from pipeline.claims import Claims
from pipeline.config import parse
from pipeline.errors import EXIT_INCOMPLETE, UserError, guard
from pipeline.metadata import repair_tail
from pipeline.output_folders import require_writable
from pipeline.rows import sample_id

PACKAGES = ("torch", "diffusers", "transformers", "accelerate", "numpy", "pillow")
WAIT_S = 1800


def wait_for(path: Path) -> None:
    """Wait until the main process has written `path`."""
    deadline = time.monotonic() + WAIT_S
    while not path.exists():
        if time.monotonic() > deadline:
            raise UserError(f"{path}: the main process did not write it; see its message")
        time.sleep(0.2)


def open_output(config: Config, inputs: Inputs, process_index: int) -> RunFolder:
    """Open the output folder; the main process prepares it, the others wait for that."""
    identity = identify(config, inputs)
    facts = {
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
        "paths": {k: getattr(config, k) for k in ("base", "unet", "controlnet", "label_maps")},
    }
    folder = RunFolder(
        config.output,
        identity,
        facts,
        lambda: card.write_dataset_card(config, row_revisions(identity), len(inputs.layouts)),
    )
    folder.refuse_other(inputs.rows)
    if process_index == 0:
        dry_run.require_disk(config, len(inputs.missing))
        require_writable(config.output)
        files.sweep_temporaries(config.output)
        folder.restore(inputs.rows)
        cache = config.output / CACHE_NAME
        layouts.save_scan(inputs.source, inputs.layouts, inputs.images, cache)
    return folder


def pick_device(config: Config) -> Any:
    """Return the device of this process: the accelerator of its local rank, or the CPU.

    No process group is made: processes that need not meet cannot wait for each other.
    """
    import torch

    device = torch.accelerator.current_accelerator(check_available=True)
    if device is None:
        torch.set_num_threads(config.cpu_threads)
        return torch.device("cpu")
    rank, count = int(os.environ.get("LOCAL_RANK", "0")), torch.accelerator.device_count()
    if rank >= count:
        raise UserError(
            f"LOCAL_RANK={rank} but {count} {device.type} device(s) are visible; start one process "
            "per device"
        )
    torch.accelerator.set_device_index(rank)
    return torch.device(device.type, rank)


def draw_missing(
    config: Config, inputs: Inputs, folder: RunFolder, claims: Claims, *, show_progress: bool
) -> int:
    """Load the networks and make what is missing; return 0, or the code of a stop signal."""
    device = pick_device(config)
    from generation.sampler.networks import load_networks
    from generation.sampler.sampler import Sampler

    sampler = Sampler(load_networks(config, device), config)
    facts = {"digest": folder.digest, "revisions": row_revisions(folder.identity)}
    maker = worker.SampleMaker(sampler, config, inputs.source, inputs.layouts, facts)
    return worker.work_until_done(
        lambda indices: maker.make([inputs.plan[index] for index in indices]),
        folder,
        inputs.rows,
        claims,
        group=config.image_batch,
        show_progress=show_progress,
    )


def main() -> int | None:
    """Run the program; see the module docstring."""
    config, call = parse(Config, __doc__, defaults=default_config)
    process_index = int(os.environ.get("RANK", "0"))
    if process_index != 0 and not call.dry_run:
        wait_for(config.output / CACHE_NAME)
    if config.plan_file and call.dry_run:
        dry_run.check_plan_file(Path(config.plan_file))
    inputs = read_inputs(config)
    if process_index == 0 and (warning := layouts.mostly_void(inputs.layouts)):
        print(f"streetforge: {config.label_maps_folder}: {warning}", file=sys.stderr)
    if call.dry_run:
        print(dry_run.summary(config, inputs.plan, len(inputs.layouts), len(inputs.missing)))
        missing = [inputs.plan[index] for index in inputs.missing]
        print(dry_run.forecast(missing, inputs.source, inputs.layouts, config))
        if config.plan_file:
            path = Path(config.plan_file)
            dry_run.write_plan(path, inputs.plan, inputs.source, inputs.layouts, config)
        return 0
    if config.plan_file:
        raise UserError("--plan-file: is written by --dry-run; add that or leave it out")
    with files.storage_errors(
        config.output, lambda: dry_run.disk_estimate(config, config.n - inputs.rows.done)
    ):
        return fill(config, inputs, process_index)


def warn_of_cut_prompts(config: Config, inputs: Inputs, process_index: int) -> None:
    """Say on stderr if prompts of the missing samples do not fit the base's text window."""
    if process_index == 0:
        missing = [inputs.plan[index] for index in inputs.missing]
        drawn = dry_run.sample_rows(missing, inputs.source, inputs.layouts, config)
        if warning := dry_run.cut_prompts([row for _, row in drawn], config):
            print(f"streetforge: {warning}", file=sys.stderr)


def fill(config: Config, inputs: Inputs, process_index: int) -> int:
    """Make what is missing in the output folder and return the exit code."""
    if inputs.missing:
        check_loadable(config)
        warn_of_cut_prompts(config, inputs, process_index)
    folder = open_output(config, inputs, process_index)
    rows, is_main, stopped = inputs.rows, process_index == 0, 0
    with Claims(config.output) as claims:
        if inputs.missing:
            stopped = draw_missing(config, inputs, folder, claims, show_progress=is_main)
        others = [h for name, h in claims.living("metadata") if name not in claims.held]
        rows.update()  # after that, or a process that ends in between would seem to leave its work
        claims.finished = all(map(rows.is_done, rows.missing()))
    if stopped:
        print("streetforge: stopped; the same command continues", file=sys.stderr)
        return stopped
    if claims.alone and claims.finished:
        for path in config.output.glob("metadata-*.jsonl"):
            repair_tail(path)
    speaks = is_main or (claims.alone and bool(inputs.missing))
    return report(config, inputs, others, speaks=speaks, alone=claims.alone)


def report(
    config: Config, inputs: Inputs, others: list[dict[str, Any]], *, speaks: bool, alone: bool
) -> int:
    """Say what the set is now and return the exit code; of several processes the last one speaks.

    `others`: host and pid of the processes that are still at worker.
    """
    rows, n = inputs.rows, config.n
    failed = sorted(index for index in rows.failed if index < n)
    left = n - rows.done - len(failed)
    line = ""
    if left and others:
        names = ", ".join(f"{h.get('host')} pid {h.get('pid')}" for h in others[:8])
        line = f"{rows.done} of {n} samples; other processes are making the rest ({names})"
    elif left:
        line = f"another process left {left} of {n} samples; the same command makes them"
    elif failed:
        named = ", ".join(map(sample_id, failed[:5]))
        line = (
            f"{len(failed)} samples could not be drawn ({named}); their rows in {config.output} "
            "say why; the same command tries them again"
        )
    elif not alone:
        line = f"{config.output}: complete; another process is about to close it"
    if line and speaks:
        print(f"streetforge: {line}", file=sys.stderr)
    if not line and speaks:
        done, more = len(rows.ok), "" if inputs.missing else "; nothing to do"
        if done > n:
            more = f"; {done - n} more than --n, all kept" + more
        print(f"{config.output}: {done} samples{more}")
    return EXIT_INCOMPLETE if failed or (left and not others) else 0


def console() -> None:
    """Run as the installed command."""
    guard(main)


if __name__ == "__main__":
    guard(main)
