"""How far a run is, by the rows of all its processes: bar or plain lines, and status.json."""

import contextlib
import os
import sys
import threading
import time
from collections import deque
from datetime import timedelta
from pathlib import Path
from typing import Any

from tqdm import tqdm

from pipeline import files
from pipeline.claims import Claims
from pipeline.dataset import sample_id
from pipeline.errors import UserError
from pipeline.metadata import parse_row

STATUS_NAME = "status.json"
STATUS_S = 3.0  # at most one status file in this time, whoever writes it
LINE_S = 30.0
LINE_SHARE = 0.05
WINDOW_S = 300.0  # the rate is that of the last minutes


class Rows:
    """The rows of all processes of a folder, of which only new ones are read; safe in threads."""

    def __init__(self, folder: Path, n: int) -> None:
        self.folder, self.n = folder, n
        self.ok: set[int] = set()
        self.done = 0
        """Number of `ok` samples below `n`."""
        self.failed: dict[int, str] = {}
        """Reason by index, of samples that have no `ok` row."""
        self.tried: set[int] = set()
        """What failed since the last `forget`; it is not tried again."""
        self.digests: set[str] = set()
        """Which runs the rows are of."""
        self.last: dict[str, tuple[int, float]] = {}
        """Last index of each metadata file, and when it was seen here."""
        self._offsets: dict[str, int] = {}
        self._lock = threading.Lock()

    def update(self) -> None:
        """Read what was appended since the last time."""
        with self._lock:
            for name in os.listdir(self.folder) if self.folder.is_dir() else ():
                if name.startswith("metadata") and name.endswith(".jsonl"):
                    with contextlib.suppress(FileNotFoundError):  # listed before it can be opened
                        self._read(name)

    def _read(self, name: str) -> None:
        start = self._offsets.get(name, 0)
        handle = os.open(
            os.path.join(self.folder, name), os.O_RDONLY
        )  # not `stat`, which may be old on network file systems
        try:
            size = os.fstat(handle).st_size
            data = os.pread(handle, size - start, start) if size > start else b""
        finally:
            os.close(handle)
        whole = data[: data.rfind(b"\n") + 1]
        for line in whole.splitlines():
            self._add(name, line)
        self._offsets[name] = start + len(whole)

    def _add(self, name: str, line: bytes) -> None:
        try:
            row = parse_row(line)
            index, status = int(row["id"]), row["status"]
            if index < 0 or row["id"] != sample_id(index):
                raise ValueError("has an id that no sample of a run has")
        except (ValueError, KeyError, TypeError):
            if not line.strip():
                return
            text = line[:60].decode(errors="replace")
            raise UserError(
                f"{self.folder / name}: broken row {text!r}; remove that line, or mend the folder "
                "by pipeline/verify.py --repair"
            ) from None
        self.digests.add(str(row.get("digest")))
        if status == "ok":
            self.done += index < self.n and index not in self.ok
            self.ok.add(index)
            self.failed.pop(index, None)
        elif index not in self.ok:
            self.failed[index] = row.get("error", "")
            self.tried.add(index)
        self.last[name.removesuffix(".jsonl")] = index, time.monotonic()

    def forget(self) -> None:
        """Let what failed so far be tried again."""
        self.tried = set()

    def settled(self, index: int) -> bool:
        """Tell whether nothing is left to do for a sample."""
        return index in self.ok or index in self.tried

    def missing(self) -> list[int]:
        """Return the indices below `n` without an `ok` row, in order."""
        return [index for index in range(self.n) if index not in self.ok]

    def num_failed(self) -> int:
        """Return how many samples below `n` failed and were not made since."""
        return sum(index < self.n for index in self.failed)


class Progress:
    """Tells the user and other programs how far the whole run is.

    `show`: on stderr, as a bar if that is a terminal and as a line now and then if not.
    """

    def __init__(self, rows: Rows, claims: Claims, *, show: bool) -> None:
        self.rows, self.claims = rows, claims
        self._points = deque([(time.monotonic(), rows.done)])
        self._lined = self._points[0]
        terminal = sys.stderr.isatty()
        self._lines = show and not terminal
        self._bar = tqdm(
            total=rows.n,
            initial=rows.done,
            unit="sample",
            smoothing=0.05,
            dynamic_ncols=True,
            disable=not (show and terminal),
        )

    def update(self, *, last: bool = False) -> None:
        """Read new rows and show the state if it is time to, or if this is the `last` call."""
        self.rows.update()
        now, done = time.monotonic(), self.rows.done
        self._points.append((now, done))
        while len(self._points) > 2 and now - self._points[0][0] > WINDOW_S:
            self._points.popleft()
        self._bar.update(done - self._bar.n)
        since, more = now - self._lined[0], done - self._lined[1]
        due = since >= LINE_S or (more >= LINE_SHARE * self.rows.n and since >= 1)
        if self._lines and (due or (last and more)):
            self._lined = now, done
            print(f"streetforge: {self.line()}", file=sys.stderr, flush=True)
        path = self.rows.folder / STATUS_NAME
        with contextlib.suppress(OSError):  # a full disk shows at the next sample
            if last or not path.exists() or time.time() - path.stat().st_mtime >= STATUS_S:
                files.write_json(path, self.status())
        if last:
            self._bar.close()

    def rate(self) -> float:
        """Return samples per second of all processes together in the last minutes."""
        (start, first), (end, last) = self._points[0], self._points[-1]
        return (last - first) / (end - start) if end > start else 0.0

    def line(self) -> str:
        """Return the state in one line."""
        n, done, rate, failed = self.rows.n, self.rows.done, self.rate(), self.rows.num_failed()
        parts = [f"{done}/{n} samples ({100 * done / n:.1f} %)"]
        if failed:
            parts.append(f"{failed} failed")
        if rate and done < n:
            parts.append(f"{rate:.3g}/s" if rate >= 1 else f"{1 / rate:.3g} s each")
            parts.append(f"ETA {timedelta(seconds=round((n - done) / rate))}")
        return ", ".join(parts)

    def status(self) -> dict[str, Any]:
        """Return what status.json says."""
        missing, rate, now = self.rows.n - self.rows.done, self.rate(), time.monotonic()
        processes = []
        for name, holder in self.claims.living("metadata"):
            index, seen = self.rows.last.get(name, (None, now))
            processes.append(
                {
                    "host": holder.get("host"),
                    "pid": holder.get("pid"),
                    "metadata": f"{name}.jsonl",
                    "last_sample": index,
                    "seconds_since": round(now - seen, 1),
                }
            )
        return {
            "n": self.rows.n, "ok": self.rows.done, "missing": missing,
            "failed": self.rows.num_failed(), "samples_per_s": round(rate, 4),
            "eta_s": round(missing / rate, 1) if rate else None,
            "written_unix_s": round(time.time(), 1), "processes": processes,
        }  # fmt: skip
