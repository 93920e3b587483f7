"""What is wrong with the `ok` rows of a dataset folder and with their files.

Files are read by the threads of this process, or by actors on a Ray cluster.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from pipeline import files, images, labels, parallel
from pipeline.errors import UserError
from pipeline.metadata import Scan
from pipeline.paths import Enclosure
from pipeline.ray_cluster import Actor, Demand, Job, run_jobs
from pipeline.rows import KINDS, is_ok

CHUNK = 200  # rows that an actor is given at once


class Checker:
    """Tells what is wrong with the `ok` rows of one folder and with their files.

    `run_digest` is that of the folder's run, empty where it is not known.
    """

    def __init__(self, folder: Path, scan: Scan, run_digest: str) -> None:
        self.folder, self.run_digest = folder, run_digest
        self.enclosure = Enclosure(folder)
        rows = ok_rows(scan)
        self.owners = {
            str(row.get(f"{k}_sha256")): f"{k} of {row['id']}" for row in rows for k in KINDS
        }
        """to which sample each hash belongs, to name the other one of a swap"""
        self.labelled = any(row.get("label_file_name") for row in rows)
        bare = {row["id"] for row in rows if "row_sha256" not in row}
        sealed = any("row_sha256" in row for found in scan.rows.values() for row in found)
        self.bare = bare if sealed else set()
        """ids of rows without a hash of their own, where others have one"""

    def check(self, row: dict[str, Any]) -> str:
        """Return what is wrong with a row beside the others, empty if nothing is."""
        problem = self.check_row(row)
        if row["id"] in self.bare:
            return f"its row has no row_sha256, others have; {problem}".removesuffix("; ")
        if self.labelled and not row.get("label_file_name"):
            return "its row has no label, others have"
        return problem

    def check_file(self, row: dict[str, Any], kind: str) -> str:
        """Return what is wrong with the label or image of a row, empty if nothing is."""
        name, expected = row[f"{kind}_file_name"], row.get(f"{kind}_sha256")
        path = self.folder / name
        if "row_sha256" in row and path.stem != row["id"]:
            return f"{name} is not the {kind} of this sample by its name"
        try:
            self.enclosure.find(name)
            data = images.read_file(path)
        except UserError as error:
            return f"{name} {str(error).removeprefix(f'{path}: ')}"
        found = files.sha256(data)
        if expected is not None and found != expected:
            owner = f", it is the {self.owners[found]}" if found in self.owners else ""
            return f"{name} differs from its {kind}_sha256{owner}"
        try:
            if kind == "label":
                size = labels.decode_label(data, path).shape[::-1]
            elif expected is None:  # nothing but its pixels tells whether it is whole
                size = images.decode_image(data, path).shape[1::-1]
            else:
                size = images.size_of(data, path)
        except UserError as error:
            return str(error).removeprefix(f"{self.folder}/")
        stated = row.get("width"), row.get("height")
        if None not in stated and size != stated:
            return f"{name} is {size[0]}x{size[1]}, its row says {stated[0]}x{stated[1]}"
        return ""

    def check_row(self, row: dict[str, Any]) -> str:
        """Return what is wrong with an `ok` row and its files, empty if nothing is."""
        problems = []
        stated = row.get("digest") or self.run_digest
        if self.run_digest and stated != self.run_digest:
            problems.append(f"its row is of another run ({stated}, not {self.run_digest})")
        kinds = [kind for kind in KINDS if row.get(f"{kind}_file_name")]
        problems += filter(None, (self.check_file(row, kind) for kind in kinds))
        return "; ".join(problems)


def ok_rows(scan: Scan) -> list[dict[str, Any]]:
    """Return the rows with the status `ok`, in their order."""
    return [row for found in scan.rows.values() for row in found if is_ok(row)]


def check_samples(checker: Checker, scan: Scan, threads: int) -> dict[str, list[str]]:
    """Return what is wrong with each `ok` row, in the order of the rows, by id."""
    rows = ok_rows(scan)
    with parallel.thread_pool(threads) as pool:
        found = pool.map(checker.check, rows)
        bar = tqdm(found, "verify", len(rows), unit="row", disable=None)
        return _by_id(rows, list(bar))


class Reader(Actor):
    """The actor: checks rows with threads of its own."""

    def __init__(self, checker: Checker, threads: int) -> None:
        self.checker, self.threads = checker, threads

    def check(self, rows: Sequence[dict[str, Any]]) -> list[str]:
        """Return what is wrong with each row."""
        with parallel.thread_pool(self.threads) as pool:
            return list(pool.map(self.checker.check, rows))


def check_samples_on_ray(
    checker: Checker, scan: Scan, threads: int, demand: Demand
) -> dict[str, list[str]]:
    """Return what `check_samples` does, found by actors; raises `SystemExit` on a stop signal."""
    rows = ok_rows(scan)
    chunks = [rows[first : first + CHUNK] for first in range(0, len(rows), CHUNK)]
    jobs = [Job(number, len(chunk), (chunk,)) for number, chunk in enumerate(chunks)]
    found: dict[int, list[str]] = {}
    with tqdm(total=len(rows), desc="verify", unit="row", disable=None) as bar:

        def commit(job: Job, problems: list[str]) -> None:
            found[job.key] = problems
            bar.update(len(problems))

        if stop_code := run_jobs(demand, Reader, (checker, threads), "check", jobs, commit):
            raise SystemExit(stop_code)
    return _by_id(rows, [problem for number in range(len(chunks)) for problem in found[number]])


def _by_id(rows: Sequence[dict[str, Any]], problems: Sequence[str]) -> dict[str, list[str]]:
    named: dict[str, list[str]] = {}
    for row, problem in zip(rows, problems, strict=True):
        named.setdefault(row["id"], []).append(problem)
    return named
