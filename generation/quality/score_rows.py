"""Rows of scores: one per sample, by its id, in files of their own beside a dataset's metadata.

    data.jsonl   source.jsonl   reference.jsonl      when all is done; data-000.jsonl of a process
    features/<part>/<digest>.npz                     of a block, called by a digest of its samples
    costs/<segmenter>/<shard>/<id>.npz               what generation/filter.py reads

A row counts if it is of the sample's present files (`state`). As in a dataset folder, a row is
appended when the files that belong to it are on the disk.
"""

import io
import json
import math
import os
import re
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from generation.quality import fidelity, pixels
from pipeline import files
from pipeline.dataset import Sample
from pipeline.dataset_writer import SHARD_SIZE
from pipeline.errors import UserError
from pipeline.metadata import repair_tail
from pipeline.output_folders import RUN, stored_config
from pipeline.paths import check_relative
from pipeline.reading import read_bytes
from pipeline.score_rows import Row, finished_rows, rows_of, state_of

MAX_FEATURES_BYTES = 1 << 30  # of a block


def check_row(row: Row) -> None:
    """Raise `ValueError` unless all that programs read of a row is what it must be."""
    for name in ("brightness", "contrast", "sharpness"):
        if type(row.get(name)) not in (int, float) or not math.isfinite(row[name]):
            raise ValueError(f"its {name} is not a number")
    for name in ("condition", "hash", "state"):
        if not isinstance(row.get(name), str):
            raise ValueError(f"its {name} is not text")
    if not re.fullmatch(f"[0-9a-f]{{{pixels.HASH_DIGITS}}}", row["hash"]):
        raise ValueError(f"its hash does not have {pixels.HASH_DIGITS} hexadecimal digits")
    for name in ("fidelity", "costs", "attributes"):
        if not isinstance(row.get(name, {}), dict):
            raise ValueError(f"its {name} are not a mapping")
    for counts in row.get("fidelity", {}).values():
        fidelity.check_row(counts)
    for path in row.get("costs", {}).values():
        check_relative(path)
    for seen in row.get("attributes", {}).values():
        if not isinstance(seen, dict) or not isinstance(seen.get("seen"), str):
            raise ValueError("its attributes lack what is seen")


def current_rows(folder: Path, part: str, samples: Iterable[Sample]) -> dict[str, Row]:
    """Return the rows of the samples that have one, in their order, checked."""
    current = rows_of(folder, part, samples)
    _check_rows(folder, part, current)
    return current


def all_rows(folder: Path, part: str) -> dict[str, Row]:
    """Return the rows of a finished scoring, checked, whether or not its samples are still there.

    Raises `UserError` if the folder has none.
    """
    rows = finished_rows(folder, part)
    if not rows:
        what = "no rows in" if (folder / f"{part}.jsonl").is_file() else "no"
        raise UserError(
            f"{folder}: has {what} {part}.jsonl; run generation/score.py to its end first"
        )
    _check_rows(folder, part, rows)
    return rows


def network_of(folder: Path, name: str) -> dict[str, Any] | None:
    """Return what tells a network that scored a folder from others: its contents and its loader.

    None if the folder does not say so.
    """
    config = stored_config(folder, RUN) or {}
    revisions = config.get("segmenters")
    if not isinstance(revisions, dict) or not revisions.get(name):
        return None
    return {"revision": revisions[name], "class": config.get("segmenter_class", "")}


def _check_rows(folder: Path, part: str, rows: Mapping[str, Row]) -> None:
    for key, row in rows.items():
        try:
            check_row(row)
        except ValueError as error:
            raise UserError(
                f"{folder}: the row {key} of {part}.jsonl is broken ({error}); delete that line "
                "and run generation/score.py again"
            ) from None


class Appender:
    """Appends rows of one process durably."""

    def __init__(self, folder: Path, part: str, process_index: int) -> None:
        self.path = folder / f"{part}-{process_index:03d}.jsonl"
        repair_tail(self.path)

    def append(self, rows: Sequence[Row]) -> None:
        """Append rows in one write."""
        text = "".join(json.dumps(row, sort_keys=True) + "\n" for row in rows)
        files.write_data(self.path, text.encode(), os.O_APPEND)
        files.sync_file(self.path)


