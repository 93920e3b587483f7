"""Rows of scores of a dataset folder, as generation/score.py writes them beside it.

One row per sample, by its id: data.jsonl when all is done, data-000.jsonl of each process before.
"""

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


def read_rows(folder: Path, part: str) -> dict[str, Row]:
    """Return the rows of a part by id, of all processes; a torn last line is none.

    Of several rows with one id the last one counts, that of the newest files.
    """
    rows: dict[str, Row] = {}
    for path in [folder / f"{part}.jsonl", *sorted(folder.glob(f"{part}-[0-9]*.jsonl"))]:
        if not path.exists():
            continue
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
                rows[row["id"]] = row
    return rows
