"""Draw a labelled dataset of n street scenes from label maps.

    python generation/run.py --n 8                              # small, right after set-up
    python generation/run.py --n 50000                          # one process
    accelerate launch generation/run.py --n 50000               # all GPUs
    torchrun --nproc-per-node 2 -- generation/run.py --n 100    # two CPU processes; mind the --
    python generation/run.py --n 50000 --dry-run --plan-file plan.jsonl   # what would be done

The same command continues a stopped run; a larger --n adds to it. Given once more while a run is at
work, here or on another machine that shares the output folder, it helps: processes divide the work
among themselves and none waits for another. OUTPUT/status.json says how far all of them are. Exit
codes: 0 complete, or the rest is with other processes, 2 bad input or setting, 3 some samples could
not be drawn, 130/143 stopped by SIGINT/SIGTERM.
"""

import functools
import importlib.metadata
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if sys.path and sys.path[0] == str(Path(__file__).resolve().parent):  # see CONTRIBUTING.md
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import numpy as np  # noqa: E402

from generation import card, layouts, listing, work  # noqa: E402
from generation.claims import Claims  # noqa: E402
from generation.plan import PlanItem, Planner  # noqa: E402
from generation.progress import Rows  # noqa: E402
from generation.settings import Config, check, check_grid, default_config, run_mapping  # noqa: E402
from pipeline import files, models  # noqa: E402
from pipeline.config import parse  # noqa: E402
from pipeline.dataset import DatasetWriter, repair_tail, sample_id  # noqa: E402
from pipeline.errors import EXIT_INCOMPLETE, UserError, guard  # noqa: E402
from pipeline.labels import CONTROL_CHANNELS  # noqa: E402

PACKAGES = ("torch", "diffusers", "transformers", "accelerate", "numpy", "pillow")
WAIT_S = 1800


@dataclass(frozen=True)
class Inputs:
    """Everything that is known and checked before torch is imported."""

    source: layouts.LayoutSource
    layouts: list[layouts.Layout]
    planner: Planner
    missing: list[int]
    """Indices below n without a finished sample."""
    rows: Rows
    """What the output folder holds."""

    @functools.cached_property
    def plan(self) -> list[PlanItem]:
        """What the samples will be; drawn when first needed, never for a finished folder."""
        return self.planner.draw_plan(self.rows.n)


def check_models(config: Config) -> None:
    """Check all models by their files alone; a hub id that is not here is checked when fetched."""
    base = models.find_base(config.base)
    folder = models.find_folder(config.controlnet, "controlnet")
    channels = models.read_config(folder, "controlnet")["conditioning_channels"]
    if channels != CONTROL_CHANNELS:
        raise UserError(
            f"--controlnet {config.controlnet}: takes {channels} condition channels, but label "
            f"control has {CONTROL_CHANNELS}; give a semantic ControlNet written by "
            "finetune/controlnet.py"
        )
    models.check_fit(f"--controlnet {config.controlnet}", "controlnet", folder, base)
    if config.unet:
        folder = models.find_folder(config.unet, "unet")
        models.check_fit(f"--unet {config.unet}", "unet", folder, base)
    if config.structure.kind != "none":
        folder = models.find_folder(config.structure.controlnet, "controlnet")
        if models.read_config(folder, "controlnet")["conditioning_channels"] != 3:
            raise UserError(
                f"--structure.controlnet {folder}: does not take 3 condition channels; give a "
                f"ControlNet trained on {config.structure.kind} pictures"
            )
        models.check_fit(f"--structure.controlnet {folder}", "controlnet", folder, base)
    if (home := models.find_local(base)) is not None:
        check_grid(config, *models.grid_px(home))


