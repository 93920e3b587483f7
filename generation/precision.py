"""Settles `--precision auto`: the choice is made once per output folder, and all workers follow it.

The precision changes the bytes of a sample. So what was chosen is written to OUTPUT/precision.json
before anything else, and enters the identity of the run as if it had been given.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, cast

from pipeline import files
from pipeline.errors import UserError
from pipeline.output_folders import DATASET, require_writable, stored_config
from pipeline.reading import read_json

Precision = Literal["fp32", "fp16", "bf16"]

AUTO = "auto"
CHOICES: tuple[Precision, ...] = ("fp32", "bf16")
RECORD = "precision.json"
WRITING_S = 5.0  # another process fills a file that is still empty within this time


def settle(folder: Path, measure: Callable[[], dict[str, Any]]) -> Precision:
    """Return the precision of the run in `folder`; if none is recorded yet, measure and record it.

    `measure` returns the choice under the key `precision`, and what it rests on. Of several
    processes that measure at the same time, the first to write decides for all.
    """
    known = recorded(folder)
    if known is None:
        require_writable(folder)
        files.create(folder / RECORD, files.json_bytes(measure()))
        known = recorded(folder)
    assert known is not None
    return known


def recorded(folder: Path) -> Precision | None:
    """Return the precision that a folder was begun with, None if nothing states it."""
    stored = stored_config(folder, DATASET)
    if stored is not None and isinstance(stored.get("precision"), str):
        return cast(Precision, stored["precision"])
    path = folder / RECORD
    if not path.exists():
        return None
    deadline = time.monotonic() + WRITING_S
    while not path.stat().st_size and time.monotonic() < deadline:  # see `files.create`
        time.sleep(0.05)
    choice = read_json(path, dict).get("precision")
    if choice not in CHOICES:
        raise UserError(
            f"{path}: states no precision ({' or '.join(CHOICES)}); delete it, then the next start "
            "measures again"
        )
    return cast(Precision, choice)
