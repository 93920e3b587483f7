"""How far a run is, by the rows of all its processes: bar or plain lines, and status.json."""

import contextlib
import sys
import time
from collections import deque
from datetime import timedelta
from typing import Any

from tqdm import tqdm

from pipeline import files
from pipeline.claims import Claims
from pipeline.metadata_index import MetadataIndex

STATUS_NAME = "status.json"
STATUS_S = 3.0  # at most one status file in this time, whoever writes it
LINE_S = 30.0
LINE_SHARE = 0.05
WINDOW_S = 300.0  # the rate is that of the last minutes


class Progress:
    """Tells the user and other programs how far the whole run is.

    `show`: on stderr, as a bar if that is a terminal and as a line now and then if not.
    """

    def __init__(self, rows: MetadataIndex, claims: Claims, *, show: bool) -> None:
        self.rows, self.claims = rows, claims
        self._points = deque([(time.monotonic(), rows.done)])
        self._lined = self._points[0]
        terminal = sys.stderr.isatty()
        self._lines = show and not terminal
        self._bar = tqdm(
            total=len(rows.wanted),
            initial=rows.done,
            unit="sample",
            smoothing=0.05,
            dynamic_ncols=True,
            disable=not (show and terminal),
        )

    def update(self, *, last: bool = False) -> None:
        """Read new rows and show the state if it is time to, or if this is the `last` call."""
        self.rows.update(may_wait=not last)
        now, done = time.monotonic(), self.rows.done
        self._points.append((now, done))
        while len(self._points) > 2 and now - self._points[0][0] > WINDOW_S:
            self._points.popleft()
        self._bar.update(done - self._bar.n)
        since, more = now - self._lined[0], done - self._lined[1]
        due = since >= LINE_S or (more >= LINE_SHARE * len(self.rows.wanted) and since >= 1)
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
        n, done = len(self.rows.wanted), self.rows.done
        rate, failed = self.rate(), self.rows.num_failed()
        parts = [f"{done}/{n} samples ({100 * done / n:.1f} %)"]
        if failed:
            parts.append(f"{failed} failed")
        if rate and done < n:
            parts.append(f"{rate:.3g}/s" if rate >= 1 else f"{1 / rate:.3g} s each")
            parts.append(f"ETA {timedelta(seconds=round((n - done) / rate))}")
        return ", ".join(parts)

    def status(self) -> dict[str, Any]:
        """Return what status.json says."""
        missing, rate, now = len(self.rows.wanted) - self.rows.done, self.rate(), time.monotonic()
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
            "n": len(self.rows.wanted), "ok": self.rows.done, "missing": missing,
            "failed": self.rows.num_failed(), "samples_per_s": round(rate, 4),
            "eta_s": round(missing / rate, 1) if rate else None,
            "written_unix_s": round(time.time(), 1), "processes": processes,
        }  # fmt: skip
