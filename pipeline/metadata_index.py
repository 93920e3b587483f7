"""The incremental view of metadata files: the rows that the processes of a run append."""

import contextlib
import math
import os
import threading
import time
from collections.abc import Collection, Iterable
from pathlib import Path

from pipeline.errors import UserError
from pipeline.metadata import remedy
from pipeline.rows import is_ok, parse_row, sample_id

FEW_FILES = 8  # those of one machine, cheap to read after each sample
FILE_INTERVAL_S = 0.5  # between two readings, for each metadata file of a larger run


def reading_interval_s(num_files: int) -> float:
    """Return the seconds after which the rows of so many metadata files are worth reading again."""
    return 0.0 if num_files <= FEW_FILES else FILE_INTERVAL_S * num_files


class MetadataIndex:
    """The rows of all processes of a folder, of which only new ones are read; safe in threads."""

    def __init__(
        self,
        folder: Path,
        n: int,
        part: tuple[int, int] = (0, 1),
        chosen: Iterable[int] | None = None,
    ) -> None:
        """Follow the set of `n` samples; of `part` (i, k) the samples i, i + k, ... are wanted.

        Of these, only those that are `chosen`, unless that is None.
        """
        self.folder, self.n, self.part = folder, n, part
        self.wanted: Collection[int] = range(part[0], n, part[1])
        if chosen is not None:
            self.wanted = dict.fromkeys(i for i in sorted(chosen) if i in self.wanted)
        self.ok: set[int] = set()
        self.done = 0
        """Number of `ok` samples among the wanted ones."""
        self.failed: dict[int, str] = {}
        """Reason by index, of samples that have no `ok` row."""
        self.tried: set[int] = set()
        """What failed since the last `retry_failed`; it is not tried again."""
        self.digests: set[str] = set()
        """Which runs the rows are of."""
        self.last: dict[str, tuple[int, float]] = {}
        """Last index of each metadata file, and when it was seen here."""
        self._offsets: dict[str, int] = {}
        self._read_at = -math.inf
        self._lock = threading.Lock()

    @property
    def num_files(self) -> int:
        """The number of metadata files that were found."""
        return len(self._offsets)

    def update(self, *, may_wait: bool = False) -> bool:
        """Read what was appended since the last time; tell whether it was read.

        With `may_wait` nothing is read until it is time to: each of k workers opens k files, so
        that the time between two readings grows with k (`reading_interval_s`).
        """
        with self._lock:
            now = time.monotonic()
            if may_wait and now - self._read_at < reading_interval_s(self.num_files):
                return False
            self._read_at = now
            for name in os.listdir(self.folder) if self.folder.is_dir() else ():
                if name.startswith("metadata") and name.endswith(".jsonl"):
                    with contextlib.suppress(FileNotFoundError):  # listed before it can be opened
                        self._read(name)
        return True

    def _read(self, name: str) -> None:
        start = self._offsets.get(name, 0)
        # Opened, as `stat` alone may tell an old size on network file systems
        handle = os.open(os.path.join(self.folder, name), os.O_RDONLY)
        try:
            size = os.fstat(handle).st_size
            data = os.pread(handle, size - start, start) if size > start else b""
        finally:
            os.close(handle)
        whole = data[: data.rfind(b"\n") + 1]
        for line in whole.split(b"\n"):
            if line.strip():
                self._add(name, line)
        self._offsets[name] = start + len(whole)

    def _add(self, name: str, line: bytes) -> None:
        try:
            row = parse_row(line)
            if not row["id"].isdecimal() or row["id"] != sample_id(int(row["id"])):
                raise ValueError("has an id that no sample of a run has")
        except ValueError as error:
            text = line[:60].decode(errors="replace")
            raise UserError(
                f"{self.folder / name}: broken row {text!r}, it {error}; {remedy(self.folder)}"
            ) from None
        index = int(row["id"])
        self.digests.add(str(row.get("digest")))
        if is_ok(row):
            self.done += index in self.wanted and index not in self.ok
            self.ok.add(index)
            self.failed.pop(index, None)
        elif index not in self.ok:
            self.failed[index] = row.get("error", "")
            self.tried.add(index)
        self.last[name.removesuffix(".jsonl")] = index, time.monotonic()

    def retry_failed(self) -> None:
        """Let what failed so far be tried again."""
        self.tried = set()

    def is_done(self, index: int) -> bool:
        """Tell whether nothing is left to do for a sample: it is finished, or failed just now."""
        return index in self.ok or index in self.tried

    def missing(self) -> list[int]:
        """Return the wanted indices without an `ok` row, in order."""
        return [index for index in self.wanted if index not in self.ok]

    def num_failed(self) -> int:
        """Return how many wanted samples failed and were not made since."""
        return sum(index in self.wanted for index in self.failed)
