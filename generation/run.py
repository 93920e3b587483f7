"""Draw a labelled dataset of n street scenes from label maps.

    python generation/run.py --n 8                              # small, right after set-up
    python generation/run.py --n 50000                          # one process
    accelerate launch generation/run.py --n 50000               # all GPUs
    torchrun --nproc-per-node 2 -- generation/run.py --n 100    # two CPU processes; mind the --
    python generation/run.py --n 50000 --dry-run --plan-file plan.jsonl   # what would be done

The same command continues a stopped run; a larger --n adds to it. Exit codes: 0 complete, 2 bad
input or setting, 3 some samples could not be drawn, 130/143 stopped by SIGINT/SIGTERM.
"""

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
from generation.plan import PlanItem, Planner  # noqa: E402
from generation.settings import Config, check, check_grid, run_mapping  # noqa: E402
from pipeline import files, models  # noqa: E402
from pipeline.config import parse  # noqa: E402
from pipeline.dataset import DatasetWriter, read_rows, sample_id  # noqa: E402
from pipeline.errors import EXIT_INCOMPLETE, UserError, guard  # noqa: E402
from pipeline.labels import CONTROL_CHANNELS  # noqa: E402

PACKAGES = ("torch", "diffusers", "transformers", "accelerate", "numpy", "pillow")
WAIT_S = 1800


@dataclass(frozen=True)
class Inputs:
    """Everything that is known and checked before torch is imported."""

    source: layouts.LayoutSource
    layouts: list[layouts.Layout]
    plan: list[PlanItem]
    missing: list[int]
    """Indices below n without a finished sample."""


def check_models(config: Config) -> None:
    """Check the model folders by their config files alone; a hub id is checked when loaded."""
    base = Path(models.find_base(config.base))
    control = files.read_json(models.find_folder(config.controlnet) / "config.json")
    if control.get("conditioning_channels") != CONTROL_CHANNELS:
        raise UserError(
            f"--controlnet {config.controlnet}: takes {control.get('conditioning_channels')} "
            f"condition channels, but label control has {CONTROL_CHANNELS}; give a semantic "
            "ControlNet written by finetune/controlnet.py"
        )
    if config.unet:
        models.find_folder(config.unet)
    if not base.is_dir():
        return
    unet = files.read_json(base / "unet" / "config.json")
    latent_px, unit = models.grid_px(base)
    check_grid(config, latent_px, unit)
    control_px = 2 ** (len(control["conditioning_embedding_out_channels"]) - 1)
    if control_px != latent_px or control["cross_attention_dim"] != unet["cross_attention_dim"]:
        raise UserError(
            f"--controlnet {config.controlnet}: does not fit --base {config.base} (latent pixel "
            f"{control_px} against {latent_px}, text width {control['cross_attention_dim']} "
            f"against {unet['cross_attention_dim']}); use the base it was trained on"
        )


def check_output(folder: Path) -> None:
    """Raise `UserError` unless `folder` is new, empty or a dataset folder."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder}: is a file; choose another --output")
    if not folder.is_dir() or (folder / "run.json").is_file():
        return
    if any(files.TEMPORARY_MARK not in path.name for path in folder.iterdir()):
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
    found = layouts.scan_layouts(source, config.output / layouts.CACHE_NAME)
    layouts.check_sizes(source, found, config.crop_px)
    counts = np.array([layout.counts for layout in found], dtype=np.int64)
    planner = Planner(
        counts, config.prompt, seed=config.seed, temperature=config.rcs_temperature,
        min_pixels=config.rcs_min_pixels,
    )  # fmt: skip
    missing = work.missing_indices(config.n, config.output)
    return Inputs(source, found, planner.draw_plan(config.n), missing)


def model_revisions(config: Config) -> dict[str, str]:
    """Return the revision of every model of the run."""
    base = models.find_base(config.base)
    revisions = {"base": models.revision(base)}
    revisions["controlnet"] = models.revision(models.find_folder(config.controlnet))
    unet = models.find_folder(config.unet) if config.unet else None
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
        if config.output.is_dir() and os.environ.get("GROUP_WORLD_SIZE", "1") == "1":
            files.sweep_temporaries(config.output)
        facts = {"versions": {name: importlib.metadata.version(name) for name in PACKAGES}}
        writer = DatasetWriter(config.output, config=mapping, facts=facts)
        card.write_dataset_card(config, mapping["revisions"], len(inputs.layouts))
        layouts.save_scan(inputs.source, inputs.layouts, config.output / layouts.CACHE_NAME)
        return writer
    return DatasetWriter(config.output, config=mapping, process_index=process_index)


def make_accelerator(config: Config) -> Any:
    """Create the Accelerator that assigns the device, and check the number of processes."""
    import torch
    from accelerate import Accelerator

    cpu = not torch.cuda.is_available() and not torch.backends.mps.is_available()
    if cpu:
        torch.set_num_threads(config.cpu_threads)
    accelerator = Accelerator(cpu=cpu)
    expected = int(os.environ.get("WORLD_SIZE", "1"))
    if accelerator.num_processes != expected:
        raise UserError(
            f"WORLD_SIZE={expected} but accelerate sees {accelerator.num_processes} process(es); "
            "start CPU processes with torchrun --nproc-per-node N"
        )
    return accelerator


def main() -> int | None:
    """Run the program; see the module docstring."""
    config, call = parse(Config, __doc__)
    process_index = int(os.environ.get("RANK", "0"))
    num_processes = int(os.environ.get("WORLD_SIZE", "1"))
    if process_index != 0 and not call.dry_run:
        wait_for(config.output / layouts.CACHE_NAME)
    inputs = read_inputs(config)
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
    revisions = model_revisions(config)
    writer = open_output(config, inputs, revisions, process_index)
    if not inputs.missing:
        _report(config, process_index)
        return 0

    accelerator = make_accelerator(config)
    from generation.engine import Sampler, load_networks

    networks = load_networks(config, accelerator.device)
    facts = {"digest": writer.digest, "revisions": revisions}
    maker = work.Maker(Sampler(networks, config), config, inputs.source, inputs.layouts, facts)
    share = inputs.missing[process_index::num_processes]
    items = [inputs.plan[index] for index in share]
    stopped = work.run_share(maker, writer, items, n=config.n, show_progress=process_index == 0)
    accelerator.end_training()
    if stopped:
        print("streetforge: stopped; the same command continues", file=sys.stderr)
        return stopped
    failed = sorted(set(share) & set(work.missing_indices(config.n, config.output)))
    if failed:
        named = ", ".join(map(sample_id, failed[:5]))
        print(
            f"streetforge: {len(failed)} samples could not be drawn ({named}); "
            f"their rows in {config.output} say why; the same command tries them again",
            file=sys.stderr,
        )
        return EXIT_INCOMPLETE
    _report(config, process_index)
    return 0


def _report(config: Config, process_index: int) -> None:
    if process_index != 0:
        return
    done = sum(row.get("status") == "ok" for row in read_rows(config.output).values())
    more = f"; {done - config.n} more than --n, all kept" if done > config.n else ""
    print(f"{config.output}: {done} samples{more}")


def console() -> None:
    """Run as the installed command."""
    guard(main)


if __name__ == "__main__":
    guard(main)
