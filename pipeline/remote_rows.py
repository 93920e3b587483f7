"""Rows and marks of a released set that lies behind an address, `s3://bucket/set` say.

Only a release can be read from afar: its metadata.jsonl is complete, and its samples are members
of tar shards, each of which is one read.
"""

from typing import Any

from pipeline import marks
from pipeline.errors import UserError
from pipeline.reading import parse_json
from pipeline.remote_files import open_store
from pipeline.rows import is_ok, parse_row
from pipeline.tar_members import find_member


def read_remote_rows(address: str) -> dict[str, dict[str, Any]]:
    """Return the rows of a release, by id; its metadata.jsonl is read as a whole."""
    rows: dict[str, dict[str, Any]] = {}
    where = f"{address}/metadata.jsonl"
    for number, line in enumerate(open_store(address).read("metadata.jsonl").splitlines(), 1):
        try:
            row = parse_row(line)
            names = [row.get(f"{kind}_file_name") for kind in ("image", "label")]
            if is_ok(row) and not all(find_member(name) for name in names if name):
                raise ValueError("names a file outside of tar shards")
        except ValueError as error:
            raise UserError(
                f"{where}:{number}: broken row, it {error}; give the address of a folder that "
                "pipeline/release.py wrote, or download the set"
            ) from None
        rows.setdefault(row["id"], row)
    return rows


def read_remote_marks(address: str) -> dict[str, marks.Mark]:
    """Return the marks of a set, by sample id; none where it has no marks.json."""
    where, data = f"{address}/{marks.NAME}", open_store(address).read_optional(marks.NAME)
    if data is None:
        return {}
    try:
        content = parse_json(data, dict)
    except ValueError as error:
        raise UserError(f"{where}: broken JSON ({error}); {marks.REMEDY}") from None
    return marks.parse_marks(content, where)
