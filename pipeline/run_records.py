"""What the `run.json` of a dataset folder says, of a folder here or of a release elsewhere."""

from pathlib import Path
from typing import Any

from pipeline.addresses import address_of
from pipeline.errors import UserError
from pipeline.reading import parse_json, read_json
from pipeline.remote_files import open_store

NAME = "run.json"


def read_run(folder: Path) -> dict[str, Any]:
    """Return the content of the run.json of a folder or an address; empty where it has none."""
    address = address_of(folder)
    if not address:
        path = folder / NAME
        return dict(read_json(path, dict)) if path.is_file() else {}
    data = open_store(address).read_optional(NAME)
    if data is None:
        return {}
    try:
        return dict(parse_json(data, dict))
    except ValueError as error:
        raise UserError(
            f"{address}/{NAME}: broken JSON ({error}); restore it, or download the set"
        ) from None
