"""Predict label maps for a folder of pictures.

    accelerate launch segtrain/predict.py --checkpoint runs/pocket/segtrain/generated \\
        --images PICTURES --output predictions

Writes a folder for each kind: `ids` (train ids), `color`, `overlay` (colours over the picture) and
`cityscapes` (label ids for the benchmark's server). What is there already is skipped, so the same
command continues. On several CPU processes: torchrun --nproc-per-node 2 -- segtrain/predict.py ...
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

if sys.path and sys.path[0] == str(Path(__file__).resolve().parent):  # see CONTRIBUTING.md
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import numpy as np  # noqa: E402

from pipeline import files, labels  # noqa: E402
from pipeline.config import parse, require_positive  # noqa: E402
from pipeline.dataset import find_pictures, read_image  # noqa: E402
from pipeline.errors import UserError, guard  # noqa: E402
from segtrain.recipes import require_scene, require_trained  # noqa: E402

Kind = Literal["ids", "color", "overlay", "cityscapes"]


@dataclass(frozen=True)
class Config:
    """Settings of one prediction."""

    checkpoint: Path = Path("runs/pocket/segtrain/generated")
    """Output folder of segtrain/train.py."""
    images: Path = Path("runs/pocket/data/targets/cityscapes")
    """Dataset folder, or any folder with PNG or JPEG files."""
    output: Path = Path("predictions")
    """Folder to write to."""
    kinds: tuple[Kind, ...] = ("ids", "overlay")
    """What to write of each picture."""
    scene: Path | None = None
    """Output folder of segtrain/adapt.py, for a network with scene prompts."""
    opacity: float = 0.5
    """Share of the colours in an overlay, 0 to 1."""
    limit: int | None = None
    """Only the first N pictures."""


def render(kind: Kind, label: np.ndarray, picture: np.ndarray, opacity: float) -> np.ndarray:
    """Return what a file of a kind holds, from HxW train ids and the HxWx3 picture."""
    if kind == "ids":
        return label
    if kind == "cityscapes":
        return label_ids()[label]
    colors = labels.colorize(label)
    if kind == "color":
        return colors
    return (picture * (1 - opacity) + colors * opacity).round().astype(np.uint8)


def label_ids() -> np.ndarray:
    """Return the Cityscapes label id of each train id; void becomes 0, unlabelled."""
    table = np.zeros(256, dtype=np.uint8)
    for label_id, train_id in reversed(list(enumerate(labels.label_space("cityscapes_ids")))):
        if train_id < labels.NUM_CLASSES:
            table[train_id] = label_id
    return table


def targets(config: Config, picture: Path) -> dict[Kind, Path]:
    """Return the file of each kind for a picture."""
    relative = picture.relative_to(config.images).with_suffix(".png")
    return {kind: config.output / kind / relative for kind in config.kinds}


def check(config: Config) -> list[Path]:
    """Find bad input before torch or weights load. Returns the pictures."""
    require_trained(config.checkpoint)
    if config.scene:
        require_scene(config.scene)
    if not config.kinds:
        raise UserError("--kinds: name at least one of ids, color, overlay, cityscapes")
    if not 0 <= config.opacity <= 1:
        raise UserError(f"--opacity {config.opacity}: must be within 0..1")
    if config.limit is not None:
        require_positive(config, "limit")
    pictures = find_pictures(config.images)[: config.limit]
    by_target: dict[Path, Path] = {}
    for picture in pictures:
        target = picture.relative_to(config.images).with_suffix("")
        if target in by_target:
            raise UserError(f"{picture}: would overwrite {by_target[target]}; rename one of them")
        by_target[target] = picture
    files.require_writable(config.output)
    return pictures


def run(config: Config, pictures: list[Path]) -> None:
    """Predict what is missing; each process takes every k-th picture."""
    from accelerate import Accelerator
    from tqdm import tqdm

    from segtrain.segmenter import Segmenter

    accelerator = Accelerator()
    index, count = accelerator.process_index, accelerator.num_processes
    missing = [
        picture for picture in pictures[index::count]
        if not all(path.exists() for path in targets(config, picture).values())
    ]  # fmt: skip
    if missing:
        segmenter = Segmenter.from_pretrained(
            config.checkpoint, scene=config.scene, device=accelerator.device
        )
    for path in tqdm(missing, desc="predict", disable=not accelerator.is_main_process):
        picture = read_image(path)
        label = segmenter(picture)
        for kind, target in targets(config, path).items():
            files.make_folder(target.parent)
            data = files.encode_png(render(kind, label, picture, config.opacity))
            files.write_bytes(target, data)
    accelerator.wait_for_everyone()
    accelerator.print(f"{config.output}: {len(pictures)} pictures, {', '.join(config.kinds)}")


def main() -> int | None:
    """Run the command line."""
    config, call = parse(Config, __doc__)
    pictures = check(config)
    if call.dry_run:
        print(f"would predict {len(pictures)} pictures of {config.images}")
        return 0
    run(config, pictures)
    return 0


if __name__ == "__main__":
    guard(main)
