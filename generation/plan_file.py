"""The file of `--plan-file`: what is known of every sample before it is generated."""

import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path

from tqdm import tqdm

from generation.plan import PlanItem
from generation.specs import SpecReader
from pipeline import files
from pipeline.output_files import check_output_file
from pipeline.output_folders import require_writable
from pipeline.reading import parse_json
from pipeline.rows import MAX_ROW_BYTES, sample_id

THREADS = 8


def write_plan(path: Path, plan: Sequence[PlanItem], specs: SpecReader) -> None:
    """Write what is known of every sample before its generation: JSON rows in id order."""
    check_plan_file(path)
    require_writable(path.absolute().parent, "--plan-file")
    read = lru_cache(4 * THREADS)(specs.folder.read)

    def line(item: PlanItem) -> str:
        whole = read(specs.label_maps[item.label_map].name)
        row = {"id": sample_id(item.index), **specs.describe(item, whole).row}
        return json.dumps(row) + "\n"

    lines = dict.fromkeys((item.index for item in plan), "")
    by_label_map = sorted(plan, key=lambda item: item.label_map)  # so that each map is read once
    with ThreadPoolExecutor(THREADS) as pool:
        found = tqdm(pool.map(line, by_label_map), total=len(plan), unit="row", desc="plan")
        for item, text in zip(by_label_map, found, strict=True):
            lines[item.index] = text
    files.write_bytes(path, "".join(lines.values()).encode())


def check_plan_file(path: Path) -> None:
    """Raise `UserError` unless a plan may be written to `path`: a new file, or an older plan."""
    check_output_file(path, _is_plan, "plan", setting="--plan-file")


def _is_plan(path: Path) -> bool:
    """Tell whether a regular file begins as `write_plan` begins one, or is empty."""
    with open(path, "rb") as handle:
        line = handle.readline(MAX_ROW_BYTES)
    if not line:
        return True
    try:
        row = parse_json(line, dict)
    except ValueError:
        return False
    return "source_label" in row and "fusion" in row and "status" not in row
