"""Put the rows of all processes into one metadata.jsonl, in id order.

    python pipeline/merge.py --data runs/generated

Each process of a run appends to its own metadata file. Readers read all of them, so merging is
optional; one sorted file is easier to read, publish and compare. Of several rows of one sample, the
valid one is kept. An incomplete last line, as a killed process leaves it, is dropped; other invalid
lines stop the program (see pipeline/verify.py). The program stops with an error while a run writes
to the folder; the run can be continued afterwards. The same command continues after a kill.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

if sys.path and sys.path[0] == str(Path(__file__).resolve().parent):  # see CONTRIBUTING.md
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from pipeline.config import parse, show
from pipeline.errors import UserError, guard
from pipeline.metadata import choose, read_rows, require_ours, scan_rows, write_merged


@dataclass(frozen=True)
class Config:
    """What to merge."""

    data: str = ""
    """dataset folder"""


def main() -> int | None:
    """Run the program; see the module docstring."""
    config, call = parse(Config, __doc__)
    if call.dry_run:
        show(config)
        return None
    if not config.data:
        raise UserError("--data: no folder given; name the dataset folder to merge")
    folder = Path(config.data)
    scan = scan_rows(folder)
    require_ours(folder, scan)
    broken = [fault for fault in scan.faults if fault.kind != "torn"]
    if broken:
        raise UserError(
            f"{broken[0]} ({len(broken)} such rows); run pipeline/verify.py --data {folder} "
            "--repair first"
        )
    if not scan.rows:
        raise UserError(f"{folder}: its metadata holds no row; run the stage that writes it")
    read_rows(folder)  # refuses what would lose a sample: one id for two images
    rows = [choose(found) for found in scan.rows.values()]
    num_parts = write_merged(folder, rows, scan.sizes)
    print(f"{folder}: {len(rows)} rows in metadata.jsonl, {num_parts} other files merged into it")
    return None


if __name__ == "__main__":
    guard(main)