def merge(folder: Path, part: str, samples: Sequence[Sample]) -> list[Row]:
    """Put the rows of all samples, in their order, into one file in place of many; return them."""
    rows = current_rows(folder, part, samples)
    if missing := [sample.id for sample in samples if sample.id not in rows]:
        raise UserError(
            f"{folder}: {len(missing)} samples have no scores yet ({missing[0]}); run the same "
            "command again"
        )
    text = "".join(json.dumps(row, sort_keys=True) + "\n" for row in rows.values())
    files.write_changed(folder / f"{part}.jsonl", text.encode())
    for path in folder.glob(f"{part}-[0-9]*.jsonl"):
        path.unlink()
    return list(rows.values())


def costs_file(segmenter: str, sample: Sample, index: int) -> str:
    """Return the name, below the output folder, of the costs of sample `index` of a dataset."""
    return f"costs/{segmenter}/{index // SHARD_SIZE:04d}/{sample.id}.npz"


def read_arrays(path: Path, names: Iterable[str], limit: int, remedy: str) -> list[np.ndarray]:
    """Return arrays of an .npz file that may be of somebody else; `limit`: of their bytes in all.

    No object is unpickled. Raises `UserError`, which `remedy` ends, for a missing or damaged file.
    """
    content = io.BytesIO(read_bytes(path, limit, remedy))
    try:
        with zipfile.ZipFile(content) as archive:
            if sum(member.file_size for member in archive.infolist()) > limit:
                raise ValueError
        with np.load(content, allow_pickle=False) as stored:
            return [stored[name] for name in names]
    except Exception as error:  # a damaged archive raises all kinds
        raise UserError(f"{path}: cannot be read ({type(error).__name__}); {remedy}") from None


def features_content(
    folder: Path, part: str, samples: Sequence[Sample], features: Mapping[str, np.ndarray]
) -> tuple[Path, bytes]:
    """Return the file of the features BxD of a block, by the name of their network.

    Blocks of other samples, or of other files of these, have files of their own: nothing is lost
    when a sample is added and the limits of the blocks move.
    """
    buffer = io.BytesIO()
    ids, states = [s.id for s in samples], [state_of(s) for s in samples]
    arrays: dict[str, Any] = {"ids": np.array(ids), "states": np.array(states)}
    arrays |= {f"features_{i}": features[name] for i, name in enumerate(sorted(features))}
    np.savez_compressed(buffer, **arrays)
    name = files.sha256(json.dumps([ids, states]).encode())[:16]
    return folder / "features" / part / f"{name}.npz", buffer.getvalue()


def read_features(
    folder: Path, part: str, samples: Sequence[Sample], names: Sequence[str]
) -> dict[str, np.ndarray]:
    """Return the features NxD float64 of all samples, in their order, by network."""
    found: dict[tuple[str, str], tuple[np.ndarray, ...]] = {}
    widths: list[int] | None = None
    for path in sorted((folder / "features" / part).glob("*.npz")):
        remedy = f"delete the folder {folder} and score again"
        wanted = ("ids", "states", *(f"features_{i}" for i in range(len(names))))
        ids, states, *columns = read_arrays(path, wanted, MAX_FEATURES_BYTES, remedy)
        sound = ids.ndim == 1 and ids.shape == states.shape
        if not sound or not all(_are_features(column, len(ids)) for column in columns):
            raise UserError(f"{path}: holds no features; {remedy}")
        if widths is not None and [column.shape[1] for column in columns] != widths:
            raise UserError(f"{path}: its features have another length than others; {remedy}")
        widths = [column.shape[1] for column in columns]
        stored = zip(ids.tolist(), states.tolist(), strict=True)
        found |= dict(zip(stored, zip(*columns, strict=True), strict=True))
    keys = [(sample.id, state_of(sample)) for sample in samples]
    if absent := [key[0] for key in keys if key not in found]:
        raise UserError(
            f"{folder / 'features' / part}: features of sample {absent[0]} are missing; delete the "
            f"folder {folder} and score again"
        )
    return {
        name: np.stack([found[key][number] for key in keys]).astype(np.float64)
        for number, name in enumerate(sorted(names))
    }


def _are_features(column: np.ndarray, number: int) -> bool:
    """Tell whether an array holds finite features NxD of `number` samples."""
    shaped = column.ndim == 2 and len(column) == number and column.shape[1] > 0
    return shaped and column.dtype.kind == "f" and bool(np.isfinite(column).all())
