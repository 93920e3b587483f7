"""Predict label maps for a folder of images.

    accelerate launch segtrain/predict.py --checkpoint runs/mine/segtrain/generated \\
        --images DIR --output predictions

Writes a folder for each kind: `ids` (train ids), `color`, `overlay` (colours over the image) and
`cityscapes` (label ids for cityscapesscripts and the benchmark server). A file has the name of its
image, or of its sample if the images of a dataset are elsewhere. Label ids of Cityscapes images
have the names that cityscapesscripts reads, those of others end in _labelIds.png. Images of a
prepared folder are scaled by its protocol, as in segtrain/score.py. Existing files are skipped and
counted, so the same command continues; an image that has changed is predicted again. Other settings
than --kinds and --limit need another folder.
On several CPU processes: torchrun --nproc-per-node 2 -- segtrain/predict.py ...
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

if sys.path and sys.path[0] == str(Path(__file__).resolve().parent):  # see CONTRIBUTING.md
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import numpy as np

from pipeline import files, images, label_spaces, labels, models
from pipeline.config import parse, to_mapping
from pipeline.dataset import find_images
from pipeline.errors import UserError, guard
from pipeline.identity import file_digest
from pipeline.images import read_image
from pipeline.output_folders import RUN, check_output, require_writable
from pipeline.setting_checks import require_positive
from pipeline.tar_members import file_of
from segtrain.checkpoints import (
    SCENE_FILE,
    WEIGHTS_FILE,
    load_scene,
    require_scene,
    require_trained,
)
from segtrain.prediction_names import cityscapes_names, name_predictions
from segtrain.protocol import protocol_of, require_images, require_size

Kind = Literal["ids", "color", "overlay", "cityscapes"]


@dataclass(frozen=True)
class Config:
    """Settings of one prediction."""

    checkpoint: Path = Path("runs/mine/segtrain/generated")
    """Output folder of segtrain/train.py."""
    images: Path = Path("runs/mine/targets/dark_zurich")
    """Dataset folder, or any folder with PNG or JPEG files."""
    output: Path = Path("predictions")
    """Folder to write to."""
    kinds: tuple[Kind, ...] = ("ids", "overlay")
    """Files to write for each image."""
    scene: Path | None = None
    """Output folder of segtrain/adapt.py, for a network with scene prompts."""
    base: str = ""
    """Folder of the base model of a diffusion backbone, if it has moved since the training."""
    size_px: tuple[int, int] | None = None
    """Height and width that images are scaled into; the aspect ratio is kept. None: the protocol of
    a prepared folder, otherwise the recipe."""
    opacity: float = 0.5
    """Share of the colours in an overlay, 0 to 1."""
    limit: int | None = None
    """Use only the first N images."""


def render(kind: Kind, label: np.ndarray, image: np.ndarray, opacity: float) -> np.ndarray:
    """Return what a file of a kind holds, from HxW train ids and the HxWx3 image."""
    if kind == "ids":
        return label
    if kind == "cityscapes":
        return label_ids()[label]
    colors = labels.colorize(label)
    if kind == "color":
        return colors
    return (image * (1 - opacity) + colors * opacity).round().astype(np.uint8)


def label_ids() -> np.ndarray:
    """Return the Cityscapes label id of each train id; void becomes 0, unlabelled."""
    table = np.zeros(256, dtype=np.uint8)
    for label_id, train_id in reversed(list(enumerate(label_spaces.label_space("cityscapes_ids")))):
        if train_id < labels.NUM_CLASSES:
            table[train_id] = label_id
    return table


def plan(config: Config, paths: dict[Path, Path]) -> dict[Path, dict[Kind, Path]]:
    """Return the file of each kind for the relative names of predictions."""
    others = cityscapes_names(config.images, paths) if "cityscapes" in config.kinds else {}
    return {
        name: {
            kind: config.output / kind / (others[name] if kind == "cityscapes" else name)
            for kind in config.kinds
        }
        for name in paths
    }


def is_current(prediction: Path, image: Path) -> bool:
    """Tell whether a prediction is there and newer than the image and the link to it.

    The time of the last change of an inode counts too, which copying does not preserve.
    """
    try:
        made = prediction.stat().st_mtime_ns
        states = (file_of(image).stat(), file_of(image).lstat())
    except OSError:
        return False
    return made >= max(max(state.st_mtime_ns, state.st_ctime_ns) for state in states)


def check(config: Config) -> dict[Path, Path]:
    """Find bad input before torch or weights load. Returns the images by relative name."""
    found = find_images(config.images)
    check_output(config.output, RUN, inputs={"--images": config.images})
    recipe = require_trained(config.checkpoint)["recipe"]
    require_size(config.size_px, "--size-px")
    if config.scene:
        require_scene(config.scene)
    if config.base:
        models.find_base(config.base)
    if not config.kinds:
        raise UserError("--kinds: name at least one of ids, color, overlay, cityscapes")
    if not 0 <= config.opacity <= 1:
        raise UserError(f"--opacity {config.opacity}: must be within 0..1")
    if config.limit is not None:
        require_positive(config, "limit")
    paths = found[: config.limit]
    require_writable(config.output)
    named = name_predictions(config.images, paths)
    plan(config, named)
    require_images(paths, recipe, size_of(config, recipe))
    return named


def size_of(config: Config, recipe: dict[str, Any]) -> tuple[int, int] | None:
    """Return the height and width that images are scaled into, None for the recipe's way."""
    return config.size_px or protocol_of(config.images).size_px(recipe)


