"""Finds a segmentation head by its files and checks that it fits; nothing here imports torch."""

from pathlib import Path
from typing import Any

from pipeline import model_files, models
from pipeline.errors import UserError
from pipeline.labels import CLASS_NAMES
from pipeline.reading import shortened

FOLDER = "segmentation_head"


def find_head(setting: str, head: str, controlnet: str, base: str) -> Path:
    """Return the folder of a head, or of the one beside a ControlNet if `head` is empty.

    `setting` is what the user gave, `--correction.scale 1` say. Raises `UserError` unless it is a
    whole head for our classes and for the U-Net of `base`.
    """
    beside = models.find_folder(controlnet, "controlnet").parent / FOLDER
    folder = Path(head) if head else beside
    if not (folder / "config.json").is_file():
        raise UserError(
            f"{setting}: {shortened(folder)} holds no segmentation head; train one on this "
            f"ControlNet (finetune/controlnet.py --segmentation-head.only --init {controlnet}) and "
            "name its folder by --correction.head"
        )
    config = model_files.check_part(folder, FOLDER)
    _check_classes(folder, config)
    _check_taps(folder, config)
    models.check_fit(f"--correction.head {folder}", FOLDER, folder, base)
    return folder


def _check_classes(folder: Path, config: dict[str, Any]) -> None:
    names = config.get("class_names")
    if names != list(CLASS_NAMES):
        shown = len(names) if isinstance(names, list) else "no"
        raise UserError(
            f"--correction.head {folder}: predicts {shown} classes, other than the "
            f"{len(CLASS_NAMES)} of label maps; give a head written by finetune/controlnet.py"
        )


def _check_taps(folder: Path, config: dict[str, Any]) -> None:
    """Raise `UserError` unless the taps are the first up blocks, with the channels of the U-Net."""
    widths = config["block_out_channels"][::-1]
    taps, channels = config.get("taps"), config["tap_channels"]
    expected = [f"up_blocks.{index}" for index in range(min(len(channels), len(widths)))]
    if taps != expected or channels != widths[: len(channels)]:
        raise UserError(
            f"{folder / 'config.json'}: taps {shortened(repr(taps), 60)} with "
            f"{shortened(repr(channels), 60)} channels: must be the first up blocks of the U-Net; "
            "restore the file"
        )
