"""Find every damaged, missing or swapped file of a dataset folder, one line per problem.

    python pipeline/verify.py --data runs/generated
    python pipeline/verify.py --data runs/generated --n 50000 --repair

Checks every row against its own hash, and every file against its row: presence, SHA-256, size,
class ids, same stem. Finds broken, torn and repeated rows, rows of another run, gaps, unfinished
samples, files without a row, and damage to run.json and classes.json. Works for real, converted
and generated folders; in pictures kept elsewhere it finds later changes.

`--repair` withdraws the rows of bad samples and writes all rows into one sound metadata.jsonl. It
deletes no picture or label. The command that made the folder then makes the withdrawn samples
again, and no others. Exit codes: 0 sound, 2 bad input, 3 problems remain.
"""

import io
import os
import re
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if sys.path and sys.path[0] == str(Path(__file__).resolve().parent):  # see CONTRIBUTING.md
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from PIL import Image  # noqa: E402

from pipeline import files, labels  # noqa: E402
from pipeline.config import digest, parse, require_positive, show  # noqa: E402
from pipeline.dataset import sample_id, seal  # noqa: E402
from pipeline.errors import EXIT_INCOMPLETE, UserError, guard  # noqa: E402
from pipeline.rows import (  # noqa: E402
    Fault,
    Scan,
    choose,
    is_ok,
    require_idle,
    scan_rows,
    write_merged,
)

KINDS = ("label", "image")


@dataclass(frozen=True)
class Config:
    """What to verify."""

    data: str = ""
    """dataset folder"""
    n: int = 0
    """size the finished set should have; 0 goes by the largest id"""
    threads: int = 4
    """files read at the same time"""
    repair: bool = False
    """withdraw the rows of bad samples, so that they are made again, and mend the metadata"""


def check_file(folder: Path, row: dict[str, Any], kind: str, owners: dict[str, str]) -> str:
    """Return what is wrong with the label or image of a row, empty if nothing is.

    `owners` says to which sample each hash belongs, to name the other one of a swap.
    """
    name, expected = row.get(f"{kind}_file_name"), row.get(f"{kind}_sha256")
    if not isinstance(name, str) or not isinstance(expected, str):
        return f"its row has no {kind}_file_name or {kind}_sha256"
    path = folder / name
    if not Path(name).is_absolute() and path.stem != row["id"]:
        return f"{name} is not the {kind} of this sample by its name"
    try:
        data = path.read_bytes()
    except (OSError, ValueError) as error:
        missing = isinstance(error, FileNotFoundError)
        return f"{name} {'is missing' if missing else f'cannot be read ({error})'}"
    found = files.sha256(data)
    if found != expected:
        owner = f", it is the {owners[found]}" if found in owners else ""
        return f"{name} differs from its {kind}_sha256{owner}"
    try:
        if kind == "label":
            size = labels.read_label(path).shape[::-1]
        else:
            with Image.open(io.BytesIO(data), formats=("PNG", "JPEG")) as image:
                size = image.size
    except (UserError, OSError, SyntaxError, ValueError) as error:
        return str(error).removeprefix(f"{folder}/")
    if size != (row.get("width"), row.get("height")):
        return f"{name} is {size[0]}x{size[1]}, its row says {row.get('width')}x{row.get('height')}"
    return ""


def check_row(folder: Path, row: dict[str, Any], run_digest: str, owners: dict[str, str]) -> str:
    """Return what is wrong with an `ok` row and its files, empty if nothing is."""
    problems = []
    if "digest" in row and row["digest"] != run_digest:
        problems.append(f"its row is of another run ({row['digest']}, not {run_digest})")
    unlabelled = "label_file_name" not in row and "label_sha256" not in row
    kinds = KINDS[1:] if unlabelled else KINDS
    problems += filter(None, (check_file(folder, row, kind, owners) for kind in kinds))
    return "; ".join(problems)


