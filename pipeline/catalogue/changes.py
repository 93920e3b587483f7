"""Whether the files of a source are still those of which a dataset folder was made.

Only files that are newer than the label in the dataset folder are read.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from pipeline import files, images, label_spaces, labels, parallel
from pipeline.catalogue.specs import Listing
from pipeline.errors import UserError
from pipeline.rows import sample_id
from pipeline.tar_members import file_of


def require_unchanged(folder: Path, listing: Listing, done: Iterable[dict[str, Any]]) -> None:
    """Raise `UserError` if a label or an image has other content than when its row was written.

    `done` are the finished rows of the dataset folder; their ids number the pairs of `listing`.
    """
    table = label_spaces.label_space(listing.label_space)
    rows = {row["id"]: row for row in done}
    newer: list[tuple[Path, Path | str]] = []  # and what it was when it was prepared
    for index, pair in enumerate(listing.pairs):
        if not (row := rows.get(sample_id(index))):
            continue
        made = folder / str(row.get("label_file_name"))
        if _is_newer(pair.label, made):
            newer.append((pair.label, made))
        if (stated := row.get("image_sha256")) and _is_newer(pair.image, made):
            newer.append((pair.image, stated))

    def is_same(one: tuple[Path, Path | str]) -> bool:
        source, before = one
        if isinstance(before, str):
            return files.sha256(images.read_file(source)) == before
        return _is_same_label(source, before, table)

    with parallel.thread_pool() as pool:
        found = tqdm(pool.map(is_same, newer), "newer files", len(newer), disable=not newer)
        changed = [path for (path, _), same in zip(newer, found, strict=True) if not same]
    if changed:
        more = f", and so have {len(changed) - 1} more files" if len(changed) > 1 else ""
        raise UserError(
            f"{changed[0]}: has changed since it was prepared into {folder}{more}; prepare the set "
            "in another folder, or delete this one first"
        )


def _is_newer(source: Path, made: Path) -> bool:
    """Tell whether a file, or the shard it lies in, is newer than another; not if one is gone."""
    try:
        return file_of(source).stat().st_mtime_ns > made.stat().st_mtime_ns
    except OSError:
        return False


def _is_same_label(source: Path, made: Path, table: np.ndarray) -> bool:
    try:
        return np.array_equal(labels.read_label(source, table), labels.read_label(made))
    except UserError:
        return False
