"""Fetch a file over HTTP: continued, checked; whole or absent under its final name.

Each process writes a temporary file of its own and takes over what a stopped one left by renaming
it, which only one process can do: nothing rests on a lock.
"""

import contextlib
import glob
import hashlib
import os
import re
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline import files
from pipeline.errors import UserError

CHUNK_BYTES = 1 << 18
NUM_ATTEMPTS = 5  # without progress


@dataclass(frozen=True)
class RemoteFile:
    """A file on a server and what is known of it; empty or 0 is not known."""

    name: str = ""
    address: str = ""
    file_id: str = ""
    sha256: str = ""
    md5: str = ""
    bytes: int = 0
    holds: str = ""

    @property
    def has_hash(self) -> bool:
        """Whether its content can be checked."""
        return bool(self.sha256 or self.md5)

    @property
    def remedy(self) -> str:
        """What a user can do if the server does not give the file."""
        return "save the file with a browser and give it by --archive"


class _Interrupted(Exception):
    """The transfer broke in a way that may pass."""


class _Restarted(_Interrupted):
    """What we had cannot be continued; the next attempt asks for all of the file."""


def verify(path: Path, file: RemoteFile, name: str) -> str:
    """Compare length and hash of `path`, called `name`, with what is known; return its SHA-256."""
    found: dict[str, object] = {"bytes": path.stat().st_size}
    for kind in ("sha256", "md5") if file.md5 else ("sha256",):
        with open(path, "rb") as handle:
            found[kind] = hashlib.file_digest(handle, kind).hexdigest()
    for kind, value in found.items():
        expected = getattr(file, kind)
        expected = expected.lower() if isinstance(expected, str) else expected  # as some tools
        if expected and value != expected:
            raise UserError(
                f"{name}: has {kind} {value}, but {expected} is expected; it is cut, damaged or "
                "another version: delete it and get it again"
            )
    return str(found["sha256"])


def fetch(file: RemoteFile, path: Path, *, timeout_s: float = 60.0, wait_s: float = 1.0) -> None:
    """Bring `file` to `path`; `wait_s` is the first pause between two attempts."""
    import requests
    import urllib3

    path.parent.mkdir(parents=True, exist_ok=True)
    headers = {"Accept-Encoding": "identity", "User-Agent": "streetforge"}
    known: dict[str, str] = {}
    num_failures = num_restarts = 0
    with _own_copy(path, file.has_hash) as own:
        while True:
            before = _size(own)
            try:
                _attempt(file, own, headers, known, timeout_s)
                break
            except _Interrupted as error:
                reason = str(error)
                num_restarts += isinstance(error, _Restarted)
            except (requests.RequestException, urllib3.exceptions.HTTPError, ValueError) as error:
                reason = type(error).__name__  # its text can hold a signed address
                if isinstance(error, ValueError):  # the address itself is wrong, for good
                    num_failures = NUM_ATTEMPTS - 1
            num_failures = 0 if _size(own) > before else num_failures + 1
            if NUM_ATTEMPTS in (num_failures, num_restarts):
                raise UserError(
                    f"{file.address}: {reason}; run the same command again later, or {file.remedy}"
                )
            time.sleep(wait_s * 2**num_failures)
        try:
            verify(own, file, file.address)
        except UserError:
            own.unlink()  # continuing wrong bytes would never end well
            raise
        with open(own, "rb+") as handle:
            os.fsync(handle.fileno())
        os.replace(own, path)
        files.fsync_folder(path.parent)


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


@contextlib.contextmanager
def _own_copy(path: Path, keep: bool) -> Iterator[Path]:
    """Yield a temporary file of ours that holds what a stopped process left of `path`."""
    own = path.with_name(f"{path.name}{files.TEMPORARY_MARK}{os.getpid()}-{uuid.uuid4().hex[:8]}")
    name = glob.escape(path.name)
    marked = path.parent.glob(f"{name}{files.TEMPORARY_MARK}*")
    for left in (*marked, path.with_name(f"{path.name}.part")):
        if files.is_abandoned(left):
            with contextlib.suppress(FileNotFoundError):
                os.rename(left, own)
                break
    if not keep:
        own.unlink(missing_ok=True)  # without a hash, nothing would notice a changed file
    try:
        yield own
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.rename(own, path.with_name(f"{path.name}.part"))


