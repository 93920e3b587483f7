"""The start of a fine-tuning run: inputs and settings are checked, then the run folder is opened.

Torch is imported after files and settings are checked, so errors in them come fast.
"""

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from finetune.settings import BaseModelSettings, Crop, RunSettings, Training
from finetune.style_images import StyleImages
from pipeline import ranks
from pipeline.config import Invocation, show, to_mapping
from pipeline.dataset import Sample, check_dataset, open_dataset
from pipeline.errors import UserError
from pipeline.hub import find_local
from pipeline.identity import run_identity
from pipeline.origins import refuse_test_data
from pipeline.output_folders import RUN, check_output, require_same
from pipeline.setting_checks import flag_of, require_each_once, require_extra
from pipeline.size_grid import read_size_grid, require_multiple

if TYPE_CHECKING:
    from accelerate import Accelerator

EIGHT_BIT = "--training.optimizer adamw_8bit"
MAY_CHANGE = ("checkpoint_interval", "log_interval", "workers")  # without changing the result
ModelSource = tuple[str, str | Path | None]
"""Kind of network, or "base" for a whole base model; and its folder or pinned hub id, if given."""


@dataclass(frozen=True)
class Run:
    """An open run: what all parts of a training need to know."""

    accelerator: "Accelerator"
    folder: Path
    seed: int
    training: Training


def open_samples(folders: tuple[str, ...], *, labelled: bool) -> list[Sample]:
    """List the samples of all dataset folders; crops come evenly from their union.

    Raises `UserError` for test data of a target, and for a folder that is named twice.
    """
    if not folders:
        raise UserError("--data: no dataset folder given; name one or more")
    require_each_once("--data", folders)
    for folder in folders:
        refuse_test_data(Path(folder), "--data")
    return [s for folder in folders for s in open_dataset(folder, labelled=labelled)]


def require_crop_multiple(crop: Crop, multiple: int, why: str) -> None:
    """Raise `UserError` unless both sides of a crop are multiples of `multiple`, due to `why`."""
    require_multiple("--crop.size-px", crop.size_px, multiple, why)


def require_crop_of_base(config: BaseModelSettings, base: str) -> None:
    """Raise `UserError` unless crops fit the networks of `base`; a hub id not on disk passes."""
    if (folder := find_local(base)) is not None:
        grid = read_size_grid(folder / "vae", folder / "unet")
        require_crop_multiple(config.crop, grid.size_multiple, f"for --base {config.base}")


def require_disk(num_crops: int, crop: Crop, output: Path | None, *, labelled: bool) -> None:
    """Raise `UserError` if cached latents exceed the free disk by far.

    A latent takes a quarter of a byte per image pixel at least, a label one byte per pixel.
    """
    folder = (output or Path()).resolve()
    existing = next(p for p in (folder, *folder.parents) if p.is_dir())
    free = shutil.disk_usage(existing).free
    _require_space(num_crops, crop, 1.25 if labelled else 0.25, free, "the free disk")


def require_memory(num_crops: int, crop: Crop) -> None:
    """Raise `UserError` if cached images, three bytes a pixel, exceed the memory of the machine."""
    total = psutil.virtual_memory().total
    _require_space(num_crops, crop, 3, total, "the memory of this machine")


def _require_space(
    num_crops: int, crop: Crop, bytes_per_px: float, available: int, what: str
) -> None:
    need = bytes_per_px * num_crops * crop.size_px[0] * crop.size_px[1]
    if need > available:
        raise UserError(
            f"--cached-crops {num_crops}: take at least {need / 1e9:.0f} GB, {what} is "
            f"{available / 1e9:.0f} GB; lower it"
        )


def start_run(
    config: RunSettings,
    call: Invocation,
    samples: list[Sample],
    check: Callable[[], None] = lambda: None,
    *,
    styles: StyleImages | None = None,
    **models: ModelSource,
) -> Run | None:
    """Check the input of a run, then open its folder and start its processes.

    `samples` and `styles` are its images. `models` are those that it starts from, by the name of
    their setting. `check` holds the further checks of the program; it runs once the models are
    known to be loadable. Returns None if there is nothing to do: a dry run, or a run that is
    finished. Raises `UserError` for bad files, models or output folders before anything is written
    or any weights are loaded.
    """
    if call.dry_run:
        _print_plan(config, samples)
        return None
    require_device(config.training)
    data = {"data": samples} | ({"style_images": styles.samples} if styles else {})
    folder = _require_output(config, data)
    for images in data.values():
        check_dataset(images)

    from pipeline.models import check_loadable
    from pipeline.runs import is_finished, make_accelerator, open_run

    if is_finished(folder, config.training.steps):
        require_same(folder, RUN, _identity(config, data, models))
        print(f"{folder}: finished already, nothing to do")
        return None
    check_loadable(*models.values())
    check()
    if ranks.is_main():  # the other processes wait at the first exchange
        open_run(folder, _identity(config, data, models), is_main=True)
    accelerator = make_accelerator(folder, precision=config.training.precision)
    return Run(accelerator, folder, config.seed, config.training)


def require_device(training: Training) -> None:
    """Raise `UserError` for settings that need a GPU, or a package for it, where there is none.

    It is called before any image is read; other settings do without torch here.
    """
    if training.optimizer == "adamw_8bit":
        require_extra(EIGHT_BIT, "bitsandbytes", "bitsandbytes")
        from pipeline.runs import require_cuda

        require_cuda(EIGHT_BIT, "use adamw")
    if training.precision == "fp16":
        from pipeline.runs import require_precision

        require_precision("--training.precision", training.precision)


def _print_plan(config: RunSettings, samples: list[Sample]) -> None:
    """Print the resolved settings and what a run would do."""
    show(config)
    training = config.training
    num_crops = training.steps * training.batch_size * training.gradient_accumulation
    print(
        f"{len(samples)} samples found; {training.steps} updates take {num_crops} crops per "
        f"process; output: {config.output or '(none given)'}"
    )


def _require_output(config: RunSettings, data: Mapping[str, list[Sample]]) -> Path:
    """Return the run folder; raise `UserError` if none is given or if no run may be there."""
    if config.output is None:
        raise UserError("--output: no folder given; name the folder the run shall be written to")
    inputs = {
        flag_of("", setting): list({s.folder for s in samples if s.folder is not None})
        for setting, samples in data.items()
    }
    check_output(config.output, RUN, inputs=inputs)
    return config.output


def _identity(
    config: RunSettings, data: Mapping[str, list[Sample]], models: Mapping[str, ModelSource]
) -> dict[str, Any]:
    """Return what makes two runs the same run; settings without effect on the result stay out."""
    settings = to_mapping(config)
    for name in ("output", "previews"):
        settings.pop(name, None)
    for name in MAY_CHANGE:
        settings["training"].pop(name)
    processes = ranks.world_size()
    sources = {name: source for name, (_, source) in models.items()}
    return run_identity(settings, models=sources, data=data, processes=processes)
