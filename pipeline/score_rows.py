"""Rows of scores of a dataset folder, as generation/score.py writes them beside it.

One row per sample, by its id: data.jsonl when all is done, data-000.jsonl of each process before.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from pipeline.dataset import Sample
from pipeline.errors import UserError
from pipeline.metadata import read_lines
from pipeline.reading import parse_json

Row = dict[str, Any]


def state_of(sample: Sample) -> str:
    """Return what tells the files of a sample from others under the same id."""
    digests = [str(sample.row.get(f"{kind}_sha256") or "") for kind in ("image", "label")]
    return "-".join(d[:16] for d in digests) if digests[0] else str(sample.state)


def label_state(state: str) -> str:
    """Return the part of a `state_of` that tells label maps apart."""
    return state.rpartition("-")[2]


def rows_of(folder: Path, part: str, samples: Iterable[Sample]) -> dict[str, Row]:
    """Return the rows of the present files of samples, by id, in the order of the samples.

    Reads the rows of all processes, of a stopped scoring too. Rows of earlier files of a sample do
    not count, wherever they are. A sample without a row is left out.
    """
    found: dict[tuple[str, str], Row] = {}
    for path in [folder / f"{part}.jsonl", *sorted(folder.glob(f"{part}-[0-9]*.jsonl"))]:
        found |= {(row["id"], str(row.get("state"))): row for row in _read(path)}
    keys = ((sample.id, state_of(sample)) for sample in samples)
    return {key[0]: found[key] for key in keys if key in found}


def finished_rows(folder: Path, part: str) -> dict[str, Row]:
    """Return the rows of the last scoring that came to its end, by id; empty without one."""
    return {row["id"]: row for row in _read(folder / f"{part}.jsonl")}


def _read(path: Path) -> Iterator[Row]:
    """Yield the rows of a file that have an id, if it is there; a torn last line is none."""
    if not path.exists():
        return
    for number, line, ended in read_lines(path):
        try:
            row = parse_json(line, dict) if line else None
        except ValueError as error:
            if not ended:
                continue
            raise UserError(
                f"{path}:{number}: broken row ({error}); delete that line and run "
                "generation/score.py again"
            ) from None
        if row and isinstance(row.get("id"), str):
            yield row