def check_records(folder: Path) -> Iterator[Fault]:
    """Yield the faults of run.json and classes.json."""
    for name in ("run.json", "classes.json"):
        try:
            record = files.read_json(folder / name)
            good = isinstance(record, dict) and (
                record.get("digest") == digest(record.get("config"))
                if name == "run.json"
                else record.get("names") == list(labels.CLASS_NAMES)
                and record.get("palette") == labels.PALETTE.tolist()
            )
            problem = "" if good else "has been changed; restore it from a copy"
        except (UserError, UnicodeDecodeError) as error:
            problem = f"{str(error).partition(': ')[2].partition(';')[0]}; restore it from a copy"
        if problem:
            yield Fault(str(folder / name), problem)


def check_orphans(folder: Path, scan: Scan) -> Iterator[Fault]:
    """Yield files below images/ and labels/ that no finished sample names."""
    named = {
        row.get(f"{kind}_file_name")
        for rows in scan.rows.values() for row in rows if row.get("status") != "failed"
        for kind in KINDS if isinstance(row.get(f"{kind}_file_name"), str)
    }  # fmt: skip
    for top in ("images", "labels"):
        for place, _, names in os.walk(folder / top):
            for name in sorted(names):
                path = Path(place, name)
                if files.TEMPORARY_MARK not in name and str(path.relative_to(folder)) not in named:
                    message = "no row names it; the run makes it anew, or remove it"
                    yield Fault(str(path), message)


def check_samples(folder: Path, scan: Scan, threads: int) -> dict[str, list[str]]:
    """Return the problem of each `ok` row, in the order of the rows, by id."""
    from tqdm import tqdm

    try:
        run_digest = files.read_json(folder / "run.json").get("digest", "")
    except (UserError, UnicodeDecodeError, AttributeError):
        run_digest = ""
    rows = [row for found in scan.rows.values() for row in found if is_ok(row)]
    owners = {str(row.get(f"{k}_sha256")): f"{k} of {row['id']}" for row in rows for k in KINDS}
    bare = {row["id"] for row in rows if "row_sha256" not in row}
    bare = bare if len(bare) < len(scan.rows) else set()
    labelled = any("label_file_name" in row for row in rows)

    def check(row: dict[str, Any]) -> str:
        problem = check_row(folder, row, run_digest, owners)
        if row["id"] in bare:
            return f"its row has no row_sha256, others have; {problem}".removesuffix("; ")
        if labelled and "label_file_name" not in row:
            return "its row has no label, others have"
        return problem

    problems: dict[str, list[str]] = {}
    pool = ThreadPoolExecutor(threads)
    try:
        bar = tqdm(pool.map(check, rows), "verify", len(rows), unit="row", disable=None)
        for row, problem in zip(rows, bar, strict=True):
            problems.setdefault(row["id"], []).append(problem)
    finally:
        pool.shutdown(cancel_futures=True)
    return problems


def judge(scan: Scan, problems: dict[str, list[str]]) -> tuple[list[Fault], list[dict]]:
    """Return the faults of the samples and the rows that should stand, bad ones withdrawn."""
    faults, rows = [], []
    for key, found in sorted(scan.rows.items()):
        row, ok = choose(found), [row for row in found if is_ok(row)]
        verdicts = problems.get(key, [])
        if "" in verdicts:
            row = ok[verdicts.index("")]
            if len(ok) > 1:
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
    if call.dry_run:
        show(config)
        return None
    if not config.data:
        raise UserError("--data: no folder given; name the dataset folder to verify")
    folder = Path(config.data)
    scan = scan_rows(folder)
    if config.repair:
        require_idle(folder)
    problems = check_samples(folder, scan, config.threads)
    in_samples, rows = judge(scan, problems)
    faults = [*check_records(folder), *scan.faults, *in_samples]
    faults += [*find_gaps(scan, config.n), *check_orphans(folder, scan)]
    for fault in faults:
        print(fault)
    remaining = [fault for fault in faults if fault.kind == "lasting"]
    withdrawn = sum(bool(found) and "" not in found for found in problems.values())
    print(f"{folder}: {len(scan.rows)} samples, {len(faults)} problems")
    if not config.repair:
        return EXIT_INCOMPLETE if faults else None
    if withdrawn or len(remaining) < len(faults):
        write_merged(folder, rows, scan.sizes)
    print(
        f"{folder}: {withdrawn} samples withdrawn, {len(remaining)} problems remain; the command "
        "that made the folder makes missing samples again"
    )
    return EXIT_INCOMPLETE if remaining else None


if __name__ == "__main__":
    guard(main)
