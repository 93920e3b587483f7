"""Reads timings.json, in which the runner records its stages."""

import math
from pathlib import Path
from typing import Any

from pipeline.errors import UserError
from pipeline.reading import read_json

RECORD_TYPES: dict[str, Any] = {
    "seconds": (int, float),
    "peak_mb": (int, float),
    "finished_at": (str, type(None)),
    "digest": str,
    "inputs": dict,
    "command": str,
}


def read_record(
    path: Path, needed: tuple[str, ...] = tuple(RECORD_TYPES)
) -> dict[str, dict[str, Any]]:
    """Return what a timings.json says of each stage, the `needed` entries checked; {} if absent."""
    if not path.exists():
        return {}
    remedy = "move it away; stages that are complete are then looked at again"
    stages = read_json(path, dict, remedy=remedy).get("stages")
    if not isinstance(stages, dict):
        raise UserError(f"{path}: has no mapping `stages`; {remedy}")
    for name, entry in stages.items():
        if not isinstance(entry, dict):
            raise UserError(f"{path}: {name} is not a mapping; {remedy}")
        for key in needed:
            value = entry.get(key)
            sound = isinstance(value, RECORD_TYPES[key]) and not isinstance(value, bool)
            if key not in entry or not sound or (isinstance(value, float) and not _is_time(value)):
                raise UserError(f"{path}: {key} of {name} is not what run.py writes; {remedy}")
    return stages


def _is_time(value: float) -> bool:
    return math.isfinite(value) and value >= 0
