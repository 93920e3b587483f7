"""Write a part of Pocket City, the built-in world, as an ordinary dataset folder.

    python pipeline/pocket_city.py --split source --n 400 --output DIR       # labelled, look `game`
    python pipeline/pocket_city.py --split collection --n 5000 --output DIR  # captioned, no labels
    python pipeline/pocket_city.py --split acdc --n 100 --output DIR         # a labelled target
    python pipeline/pocket_city.py --split dev --n 60 --output DIR           # to make choices on

Splits: source; collection; oracle (labelled renders of all looks, for measuring only); the targets
cityscapes, bdd100k, mapillary, acdc, dark_zurich, for final tables only; and dev, a sixth unseen
set on which every choice is made. No two splits share a scene. Image i is a function of
(split, i, size), so a larger n only adds images; the same command continues.
"""

import sys
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

if sys.path and sys.path[0] == str(Path(__file__).resolve().parent):  # see CONTRIBUTING.md
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from pipeline.config import parse, show
from pipeline.dataset_writer import DatasetWriter, EncodedSample, encode_sample, write_card
from pipeline.errors import UserError, guard
from pipeline.folder_lock import lock_folder
from pipeline.origins import TARGET_ROLE
from pipeline.pocket.splits import SEEDS_PER_SPLIT, SPLITS, TARGETS, look_of, scene_seed
from pipeline.rows import sample_id
from pipeline.setting_checks import require_between, require_positive

if TYPE_CHECKING:
    import numpy as np


MAX_PIXELS = 2048 * 4096  # a process needs about 240 bytes for each
COMMITTED_TOGETHER = 16  # samples


@dataclass(frozen=True)
class Config:
    """Settings of the written part."""

    split: str = "source"
    """source, collection, oracle, dev, cityscapes, bdd100k, mapillary, acdc or dark_zurich"""
    n: int = 400
    """images of the finished set"""
    first: int = 0
    """index of the first image; another range of the same split holds other scenes"""
    output: str = ""
    """dataset folder to write"""
    size_px: tuple[int, int] = (128, 256)
    """height and width of the images"""
    workers: int = 2
    """rendering processes"""


def render_sample(
    index: int, split: str, size_px: tuple[int, int]
) -> "tuple[np.ndarray, np.ndarray | None, dict[str, Any]]":
    """Render image `index` of a split; returns (image, label, metadata row)."""
    import cv2
    import numpy as np

    from pipeline.pocket.look import caption, place_for, style_words
    from pipeline.pocket.render import render_pair
    from pipeline.pocket.scene import make_scene

    cv2.setNumThreads(1)
    name, look = look_of(split, index)
    seed = scene_seed(split, index)
    image, label = render_pair(make_scene(seed, look.camera), look, *size_px, seed)
    row = {"seed": seed, "look": name, "condition": name.removeprefix(f"{split}_")}
    if split in ("collection", "oracle"):
        classes = [int(c) for c in np.unique(label) if c != 255]
        place = place_for(look, seed)
        row["prompt"] = caption(classes, look, place, seed=seed)
        row["style"] = style_words(look, place)
    return image, (None if split == "collection" else label), row


def render_and_encode(index: int, split: str, size_px: tuple[int, int]) -> EncodedSample:
    """Render image `index` of a split and encode its files, so that the parent only writes."""
    return encode_sample(index, *render_sample(index, split, size_px))


def check(config: Config) -> None:
    """Raise `UserError` for a setting out of range."""
    from pipeline.parallel import MOST_WORKERS

    if config.split not in SPLITS:
        raise UserError(f"--split {config.split}: must be one of {', '.join(SPLITS)}")
    require_positive(config, "n")
    require_between(config, 1, MOST_WORKERS, "workers")
    require_between(config, 1, SEEDS_PER_SPLIT, "n")
    require_between(config, 0, SEEDS_PER_SPLIT - config.n, "first")
    height, width = config.size_px
    if min(height, width) < 16 or height * width > MAX_PIXELS:
        raise UserError(
            f"--size-px {height} {width}: both sides must be 16 or more, together at most "
            f"{MAX_PIXELS} pixels (2048 x 4096)"
        )


def main() -> int | None:
    config, call = parse(Config, __doc__)
    check(config)
    if call.dry_run:
        show(config)
        return None
    if not config.output:
        raise UserError("--output: no folder given; name the dataset folder to write")

    from tqdm import tqdm

    from pipeline.parallel import in_processes

    folder = Path(config.output)
    settings = {
        "world": "Pocket City 1",
        "split": config.split,
        "first": config.first,
        "size_px": list(config.size_px),
    }
    writer = DatasetWriter(
        folder,
        config=settings,
        provenance={"role": TARGET_ROLE} if config.split in TARGETS else None,
    )
    lock_folder(folder)
    done = writer.done_ids()
    indices = range(config.first, config.first + config.n)
    missing = [i for i in indices if sample_id(i) not in done]
    job = partial(render_and_encode, split=config.split, size_px=config.size_px)
    bar = tqdm(total=config.n, initial=config.n - len(missing), unit="image", desc=config.split)
    rendered = in_processes(job, missing, config.workers, chunk=8)
    while batch := list(islice(rendered, COMMITTED_TOGETHER)):
        writer.write_encoded(batch)
        bar.update(len(batch))
    bar.close()
    kind = "unlabelled images with captions" if config.split == "collection" else "labelled"
    write_card(
        folder,
        f"Pocket City: {config.split}",
        f"Rendered street scenes, {kind}, {config.size_px[1]}x{config.size_px[0]} pixels. "
        f"Made by `python pipeline/pocket_city.py --split {config.split} --n {config.n}`. "
        "Licence: Apache-2.0.",
    )
    return None


if __name__ == "__main__":
    guard(main)
