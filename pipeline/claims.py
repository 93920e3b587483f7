"""Claims: which process makes which sample, as files in a folder that all processes share.

A claim is a file of a known name that only one process can create. It is a hard link to a file
that names the claiming process and whose modification time that process keeps fresh, so it is
complete from the first moment. The claim of a dead process (gone from this machine, or not heard of
for LEASE_S by the file server's clock) is moved aside, which only one process can do, and taken
again. Claims save work, nothing rests on them: a sample that two processes make has the same bytes.
"""

import contextlib
import json
import math
import os
import re
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline import files
from pipeline.errors import UserError
from pipeline.reading import parse_json, read_json

FOLDER = "claims"
BEAT_S = 20.0
LEASE_S = 180.0  # a claim so long untouched is dead: several beats of a generation process, and
# the minute for which network file systems may show old times
MOST_PIDS = 2**31
HUNG_S = 1800.0  # a process that takes nothing for so long stops beating


class Claims:
    """The claims of this process in `folder`; a context that beats, and releases all at its end."""

    def __init__(self, folder: Path, hung_s: float = HUNG_S) -> None:
        self.folder, self.hung_s = folder / FOLDER, hung_s
        self.held: set[str] = set()
        self.final: set[str] = set()
        """Claims that keep others from `name` beyond the end of this process; see `keep`."""
        self._me = {"host": socket.gethostname(), "host_id": files.host_id(), "pid": os.getpid()}
        self._me["id"] = uuid.uuid4().hex[:8]
        self._own = files.temporary_name(self.folder / "process")
        self._ending = threading.Event()
        self._active = time.monotonic()

    def __enter__(self) -> "Claims":
        self._register()
        threading.Thread(target=self._beat, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        if not self._ending.is_set():
            self.end(complete=False)

    def end(self, *, complete: bool) -> bool:
        """Release all claims; return True if no other process holds one, so that this is the last.

        The last one removes the claims of dead processes. If the set is `complete`, claims of
        processes that were not heard of for LEASE_S are removed too.
        """
        self._ending.set()
        for name in list(self.held):
            self.release(name)
        now = self._now()
        self._own.unlink(missing_ok=True)  # before it looks, so that of two one sees no other
        left = []
        for path in self.folder.glob("*"):
            unfinished = files.TEMPORARY_MARK in path.name and files.is_abandoned(path)
            if not (unfinished or self._is_dead(path, lease=complete, now=now)):
                return False
            left.append(path)
        for path in left:
            path.unlink(missing_ok=True)
        try:
            self.folder.rmdir()
        except OSError:  # others are still at work
            return False
        return True

    def _register(self) -> None:
        while True:
            self.folder.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(FileNotFoundError):  # another one has just ended the folder
                files.write_data(self._own, json.dumps(self._me).encode(), os.O_EXCL)
                return

    def _beat(self) -> None:
        while not self._ending.wait(BEAT_S):
            if time.monotonic() - self._active < self.hung_s:
                for path in (self._own, *(self.folder / name for name in list(self.held))):
                    with contextlib.suppress(OSError):
                        os.utime(path)

    def take(self, name: str) -> bool:
        """Claim `name` if nobody holds it."""
        self._active = time.monotonic()
        path = self.folder / name
        try:
            os.link(self._own, path)
        except FileExistsError:
            return False
        except FileNotFoundError:  # asleep for so long that others took this process for dead
            self._register()
            return self.take(name)
        except OSError as error:
            if error.errno in files.TRANSIENT:
                return False  # as if another process had it: it is tried again at the end
            if error.errno not in files.NO_LINKS:
                raise
            try:
                files.write_data(path, json.dumps(self._me).encode(), os.O_EXCL)
            except FileExistsError:
                return False
        self.held.add(name)
        return True

    def take_over(self, name: str, *, lease: bool = True) -> bool:
        """Claim `name` if nobody living holds it; without `lease` its death must be certain.

        Of several processes that want a dead one's claim, one at a time may look whether it is
        still there and replace it: the one that holds the claim on succeeding that holder.
        """
        path = self.folder / name
        if self.take(name):
            return True
        try:
            holder, _ = self._holder(path)
        except FileNotFoundError:  # just released
            return self.take(name)
        if not self._is_dead(path, lease=lease):
            return False
        turn = f"{name}-after-{holder.get('id', 'unknown')}"
        if not self.take_over(turn, lease=lease):
            return False
        try:
            won = self._holder(path)[0] == holder
            if won:
                self._replace(path, self._me)
                self.held.add(name)
        except FileNotFoundError:
            won = self.take(name)
        finally:
            self.release(turn)
        return won

    def take_number(self, prefix: str, first: int = 0, step: int = 1) -> int:
        """Claim the first free of `prefix`-first, `prefix`-first+step, ...; return its number."""
        number = first
        while not self.take_over(f"{prefix}-{number:03d}", lease=False):
            number += step
        return number

    def keep(self, name: str) -> None:
        """Let a claim stay until the last process ends, for what leaves a row and no file.

        Others that have not read the row yet find the claim, and read before they take it over.
        """
        self.final.add(name)

    def release(self, name: str) -> None:
        """Give up a claim, unless another process has taken it over."""
        self.held.discard(name)
        path = self.folder / name
        with contextlib.suppress(OSError):
            if self._holder(path)[0] != self._me:
                return
            if name in self.final:
                self._replace(path, {**self._me, "ended": True})
            else:
                path.unlink()

    @staticmethod
    def _replace(path: Path, holder: dict[str, Any]) -> None:
        fresh = files.temporary_name(path)
        files.write_data(fresh, json.dumps(holder).encode(), os.O_EXCL)
        os.replace(fresh, path)

    def living(self, prefix: str) -> list[tuple[str, dict[str, Any]]]:
        """Return name and holder of the claims of living processes that begin so."""
        found = []
        for path in sorted(self.folder.glob(f"{prefix}-*")):
            with contextlib.suppress(FileNotFoundError):
                if not self._is_dead(path):
                    found.append((path.name, self._holder(path)[0]))
        return found

    def others(self, prefix: str) -> list[dict[str, Any]]:
        """Return the holders of the claims of other living processes that begin so."""
        return [holder for name, holder in self.living(prefix) if name not in self.held]

    def _holder(self, path: Path) -> tuple[dict[str, Any], float]:
        """Return who made a claim and when it was last heard of."""
        with open(path, "rb") as handle:  # opening it asks the file server, `stat` may not
            data, changed = handle.read(), os.fstat(handle.fileno()).st_mtime
        try:
            holder = parse_json(data, dict)
        except ValueError:  # not yet written, without hard links
            return {}, changed
        return (holder if _is_sound(holder) else {}), changed

    def _is_dead(self, path: Path, *, lease: bool = True, now: float | None = None) -> bool:
        try:
            holder, changed = self._holder(path)
        except FileNotFoundError:
            return False
        if holder.get("ended") is True:
            return True
        if holder.get("host_id") == self._me["host_id"]:
            former = holder["pid"] == self._me["pid"] and holder != self._me  # its number is ours
            if former or not files.is_running(holder["pid"]):
                return True
        return lease and (self._now() if now is None else now) - changed > LEASE_S

    def _now(self) -> float:
        """Return the time by the file server's clock."""
        try:
            os.utime(self._own)
        except FileNotFoundError:
            self._register()
        return self._own.stat().st_mtime


def _is_sound(holder: dict[str, Any]) -> bool:
    """Tell whether a claim names a process; its id becomes part of a file name."""
    pid, key = holder.get("pid"), holder.get("id")
    named = type(pid) is int and 0 < pid < MOST_PIDS
    return named and isinstance(key, str) and re.fullmatch("[0-9a-f]{8}", key) is not None


def require_idle(folder: Path, place: Path | None = None) -> None:
    """Raise `UserError` while a process is known to write to `folder`.

    Its claims lie in `place`, None for the folder itself.
    """
    for path in sorted((place or folder).glob(f"{FOLDER}/*")):
        try:
            holder, age_s = read_json(path, dict), time.time() - path.stat().st_mtime
        except (OSError, UserError):
            continue
        pid, here = holder.get("pid"), holder.get("host_id") == files.host_id()
        if not isinstance(pid, int) or holder.get("ended") is True:
            continue
        if files.is_running(pid) if here else age_s < LEASE_S:
            raise UserError(
                f"{folder}: process {pid} on {holder.get('host')} is writing to it; wait "
                "for its end, or stop it"
            )


@contextlib.contextmanager
def sole_writer(folder: Path, *, beside: bool = False) -> Iterator[None]:
    """Be the only process that writes to `folder`, or raise `UserError`.

    For programs whose processes do not share their work by claims: a second one would append every
    row a second time. With `beside` the claim lies in FOLDER.writer: for a folder that is renamed,
    or sent as a whole.
    """
    place = folder.with_name(f"{folder.name}.writer") if beside else folder
    require_idle(folder, place)
    try:
        with Claims(place, hung_s=math.inf) as claims:
            if not claims.take_over("writer-000"):  # both have found the folder idle
                others = claims.others("writer") or [{}]
                raise UserError(
                    f"{folder}: process {others[0].get('pid')} on {others[0].get('host')} is "
                    "writing to it; wait for its end, or stop it"
                )
            yield
    finally:
        if beside:
            with contextlib.suppress(OSError):  # another process is at work there
                place.rmdir()
