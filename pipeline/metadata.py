"""The metadata files of a dataset folder: the reader of rows, with three views.

`read_rows` is strict: it is for programs that use the samples and stops at damage. `scan_rows` is
forensic: it turns damage into faults, for the programs that repair it. `MetadataIndex` of
`pipeline.metadata_index` is incremental: it follows the rows that the processes of a run append.
All three read lines by `pipeline.rows`, take a row without status for a finished one, and prefer
the first finished row of a sample.
"""

import functools
import itertools
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pipeline import files
from pipeline.addresses import missing_folder
from pipeline.claims import require_idle
from pipeline.errors import UserError
from pipeline.paths import Enclosure
from pipeline.reading import read_bytes, shortened
from pipeline.rows import (
    GUIDE,
    encode_row,
    is_ok,
    is_sealed,
    is_torn,
    parse_row,
)

MAX_METADATA_BYTES = 8 << 30


def metadata_files(folder: Path) -> list[Path]:
    """Return the metadata files of a folder, of which there must be at least one.

    Raises `UserError` where there is none, or where one is a link that leads out of the folder.
    """
    if not folder.is_dir():
        raise missing_folder(folder, "check the path or create it first", "dataset folder")
    paths = sorted(folder.glob("metadata*.jsonl"))
    if not paths:
        raise UserError(f"{folder}: has no metadata.jsonl; is this a dataset folder?")
    enclosure = Enclosure(folder)
    for path in paths:
        try:
            enclosure.find(path.name)
        except UserError as error:
            raise UserError(f"{path}: {error}") from None
    return paths


def is_dataset(folder: Path) -> bool:
    """Tell whether a folder has rows, sound or not."""
    return any(folder.glob("metadata*.jsonl"))


def read_lines(path: Path) -> Iterator[tuple[int, bytes, bool]]:
    """Yield number, content, and whether a newline ends it, of the lines of a metadata file."""
    lines = read_bytes(path, MAX_METADATA_BYTES).split(b"\n")
    for number, line in enumerate(lines, start=1):
        if number < len(lines) or line:
            yield number, line, number < len(lines)


def read_rows(folder: Path) -> dict[str, dict[str, Any]]:
    """Read the rows of all metadata files, by id; a torn last line is ignored.

    Of several rows with one id, the first `ok` row wins, else the last. Raises `UserError` for a
    broken line elsewhere, and for two `ok` rows of one id that name different images. A folder
    without rows gives none.
    """
    rows: dict[str, dict[str, Any]] = {}
    for path in metadata_files(folder) if is_dataset(folder) else ():
        for number, line, ended in read_lines(path):
            try:
                row = parse_row(line)
            except ValueError as error:
                if is_torn(line, ended) or not line.strip():
                    continue  # the writer died here, the sample does not exist
                raise UserError(
                    f"{path}:{number}: broken row, it {error}; {remedy(folder)}"
                ) from None
            other = rows.setdefault(row["id"], row)
            rows[row["id"]] = prefer(other, row)
            if is_ok(other) and is_ok(row) and row["image_file_name"] != other["image_file_name"]:
                raise UserError(
                    f"{path}:{number}: another row has the id {shortened(row['id'], 60)} too, with "
                    f"the image {other['image_file_name']}; give each sample an id of its own"
                )
    return rows


def remedy(folder: Path) -> str:
    """Return what to do about a broken row; a folder of others is never to be repaired by us."""
    if (folder / "run.json").exists():
        return f"run pipeline/verify.py --data {folder} --repair"
    return f"correct it, {GUIDE}"


def repair_tail(path: Path) -> None:
    """Cut a torn last line that a killed writer left, so that appending starts cleanly."""
    if not path.exists():
        return
    data = path.read_bytes()
    whole = data.rfind(b"\n") + 1
    if whole < len(data):
        os.truncate(path, whole)
        files.sync_file(path)


