"""The rows of a dataset folder as they stand, sound or not, and one file in place of many.

`pipeline.metadata.read_rows` is for readers: it takes what is sound and stops at damage. This
module is for the programs that find and mend damage.
"""

import itertools
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pipeline import files
from pipeline.claims import require_idle
from pipeline.errors import UserError
from pipeline.metadata import (
    GUIDE,
    encode_row,
    is_ok,
    is_sealed,
    is_torn,
    metadata_files,
    parse_row,
    read_lines,
)


@dataclass(frozen=True)
class Fault:
    """One line about one file or row; writing the rows anew cures `torn`, `broken`, `surplus`."""

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
        f"{folder}: is no dataset folder of ours and is left as it is: it has no run.json and no "
        f"row with an id{next(reasons, '')}; {GUIDE}"
    )


def choose(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the row that counts among those of one id: the first `ok` one, else the last."""
    return next(filter(is_ok, rows), rows[-1])


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
        place = folder / "replaced" / f"{number:03d}"
        if not place.exists():
            break
    for path in paths:
        files.write_bytes(place / f"{path.name}.before", path.read_bytes())


def _require_same(folder: Path, sizes: dict[Path, int]) -> None:
    for path, size in sizes.items():
        if not path.exists() or os.path.getsize(path) != size:
            raise UserError(f"{path}: has changed meanwhile; wait until nothing writes to {folder}")
