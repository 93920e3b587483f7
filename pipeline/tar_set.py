"""A generated set behind an address: tar shards with fixed numbers, counted when their rows exist.

    s3://bucket/set/run.json                  which run this is
    s3://bucket/set/shards/000012.tar         samples 3000 to 3249, in the layout of webdataset
    s3://bucket/set/rows/000012-00250.jsonl   their rows, written last; 250 of them are finished
    s3://bucket/set/metadata.jsonl            the rows of all shards, by pipeline/merge.py

Object stores have no rename and no append, but an object appears when it is whole. So the rows of
a shard are one object, written after the tar file that they name. A worker that is killed leaves at
most a tar file that no row names. A shard with fewer finished samples than wanted (a sample failed,
the worker was stopped, `n` grew) is completed: its samples are taken over from the old tar file. A
tar file that rows name is never replaced: one with a part of its samples, or more than before, is
called `shards/000012-<digest of its samples>.tar`.
"""

import contextlib
import json
import re
import tarfile
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline import files, labels
from pipeline.config import differences, digest
from pipeline.dataset_writer import EncodedSample
from pipeline.errors import UserError
from pipeline.reading import parse_json
from pipeline.remote_files import Store
from pipeline.rows import encode_row, is_ok, parse_row, seal
from pipeline.tar_members import add_member, find_member, member_name

ROWS_NAME = re.compile(r"rows/(\d{6})-(\d{5})\.jsonl")
MAX_SHARD_SAMPLES = 99_999
NOT_IN_TAR = (
    "id", "status", "error", "image_file_name", "label_file_name", "row_sha256", "seconds",
    "generated_at",
)  # fmt: skip
THREADS = 8


@dataclass(frozen=True)
class Shard:
    """A tar file: the samples that it shall hold, and the rows of those that it holds already."""

    number: int
    wanted: range
    kept: tuple[dict[str, Any], ...] = ()
    kept_count: int | None = None
    """Finished samples of its present rows; None without rows."""

    @property
    def missing(self) -> list[int]:
        """The indices that are not finished yet."""
        finished = {int(row["id"]) for row in self.kept}
        return [index for index in self.wanted if index not in finished]