def check_output(folder: Path) -> None:
    """Raise `UserError` unless `folder` is new, empty or a dataset folder."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder}: is a file; choose another --output")
    if not folder.is_dir() or (folder / "run.json").is_file():
        return
    others = any(files.TEMPORARY_MARK not in path.name for path in folder.iterdir())
    if others and not (folder / "run.json").is_file():  # written first by a run that starts now
        raise UserError(f"{folder}: is not empty and has no run.json; choose another --output")


def read_inputs(config: Config) -> Inputs:
    """Check all settings and files and draw the plan."""
    check(config)
    check_models(config)
    check_output(config.output)
    source = layouts.open_layouts(
        config.layouts_folder, pattern=config.layout_pattern, label_space=config.label_space,
        height_px=config.layout_height_px,
    )  # fmt: skip
    if config.needs_pictures and len(source.pictures) < len(source.names):
        raise UserError(
            f"{config.layouts_folder}: holds label maps alone, but --strength, --structure and "
            "--details source need their pictures; give a dataset folder"
        )
    if config.needs_pictures:
        layouts.check_pictures(source)
    found = layouts.scan_layouts(source, config.output / layouts.CACHE_NAME)
    layouts.check_sizes(source, found, config.crop_px)
    counts = np.array([layout.counts for layout in found], dtype=np.int64)
    planner = Planner(
        counts, config.prompt, seed=config.seed, temperature=config.rcs_temperature,
        min_pixels=config.rcs_min_pixels,
    )  # fmt: skip
    rows = Rows(config.output, config.n)
    rows.update()
    rows.forget()
    return Inputs(source, found, planner, rows.missing(), rows)


def model_revisions(config: Config) -> dict[str, str]:
    """Return the revision of every model of the run."""
    base = models.find_base(config.base)
    revisions = {"base": models.revision(base)}
    revisions["controlnet"] = models.revision(
        models.find_folder(config.controlnet, "controlnet")
    )
    unet = models.find_folder(config.unet, "unet") if config.unet else None
    revisions["unet"] = models.revision(unet) if unet else "the base's own"
    return revisions


def wait_for(path: Path) -> None:
    """Wait until the main process has written `path`."""
    deadline = time.monotonic() + WAIT_S
    while not path.exists():
        if time.monotonic() > deadline:
            raise UserError(f"{path}: the main process did not write it; see its message")
        time.sleep(0.2)


def open_output(
    config: Config, inputs: Inputs, revisions: dict[str, str], process_index: int
) -> DatasetWriter:
    """Open the dataset folder; the main process prepares it, the others wait for that."""
    mapping = run_mapping(config)
    mapping["revisions"] = {**revisions, "layouts": layouts.layouts_digest(inputs.layouts)}
    if process_index == 0:
        card.require_disk(config, len(inputs.missing))
        if config.output.is_dir():
            files.sweep_temporaries(config.output)
        facts = {"versions": {name: importlib.metadata.version(name) for name in PACKAGES}}
        writer = DatasetWriter(config.output, config=mapping, facts=facts)
        card.write_dataset_card(config, mapping["revisions"], len(inputs.layouts))
        layouts.save_scan(inputs.source, inputs.layouts, config.output / layouts.CACHE_NAME)
        return writer
    return DatasetWriter(config.output, config=mapping)


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
    config: Config, inputs: Inputs, writer: DatasetWriter, facts: dict[str, Any], claims: Claims,
    *, show_progress: bool,
) -> int:  # fmt: skip
    """Load the networks and make what is missing; return 0, or the code of a stop signal."""
    device = pick_device(config)
    from generation.engine import Sampler, load_networks

    sampler = Sampler(load_networks(config, device), config)
    maker = work.Maker(sampler, config, inputs.source, inputs.layouts, facts)
    return work.run_share(
        lambda indices: maker.make([inputs.plan[index] for index in indices]), writer,
        inputs.rows, claims, group=config.image_batch, show_progress=show_progress,
    )  # fmt: skip


def main() -> int | None:
    """Run the program; see the module docstring."""
    config, call = parse(Config, __doc__, defaults=default_config)
    process_index = int(os.environ.get("RANK", "0"))
    if process_index != 0 and not call.dry_run:
        wait_for(config.output / layouts.CACHE_NAME)
    inputs = read_inputs(config)
    if process_index == 0 and (warning := layouts.mostly_void(inputs.layouts)):
        print(f"streetforge: {config.layouts_folder}: {warning}", file=sys.stderr)
    if call.dry_run:
        print(card.summary(config, inputs.plan, len(inputs.layouts), len(inputs.missing)))
        missing = [inputs.plan[index] for index in inputs.missing]
        print(listing.forecast(missing, inputs.source, inputs.layouts, config))
        if config.plan_file:
            path = Path(config.plan_file)
            listing.write_plan(path, inputs.plan, inputs.source, inputs.layouts, config)
        return 0
    if config.plan_file:
        raise UserError("--plan-file: is written by --dry-run; add that or leave it out")
    with files.storage_errors(
        config.output, lambda: card.disk_estimate(config, config.n - inputs.rows.done)
    ):
        return fill(config, inputs, process_index)


def fill(config: Config, inputs: Inputs, process_index: int) -> int:
    """Make what is missing in the output folder and return the exit code."""
    if inputs.missing:
        controls = [config.controlnet]
        if config.structure.kind != "none":
            controls.append(config.structure.controlnet)
        models.check_loadable(
            ("base", models.find_base(config.base)),
            *(("controlnet", models.find_folder(name, "controlnet")) for name in controls),
            ("unet", models.find_folder(config.unet, "unet") if config.unet else None),
        )
    revisions = model_revisions(config)
    writer = open_output(config, inputs, revisions, process_index)
    rows, is_main, stopped = inputs.rows, process_index == 0, 0
    with Claims(config.output) as claims:
        if inputs.missing:
            facts = {"digest": writer.digest, "revisions": revisions}
            stopped = draw_missing(config, inputs, writer, facts, claims, show_progress=is_main)
        others = [h for name, h in claims.living("metadata") if name not in claims.held]
        rows.update()  # after that, or a process that ends in between would seem to leave its work
        claims.finished = all(map(rows.settled, rows.missing()))
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

    `others`: host and pid of the processes that are still at work.
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
