"""Find every damaged, missing or swapped file of a dataset folder, one line per problem.

    python pipeline/verify.py --data runs/generated
    python pipeline/verify.py --data runs/generated --n 50000 --repair
    python pipeline/verify.py --data runs/generated --ray ADDRESS      # files are read by a cluster

Checks every row against its own hash, and every file against its row: presence, SHA-256, size,
class ids, same stem. Finds invalid, incomplete and repeated rows, rows of another run, missing
ids, unfinished samples, files without a row, and damage to run.json and classes.json. Works for
real, converted and generated folders. If images are kept elsewhere, it finds later changes of them.

`--repair` sets the status of bad samples to `withdrawn` and writes all rows into one
metadata.jsonl. It deletes no image or label, and keeps the original rows in `replaced/`. It
withdraws a sample only for damage to its own row or files, and changes only dataset folders that
these programs wrote. The command that wrote the folder then makes the withdrawn samples again, and
no others. Exit codes: 0 no problem, 2 bad input, 3 problems remain.
"""

import os
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

if sys.path and sys.path[0] == str(Path(__file__).resolve().parent):  # see CONTRIBUTING.md
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from pipeline import files, labels
from pipeline.claims import require_idle
from pipeline.config import digest, parse, show
from pipeline.errors import EXIT_INCOMPLETE, UserError, guard
from pipeline.metadata import Fault, Scan, choose, require_ours, scan_rows, write_merged
from pipeline.ray_cluster import Demand, check_demand
from pipeline.reading import read_json
from pipeline.rows import KINDS, is_ok, sample_id, seal
from pipeline.sample_checks import Checker, check_samples, check_samples_on_ray
from pipeline.setting_checks import require_between, require_positive

MAX_SAMPLES = 10**12
RESTORE = "restore it from a copy"


@dataclass(frozen=True)
class Config:
    """What to verify."""

    data: str = ""
    """dataset folder"""
    n: int = 0
    """size of the finished set; 0 takes it from the largest id"""
    threads: int = 4
    """files that a process reads at the same time"""
    ray: str = ""
    """address of a Ray cluster ('auto', host:port, ray://host:port), or 'local': one actor per CPU
    there reads the files; needs the extra `ray`, and the data at the same path on all nodes"""
    ray_workers: int = 0
    """actors on the Ray cluster; actors that do not fit wait for further nodes. 0 uses as many as
    fit"""
    repair: bool = False
    """withdraw the rows of bad samples, so that they are made again, and repair the metadata"""


def read_run_digest(folder: Path, scan: Scan) -> tuple[str, Iterator[Fault]]:
    """Return the digest of the folder's run, empty where nothing is known, and what is wrong.

    A run.json that is damaged, or that no row agrees with, says nothing about the rows.
    """
    path = folder / "run.json"
    try:
        record = read_json(path, dict)
    except UserError as error:
        problem = str(error).removeprefix(f"{path}: ").partition(";")[0]
        return "", iter([Fault(str(path), f"{problem}; {RESTORE}")])
    stated = record.get("digest")
    if not isinstance(record.get("config"), dict) or stated != digest(record["config"]):
        return "", iter([Fault(str(path), f"has been changed; {RESTORE}")])
    rows = [row for found in scan.rows.values() for row in found if is_ok(row)]
    of_rows = {row["digest"] for row in rows if row.get("digest")}
    if of_rows and stated not in of_rows:
        problem = f"is of another run than all rows ({stated}, not {min(of_rows)}); {RESTORE}"
        return "", iter([Fault(str(path), problem)])
    return stated, iter(())


def check_classes(folder: Path) -> Iterator[Fault]:
    """Yield the fault of classes.json."""
    path = folder / "classes.json"
    try:
        record = read_json(path, dict)
        names, palette = list(labels.CLASS_NAMES), labels.PALETTE.tolist()
        if (record.get("names"), record.get("palette")) != (names, palette):
            yield Fault(str(path), f"has been changed; {RESTORE}")
    except UserError as error:
        problem = str(error).removeprefix(f"{path}: ").partition(";")[0]
        yield Fault(str(path), f"{problem}; {RESTORE}")