def _part(file: RemoteFile, answer: Any) -> tuple[int, int]:
    """Return where the part that a server sends starts, -1 if unsaid, and the file's length or 0.

    In `bytes a-b/*` the length is not known; b is then its last byte, as we ask for all the rest.
    """
    length = answer.headers.get("Content-Length", "")
    total = int(length) if re.fullmatch("[0-9]{1,15}", length) else file.bytes
    if answer.status_code != 206:
        return 0, total
    numbers = "bytes ([0-9]{1,15})-([0-9]{1,15})/([0-9]{1,15}|[*])"
    found = re.fullmatch(numbers, answer.headers.get("Content-Range", ""))
    if not found:
        return -1, total
    return int(found[1]), int(found[2]) + 1 if found[3] == "*" else int(found[3])


def _attempt(
    file: RemoteFile, own: Path, headers: dict[str, str], known: dict[str, str], timeout_s: float
) -> None:
    """Ask for what is missing and append it; `known` keeps which version of the file we have."""
    import requests

    have = _size(own)
    if have and have == file.bytes:
        return
    ask = {**headers, "Range": f"bytes={have}-"} if have else dict(headers)
    version = known.get("version", "")
    if have and version and not version.startswith("W/"):
        ask["If-Range"] = version  # what changed meanwhile comes again from its start
    with requests.get(file.address, headers=ask, stream=True, timeout=timeout_s) as answer:
        _check_answer(file, answer)
        start, total = _part(file, answer)
        version = answer.headers.get("ETag", "") or answer.headers.get("Last-Modified", "")
        now = {"version": version} | ({"length": str(total)} if total else {})
        changed = any(known.get(key, value) != value for key, value in now.items())
        if answer.status_code == 416 or start not in (0, have) or (start and changed):
            own.unlink(missing_ok=True)
            known.clear()
            raise _Restarted("the server could not continue the file, or changed it meanwhile")
        known.update(now)
        if not total and not file.has_hash:  # sent in chunks, say
            why = "does not say how long the file is, nor does its entry give a hash"
            raise _refusal(file, why)
        if file.bytes and total != file.bytes:
            raise _refusal(file, f"offers {total} bytes, {file.bytes} are expected")
        _append(file, answer, own, start, total)
    if _size(own) < total:
        raise _Interrupted(f"the connection ended after {_size(own)} of {total} bytes")


def _append(file: RemoteFile, answer: Any, own: Path, start: int, total: int) -> None:
    """Write the body of an answer from byte `start` of the file on; `total` 0 is unknown."""
    from tqdm import tqdm

    with (
        open(own, "ab" if start else "wb") as handle,
        tqdm(
            desc=file.name,
            total=total or None,
            initial=start,
            unit="B",
            unit_scale=True,
            disable=None,
        ) as bar,
    ):
        for chunk in answer.raw.stream(CHUNK_BYTES, decode_content=False):
            if total and handle.tell() + len(chunk) > total:
                raise _refusal(file, f"sends more than the {total} bytes of the file")
            handle.write(chunk)
            bar.update(len(chunk))


def _check_answer(file: RemoteFile, answer: Any) -> None:
    """Tell apart what may pass, what never will, and web pages that stand for a file."""
    steps = [step.url for step in (*answer.history, answer)]
    if steps[0].startswith("https:") and not all(url.startswith("https:") for url in steps):
        raise _refusal(file, "leads to an address that is not encrypted")
    if answer.status_code == 429 or answer.status_code >= 500:
        raise _Interrupted(f"the server answered {answer.status_code}")
    if answer.status_code not in (200, 206, 416):
        raise _refusal(file, f"answered {answer.status_code} {answer.reason}")
    coding = answer.headers.get("Content-Encoding", "").strip().lower()
    if coding not in ("", "identity") and not file.address.endswith(("gz", "gzip")):
        raise _refusal(file, f"sends it compressed ({coding[:40]}), which was not asked for")
    if answer.headers.get("Content-Type", "").strip().lower().startswith("text/html"):
        raise _refusal(file, "sent a web page instead (quota, login or confirmation)")


def _refusal(file: RemoteFile, what: str) -> UserError:
    return UserError(f"{file.address}: the server {what}; {file.remedy}")
