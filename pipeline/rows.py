"""The rows of a dataset folder as they stand, sound or not, and one file in place of many.

`pipeline.dataset.read_rows` is for readers: it takes what is sound and stops at damage. This module
is for the programs that find and mend damage.
"""

import json
import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pipeline import files
from pipeline.dataset import is_sealed
from pipeline.errors import UserError

LEASE_S = 180.0  # a claim so long untouched is dead: several beats of a generation process, and
# the minute for which network file systems may show old times


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


def parse_row(line: bytes) -> dict[str, Any]:
    """Return the row of a line, or raise `ValueError` that says what is wrong with it."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        raise ValueError("is not JSON" if line.strip() else "is empty") from None
    if not isinstance(row, dict) or not isinstance(row.get("id"), str):
        raise ValueError("has no id")
    if not is_sealed(row):
        raise ValueError("differs from its row_sha256")
    return row


def scan_rows(folder: Path) -> Scan:
    """Read every line of every metadata file; broken ones become faults, none stops the scan."""
    scan = Scan()
    if not folder.is_dir():
        raise UserError(f"{folder}: no such dataset folder; check the path or create it first")
    paths = sorted(folder.glob("metadata*.jsonl"))
    if not paths:
        raise UserError(f"{folder}: has no metadata.jsonl; is this a dataset folder?")
    for path in paths:
        data = path.read_bytes()
        scan.sizes[path] = len(data)
        lines = data.split(b"\n")
        for number, line in enumerate(lines, start=1):
            if number == len(lines) and not line:
                continue
            try:
                row = parse_row(line)
            except ValueError as error:
                kind = "torn" if number == len(lines) else "broken"
                message = f"{kind} row, it {error}; it counts as absent"
                scan.faults.append(Fault(f"{path}:{number}", message, kind))
            else:
                scan.rows.setdefault(row["id"], []).append(row)
    return scan


def is_ok(row: dict[str, Any]) -> bool:
    """Tell whether a row stands for a finished sample."""
    return row.get("status", "ok") == "ok"


def choose(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the row that counts among those of one id: the first `ok` one, else the last."""
    return next(filter(is_ok, rows), rows[-1])


def require_idle(folder: Path) -> None:
    """Raise `UserError` while a process is known to write to `folder`."""
    for path in sorted(folder.glob("claims/*")):
        try:
            holder, age_s = json.loads(path.read_bytes()), time.time() - path.stat().st_mtime
        except (OSError, ValueError):
            continue
        here = holder.get("host_id") == files.host_id()
        if files.is_running(holder["pid"]) if here else age_s < LEASE_S:
            raise UserError(
                f"{folder}: process {holder['pid']} on {holder.get('host')} is writing to it; wait "
                "for its end, or stop it"
            )


def write_merged(folder: Path, rows: list[dict[str, Any]], sizes: dict[Path, int]) -> int:
    """Put `rows` in id order into metadata.jsonl, then remove the other files; return how many.

    `sizes` are those of the scan that `rows` come from. A kill leaves every row in at least one
    file, and the same command goes on.
    """
    require_idle(folder)
    target = folder / "metadata.jsonl"
    ordered = sorted(rows, key=lambda row: row["id"])
    data = "".join(json.dumps(row, sort_keys=True) + "\n" for row in ordered).encode()
    _require_same(folder, sizes)
    files.write_changed(target, data)
    _require_same(folder, {p: size for p, size in sizes.items() if p != target})
    parts = [path for path in sizes if path != target]
    for path in parts:
        path.unlink()
    files.fsync_folder(folder)
    return len(parts)


def _require_same(folder: Path, sizes: dict[Path, int]) -> None:
    for path, size in sizes.items():
        if not path.exists() or os.path.getsize(path) != size:
            raise UserError(f"{path}: has changed meanwhile; wait until nothing writes to {folder}")