class TarSet:
    """The set of one run behind an address; `size` is the number of samples of a tar file."""

    def __init__(
        self,
        store: Store,
        identity: Mapping[str, Any],
        size: int,
        provenance: Mapping[str, Any] | None = None,
    ) -> None:
        self.store, self.identity, self.size = store, dict(identity), size
        self.provenance = {**(provenance or {}), "shard_samples": size}
        self.digest = digest(self.identity)
        self._is_open = False

    def refuse_other(self) -> None:
        """Raise `UserError` if something else than this run lies behind the address."""
        sizes = self.store.sizes()
        if "run.json" not in sizes:
            if sizes:
                raise UserError(
                    f"{self.store.address}: holds {min(sizes)} and has no run.json; choose another "
                    "--output"
                )
            return
        record = read_record(self.store)
        lines = differences(record["config"], self.identity)
        if (size := record.get("shard_samples")) != self.size:
            lines.append(f"shard_samples: {size} -> {self.size}")
        if lines:
            raise UserError(
                f"{self.store.address}: holds another run ({'; '.join(lines[:6])}); choose "
                "another --output, or repeat the command that began it"
            )

    def unfinished(self, n: int, first: int = 0, step: int = 1) -> list[Shard]:
        """Return the shards first, first + step, ... of a set of `n` samples that lack samples."""
        found = committed(self.store)
        shards = []
        for number in range(first, -(-n // self.size), step):
            wanted = range(number * self.size, min(n, (number + 1) * self.size))
            count = found.get(number)
            if count is None:
                shards.append(Shard(number, wanted))
            elif count < len(wanted):
                rows = filter(is_ok, read_shard_rows(self.store, number, count))
                shards.append(Shard(number, wanted, tuple(rows), count))
        return shards

    def commit(self, shard: Shard, samples: Sequence[EncodedSample]) -> int:
        """Write a tar file and then its rows; return how many samples of the shard are finished."""
        if not self._is_open:
            self._begin()
        everything = [*self._taken_over(shard), *samples]
        everything.sort(key=lambda sample: sample.row["id"])
        old_names = tar_names(shard.kept)
        name = self._tar_name(shard, everything, old_names)
        with tempfile.TemporaryDirectory() as scratch:
            path = Path(scratch) / "content"
            with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as archive:
                rows = [add_sample(archive, sample, name) for sample in everything]
            self.store.upload(path, name)
        count = sum(map(is_ok, rows))
        lines = "".join(encode_row(seal(row)) for row in rows)
        self.store.write(rows_name(shard.number, count), lines.encode())
        if shard.kept_count is not None and shard.kept_count < count:
            self._remove(rows_name(shard.number, shard.kept_count))
        for old_name in old_names - {name}:
            self._remove(old_name)
        return count

    @staticmethod
    def _tar_name(shard: Shard, samples: Sequence[EncodedSample], old_names: set[str]) -> str:
        """Return the name of a tar file that replaces none which rows may name.

        Another worker may be at the same shard, or this one killed before it writes the rows. So a
        part of a shard, and what grows from a whole one, has a digest of its samples in its name.
        """
        name = f"shards/{shard.number:06d}.tar"
        finished = [sample.row for sample in samples if is_ok(sample.row)]
        if len(finished) == len(shard.wanted) and name not in old_names:
            return name
        hashes = [[row["id"], row["image_sha256"], row["label_sha256"]] for row in finished]
        return f"shards/{shard.number:06d}-{files.sha256(json.dumps(hashes).encode())[:12]}.tar"

    def _begin(self) -> None:
        """Write run.json and classes.json, unless another worker of this run has.

        The mark of the run comes first: a worker that begins meanwhile refuses a set without it.
        """
        record = {**self.provenance, "config": self.identity, "digest": self.digest}
        there = self.store.sizes()
        for name, content in (("run.json", record), ("classes.json", labels.classes_record())):
            if name not in there:
                self.store.write(name, files.json_bytes(content))
        self.refuse_other()  # of two runs that begin together one has written last
        self._is_open = True

    def _taken_over(self, shard: Shard) -> list[EncodedSample]:
        """Return the finished samples of a shard's old tar file."""
        samples = []
        for row in shard.kept:
            contents = []
            for kind in ("label", "image"):
                if (member := find_member(row.get(f"{kind}_file_name") or "")) is None:
                    continue
                data = self.store.read(member.shard, member.start, member.num_bytes)
                if files.sha256(data) != row.get(f"{kind}_sha256"):
                    raise UserError(
                        f"{self.store.address}: sample {row['id']} in {member.shard} differs from "
                        f"its {kind}_sha256; remove that tar file and its rows, and repeat the "
                        "command"
                    )
                contents.append((f"{kind}s/{row['id']}.png", data))
            samples.append(EncodedSample(tuple(contents), row))
        return samples

    def _remove(self, name: str) -> None:
        """Remove an object, which another worker may have removed already."""

        def remove() -> None:
            with contextlib.suppress(FileNotFoundError):
                self.store.system.rm_file(self.store.path(name))

        self.store.call("removed", remove)


def rows_name(number: int, count: int) -> str:
    """Return the name of the rows of a shard with `count` finished samples."""
    return f"rows/{number:06d}-{count:05d}.jsonl"


def tar_names(rows: Iterable[Mapping[str, Any]]) -> set[str]:
    """Return the tar files that rows name."""
    members = (find_member(row.get("image_file_name") or "") for row in rows)
    return {member.shard for member in members if member}


def add_sample(archive: tarfile.TarFile, sample: EncodedSample, shard: str) -> dict[str, Any]:
    """Append the files of a sample as webdataset reads them; return its row, which names them."""
    row, key = dict(sample.row), sample.row["id"]
    for name, data in sample.contents:
        kind = name.partition("s/")[0]
        start = add_member(archive, f"{key}.{kind}.png", data)
        row[f"{kind}_file_name"] = member_name(shard, start, len(data), f"{key}.png")
    if sample.contents:
        known = {k: v for k, v in row.items() if k not in NOT_IN_TAR}
        add_member(archive, f"{key}.json", json.dumps(known, sort_keys=True).encode())
    return row


def committed(store: Store) -> dict[int, int]:
    """Return how many samples of each shard are finished, by number; one listing, no reading."""
    found: dict[int, int] = {}
    for match in filter(None, map(ROWS_NAME.fullmatch, store.sizes())):
        number, count = int(match[1]), int(match[2])
        found[number] = max(count, found.get(number, 0))
    return found


def read_shard_rows(store: Store, number: int, count: int) -> list[dict[str, Any]]:
    """Return the rows of a shard of `count` finished samples."""
    name = rows_name(number, count)
    try:
        rows = [parse_row(line) for line in store.read(name).splitlines()]
        for row in rows:
            if not re.fullmatch("[0-9]{8,12}", row["id"]):
                raise ValueError(f"has an id that no sample of a run has, {row['id']}")
    except ValueError as error:
        raise UserError(
            f"{store.address}/{name}: holds a broken row, it {error}; remove this object and "
            "repeat the command that made the set"
        ) from None
    return rows


def read_all_rows(store: Store) -> Iterator[dict[str, Any]]:
    """Yield the rows of all shards, in the order of their numbers."""
    shards = sorted(committed(store).items())
    with ThreadPoolExecutor(THREADS) as pool:
        for rows in pool.map(lambda shard: read_shard_rows(store, *shard), shards):
            yield from rows


def merge_tar_set(store: Store) -> list[dict[str, Any]]:
    """Write the rows of all shards to the set's metadata.jsonl, in id order; return them.

    Programs then read the set like a dataset folder.
    """
    read_record(store)
    rows = list(read_all_rows(store))
    if not rows:
        raise UserError(f"{store.address}: holds no row; run the stage that writes it")
    store.write("metadata.jsonl", "".join(map(encode_row, rows)).encode())
    return rows


def read_record(store: Store) -> dict[str, Any]:
    """Return the content of a set's run.json."""
    try:
        record = parse_json(store.read("run.json"), dict)
    except ValueError as error:
        record = {"error": str(error)}
    if not isinstance(record.get("config"), dict):
        raise UserError(f"{store.address}/run.json: is damaged; restore it, or choose another set")
    return record
