"""Put the rows of all processes into one metadata.jsonl, in id order.

    python pipeline/merge.py --data runs/generated
    python pipeline/merge.py --data runs/generated --parts runs/part-0 runs/part-1 --n 50000
    python pipeline/merge.py --data s3://bucket/set --n 50000

Each process of a run appends to its own metadata file. Readers read all of them, so merging is
optional; one sorted file is easier to read, publish and compare. Of several rows of one sample, the
valid one is kept. An incomplete last line, as a killed process leaves it, is dropped; other invalid
lines stop the program (see pipeline/verify.py). The program stops with an error while a run writes
to the folder; the run can be continued afterwards. The same command continues after a kill.

`--parts` brings the folders of static shards (`generation/run.py --shard i/n`), which other
machines wrote, into one; their files become hard links or copies. Samples that marks.json of a
part excludes stay excluded. A set behind an address keeps its tar shards; their rows go into one
metadata.jsonl there. With `--n` missing samples are named, and the exit code is 3 if there are any.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if sys.path and sys.path[0] == str(Path(__file__).resolve().parent):  # see CONTRIBUTING.md
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from pipeline.config import parse, show
from pipeline.errors import EXIT_INCOMPLETE, UserError, guard
from pipeline.metadata import choose, read_rows, require_ours, scan_rows, write_merged
from pipeline.parts import join_parts
from pipeline.remote_files import local_path, open_store
from pipeline.rows import is_ok, sample_id
from pipeline.setting_checks import require_between
from pipeline.tar_set import merge_tar_set

MAX_SAMPLES = 10**9
SHOWN = 8


@dataclass(frozen=True)
class Config:
    """What to merge."""

    data: str = ""
    """dataset folder, or the address of a set of tar shards"""
    parts: tuple[str, ...] = ()
    """dataset folders of static shards of the same run, to be brought into `data`"""
    n: int = 0
    """size the finished set should have; 0 does not look for missing samples"""


def main() -> int | None:
    """Run the program; see the module docstring."""
    config, call = parse(Config, __doc__)
    require_between(config, 0, MAX_SAMPLES, "n")
    if call.dry_run:
        show(config)
        return None
    if not config.data:
        raise UserError("--data: no folder given; name the dataset folder to merge")
    if not local_path(config.data):
        if config.parts:
            raise UserError("--parts: are folders for a folder; leave them out for an address")
        rows = merge_tar_set(open_store(config.data))
        print(f"{config.data}: {len(rows)} rows in metadata.jsonl")
        return report_missing(config, rows)
    folder = Path(config.data)
    if config.parts:
        join_parts(folder, [Path(part) for part in config.parts])
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
    return report_missing(config, rows)


def report_missing(config: Config, rows: Sequence[dict[str, Any]]) -> int | None:
    """Name the samples below `n` that are not finished; return the exit code."""
    finished = {row["id"] for row in rows if is_ok(row)}
    missing = [index for index in range(config.n) if sample_id(index) not in finished]
    if not missing:
        return None
    shown = ", ".join(map(sample_id, missing[:SHOWN]))
    more = f" and {len(missing) - SHOWN} more" if len(missing) > SHOWN else ""
    print(
        f"streetforge: {config.data}: {len(missing)} of {config.n} samples are missing "
        f"({shown}{more}); repeat the command that makes their shards",
        file=sys.stderr,
    )
    return EXIT_INCOMPLETE


if __name__ == "__main__":
    guard(main)
