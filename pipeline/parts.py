"""Brings dataset folders that static shards wrote on machines of their own into one folder."""

import os
from collections.abc import Collection, Sequence
from pathlib import Path

from pipeline import files, marks
from pipeline.config import differences
from pipeline.errors import UserError
from pipeline.metadata import is_dataset, read_rows
from pipeline.output_folders import DATASET, check_output, require_writable, stored_config
from pipeline.paths import Enclosure
from pipeline.rows import KINDS, encode_row, is_ok

RECORDS = ("run.json", "classes.json", "README.md")


def join_parts(folder: Path, parts: Sequence[Path]) -> None:
    """Bring the finished samples of `parts` into `folder`, which may hold some itself.

    All must be of one run; a part without rows, of a shard that has no sample, is passed over.
    Files and marks come first, rows last. What is there is not written again, so the same call goes
    on after a kill, and so does one with other parts.
    """
    if absent := [part for part in parts if not part.is_dir()]:
        raise UserError(f"--parts {absent[0]}: no such folder; check the path")
    parts = [part for part in parts if is_dataset(part)]
    if not parts:
        raise UserError("--parts: hold no row; run the stage that writes them")
    check_output(folder, DATASET, inputs={"--parts": list(parts)}, setting="--data")
    for part in parts:
        _require_same_run(folder, parts[0], part)
    require_writable(folder, "--data")
    for name in RECORDS:
        if not (folder / name).exists() and (parts[0] / name).exists():
            files.place(parts[0] / name, folder / name, "copy")
    for part in parts:
        rows = {key: row for key, row in read_rows(part).items() if is_ok(row)}
        enclosure = Enclosure(part)
        for key, row in rows.items():
            for kind in KINDS:
                if file_name := row.get(f"{kind}_file_name"):
                    _bring(part, folder, file_name, enclosure, f"{kind} of sample {key}")
        _bring_marks(part, folder, rows)
        lines = "".join(encode_row(row) for _, row in sorted(rows.items())).encode()
        name = f"metadata-part-{files.sha256(lines)}.jsonl"  # no other part of any call has it
        files.write_bytes(folder / name, lines)


def _require_same_run(folder: Path, first: Path, part: Path) -> None:
    if stored_config(part, DATASET) is None:
        raise UserError(f"{part}: has no sound run.json; give dataset folders of one run")
    for other in (folder, first):
        stored, own = stored_config(other, DATASET), stored_config(part, DATASET)
        if stored is not None and own is not None and (lines := differences(stored, own)):
            raise UserError(
                f"{part}: is of another run than {other} ({'; '.join(lines[:6])}); give parts of "
                "one run"
            )


def _bring_marks(part: Path, folder: Path, keys: Collection[str]) -> None:
    """Add the marks of the samples `keys` of a part; marks that the folder has itself stay."""
    own = marks.read_marks(folder)
    found = {key: mark for key, mark in marks.read_marks(part).items() if key in keys}
    if not found.keys() <= own.keys():
        marks.write_marks(folder, {**found, **own})


def _bring(part: Path, folder: Path, name: str, enclosure: Enclosure, what: str) -> None:
    target = folder / name
    try:
        size = enclosure.find(name).st_size
    except UserError as error:
        raise UserError(f"{part / name}: {what} {error}") from None
    if not (target.is_file() and os.path.getsize(target) == size):
        files.place(part / name, target)