@dataclass(frozen=True)
class Fault:
    """One line about one file or row; writing the rows again cures `torn`, `broken`, `surplus`."""

    where: str
    message: str
    kind: Literal["torn", "broken", "surplus", "lasting"] = "lasting"

    def __str__(self) -> str:
        where = self.where if self.where.isprintable() else ascii(self.where)
        return f"{where}: {self.message}"


@dataclass
class Scan:
    """All rows of a folder by id, in the order of the files and lines, and what is no row."""

    rows: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)
    sizes: dict[Path, int] = field(default_factory=dict)
    """Bytes of each metadata file when it was read."""


def scan_rows(folder: Path) -> Scan:
    """Read every line of every metadata file; broken ones become faults, none stops the scan."""
    scan = Scan()
    for path in metadata_files(folder):
        scan.sizes[path] = path.stat().st_size
        for number, line, ended in read_lines(path):
            try:
                row = parse_row(line)
                if not is_sealed(row):
                    raise ValueError("differs from its row_sha256")
            except ValueError as error:
                kind: Literal["torn", "broken"] = "torn" if is_torn(line, ended) else "broken"
                message = f"{kind} row, it {error}; it counts as absent"
                scan.faults.append(Fault(f"{path}:{number}", message, kind))
            else:
                scan.rows.setdefault(row["id"], []).append(row)
    return scan


def require_ours(folder: Path, scan: Scan) -> None:
    """Raise `UserError` before anything is changed in a folder that is somebody else's.

    Such a folder has no run.json and no sound row. Its lines are not ours to judge.
    """
    if scan.rows or (folder / "run.json").exists():
        return
    reasons = (f" ({fault.where}: {fault.message.partition(';')[0]})" for fault in scan.faults)
    raise UserError(
        f"{folder}: is not a dataset folder of ours and is not changed: it has no run.json and no "
        f"row with an id{next(reasons, '')}; {GUIDE}"
    )


def prefer(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    """Return the row that counts of two of one id in order: the first `ok` one or the last."""
    return first if is_ok(first) else second


def choose(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the row that counts among those of one id."""
    return functools.reduce(prefer, rows)


def write_merged(
    folder: Path, rows: list[dict[str, Any]], sizes: dict[Path, int], *, keep: bool = False
) -> int:
    """Put `rows` in id order into metadata.jsonl, then remove the other files; return how many.

    `sizes` are those of the scan that `rows` come from. With `keep` all metadata files as they were
    stay in a folder of their own below `replaced/`. A kill leaves every row in at least one file,
    and the same command goes on.
    """
    require_idle(folder)
    target = folder / "metadata.jsonl"
    ordered = sorted(rows, key=lambda row: row["id"])
    data = "".join(map(encode_row, ordered)).encode()
    _require_same(folder, sizes)
    with files.storage_errors(folder, lambda: len(data)):
        if keep:
            _keep(folder, list(sizes))
        files.write_changed(target, data)
        _require_same(folder, {p: size for p, size in sizes.items() if p != target})
        parts = [path for path in sizes if path != target]
        for path in parts:
            path.unlink()
        files.fsync_folder(folder)
    return len(parts)


def _keep(folder: Path, paths: list[Path]) -> None:
    """Copy metadata files into the next free folder below `replaced/`, where nobody reads them."""
    if (folder / "replaced").is_symlink():
        raise UserError(f"{folder / 'replaced'}: is a link; put a folder in its place")
    for number in itertools.count(1):
        backup = folder / "replaced" / f"{number:03d}"
        if not backup.exists():
            break
    for path in paths:
        files.write_bytes(backup / f"{path.name}.before", path.read_bytes())


def _require_same(folder: Path, sizes: dict[Path, int]) -> None:
    for path, size in sizes.items():
        if not path.exists() or os.path.getsize(path) != size:
            raise UserError(f"{path}: has changed meanwhile; wait until nothing writes to {folder}")