def check_orphans(folder: Path, scan: Scan) -> Iterator[Fault]:
    """Yield files below images/ and labels/ that no finished sample names."""
    named = {
        row.get(f"{kind}_file_name")
        for rows in scan.rows.values()
        for row in rows
        if row.get("status") != "failed"
        for kind in KINDS
        if isinstance(row.get(f"{kind}_file_name"), str)
    }
    for top in ("images", "labels"):
        for current, _, names in os.walk(folder / top):
            for name in sorted(names):
                path = Path(current, name)
                if files.TEMPORARY_MARK not in name and str(path.relative_to(folder)) not in named:
                    message = "no row names it; run the command of the folder again, or remove it"
                    yield Fault(str(path), message)


def judge(scan: Scan, problems: dict[str, list[str]]) -> tuple[list[Fault], list[dict]]:
    """Return the faults of the samples and the rows that should stand, bad ones withdrawn."""
    faults, rows = [], []
    for key, found in sorted(scan.rows.items()):
        row, ok = choose(found), [row for row in found if is_ok(row)]
        verdicts = problems.get(key, [])
        if "" in verdicts:
            row = ok[verdicts.index("")]
            sound = [other for other, verdict in zip(ok, verdicts, strict=True) if not verdict]
            others = [r for r in sound if r["image_file_name"] != row["image_file_name"]]
            if others:  # samples of their own, which must not be lost
                message = "another sound row names another image; give each an id of its own"
                faults.append(Fault(f"sample {key}", message))
                rows += others
            elif len(ok) > 1:
                message = f"has {len(ok)} ok rows, one is enough"
                faults.append(Fault(f"sample {key}", message, "surplus"))
        elif verdicts:
            faults.append(Fault(f"sample {key}", verdicts[0]))
            row = {**row, "status": "withdrawn", "error": verdicts[0]}
            row = seal(row) if "row_sha256" in row else row
        else:
            faults.append(Fault(f"sample {key}", f"{row.get('status')}: {row.get('error')}"))
        rows.append(row)
    return faults, rows


def find_gaps(scan: Scan, n: int) -> Iterator[Fault]:
    """Yield the ranges of ids that have no row, where ids are numbers.

    They end at `n`, or at the largest id if it is 0, and begin at 0, or then at the smallest id.
    """
    numbers = sorted(int(key) for key in scan.rows if re.fullmatch("[0-9]{8,18}", key))
    if len(numbers) < len(scan.rows):
        return
    before = -1 if n or not numbers else numbers[0] - 1
    for number in [*numbers, *([n] if n or not numbers else [])]:
        first, last = before + 1, number - 1
        if first <= last:
            which = sample_id(first) + (f" to {sample_id(last)}" if last > first else "")
            yield Fault(f"sample {which}", "has no row; continue the run")
        before = max(before, number)
    if not numbers:
        yield Fault("metadata", "holds no row; run the stage that writes it")


def main() -> int | None:
    """Run the program; see the module docstring."""
    config, call = parse(Config, __doc__)
    require_positive(config, "threads")
    require_between(config, 0, MAX_SAMPLES, "n")
    demand = Demand(config.ray, config.ray_workers, gpu=False)
    check_demand(demand)
    if call.dry_run:
        show(config)
        return None
    if not config.data:
        raise UserError("--data: no folder given; name the dataset folder to verify")
    folder = Path(config.data)
    scan = scan_rows(folder)
    if config.repair:
        require_ours(folder, scan)
        require_idle(folder)
    run_digest, of_run = read_run_digest(folder, scan)
    checker = Checker(folder, scan, run_digest)
    problems = (
        check_samples_on_ray(checker, scan, config.threads, demand)
        if config.ray
        else check_samples(checker, scan, config.threads)
    )
    in_samples, rows = judge(scan, problems)
    faults = [*of_run, *check_classes(folder), *scan.faults, *in_samples]
    faults += [*find_gaps(scan, config.n), *check_orphans(folder, scan)]
    for fault in faults:
        print(fault)
    remaining = [fault for fault in faults if fault.kind == "lasting"]
    withdrawn = sum(bool(found) and "" not in found for found in problems.values())
    print(f"{folder}: {len(scan.rows)} samples, {len(faults)} problems")
    if not config.repair:
        return EXIT_INCOMPLETE if faults else None
    if withdrawn or len(remaining) < len(faults):
        write_merged(folder, rows, scan.sizes, keep=True)
        print(f"{folder}: the rows as they were are kept below {folder / 'replaced'}")
    print(
        f"{folder}: {withdrawn} samples withdrawn, {len(remaining)} problems remain; the command "
        "that made the folder makes missing samples again"
    )
    return EXIT_INCOMPLETE if remaining else None


if __name__ == "__main__":
    guard(main)