def stored_config(config: Config) -> dict[str, Any]:
    """Return what all predictions in an output folder have in common."""
    stored = {**to_mapping(config), "weights": file_digest(config.checkpoint / WEIGHTS_FILE)}
    size_px = size_of(config, require_trained(config.checkpoint)["recipe"])
    stored["size_px"] = list(size_px) if size_px else None
    if config.scene:
        load_scene(config.scene, config.checkpoint)  # refuses a wrong one before it is recorded
        stored["scene_tokens"] = file_digest(config.scene / SCENE_FILE)
    for name in ("output", "kinds", "base", "limit"):
        stored.pop(name)
    return stored


def run(config: Config, paths: dict[Path, Path]) -> None:
    """Predict what is missing; each process takes every k-th image."""
    import torch
    from tqdm import tqdm

    from pipeline import runs
    from segtrain.segmenter import Segmenter

    accelerator = runs.start_accelerator()
    runs.open_run(config.output, stored_config(config), is_main=accelerator.is_main_process)
    index, count = accelerator.process_index, accelerator.num_processes
    files_of = plan(config, paths)
    missing = [
        name
        for name in list(paths)[index::count]
        if not all(is_current(path, paths[name]) for path in files_of[name].values())
    ]
    if missing:
        segmenter = Segmenter.from_pretrained(
            config.checkpoint, scene=config.scene, base=config.base, device=accelerator.device
        )
        size_px = size_of(config, segmenter.recipe)
    for name in tqdm(missing, desc="predict", disable=not accelerator.is_main_process):
        image = read_image(paths[name])
        label = segmenter(image, size_px=size_px, name=paths[name])
        for kind, target in files_of[name].items():
            files.make_folder(target.parent)
            data = images.encode_png(render(kind, label, image, config.opacity))
            files.write_bytes(target, data)
    accelerator.wait_for_everyone()
    made = accelerator.reduce(torch.tensor(len(missing), device=accelerator.device))
    there = len(paths) - int(made)
    skipped = f", {there} were there already and were skipped" if there else ""
    kinds = ", ".join(config.kinds)
    accelerator.print(f"{config.output}: {len(paths)} images, {kinds}{skipped}")
    runs.end(accelerator)


def main() -> int | None:
    """Run the command line."""
    config, call = parse(Config, __doc__)
    paths = check(config)
    if call.dry_run:
        print(f"would predict {len(paths)} images of {config.images}")
        return 0
    run(config, paths)
    return 0


if __name__ == "__main__":
    guard(main)
