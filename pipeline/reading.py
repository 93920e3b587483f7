"""Small files that somebody hands in: regular, of bounded size, UTF-8, JSON within limits.

Every fault is one `UserError` line that names the file, the rule and the remedy. Links are
followed, since stores (hub caches, DVC, git-annex) keep files behind them; what they lead to must
be a regular file, so that no pipe or device can hold a program up. Nothing here imports numpy.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from pipeline.errors import UserError
from pipeline.tar_members import find_member, read_member

MAX_JSON_BYTES = 256 << 20
MAX_DEPTH = 64  # of lists and mappings: far below where the interpreter's own recursion ends
CHECK = "check the path"
KINDS = {dict: "a mapping", list: "a list", str: "text", int: "a whole number"}
POINTERS = {  # how files begin that stand for another one that was not downloaded
    b"version https://git-lfs.github.com/spec/": ("Git LFS", "git lfs pull"),
    b"version https://hawser.github.com/spec/": ("Git LFS", "git lfs pull"),
    b"/annex/objects/": ("git-annex", "git annex get"),
}
POINTER_BYTES = 1024  # no pointer is longer; Git LFS sets this limit itself


def open_regular(path: Path, remedy: str = CHECK) -> BinaryIO:
    """Open a regular file for reading bytes.

    Raises `UserError` for what is absent, a folder, a pipe, a device, or not to be read. Opening
    never waits for the other end of a pipe. A member of a tar shard is opened like a file.
    """
    if member := find_member(path):
        return io.BytesIO(read_member(member, path))
    try:
        mode = os.stat(path).st_mode  # before: opening some devices has effects
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK) if stat.S_ISREG(mode) else -1
    except FileNotFoundError:
        link = "a link whose file is gone" if os.path.islink(path) else "no such file"
        raise UserError(f"{path}: {link}; {remedy}") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{shortened(path)}: cannot be read ({reason}); {remedy}") from None
    if handle < 0:
        kind = "a folder" if stat.S_ISDIR(mode) else "a pipe, a socket or a device"
        raise UserError(f"{path}: is {kind}, not a regular file; {remedy}")
    return os.fdopen(handle, "rb")


def shortened(name: object, limit: int = 200) -> str:
    """Return a name for a message: printable, and cut where nobody would read on."""
    text = str(name)
    text = text if text.isprintable() else ascii(text)[1:-1]
    return text if len(text) <= limit else f"{text[:limit]}... ({len(text)} characters)"


def read_bytes(path: Path, limit: int = MAX_JSON_BYTES, remedy: str = CHECK) -> bytes:
    """Return the content of a regular file of at most `limit` bytes, or raise `UserError`."""
    with open_regular(path, remedy) as handle:
        try:
            data = handle.read(limit + 1)
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror}); {remedy}") from None
    if len(data) > limit:
        raise UserError(f"{path}: is larger than {limit / 1e6:.0f} MB; is this the right file?")
    return data


def read_text(path: Path, limit: int = MAX_JSON_BYTES, remedy: str = CHECK) -> str:
    """Return the text of a regular UTF-8 file; a byte order mark is dropped."""
    try:
        return read_bytes(path, limit, remedy).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path}: is not UTF-8 text (byte {error.start}); save it as UTF-8"
        ) from None


def pointer_remedy(path: Path) -> str:
    """Return how to get the file that a Git LFS or git-annex pointer at `path` stands for.

    Empty: `path` is no pointer.
    """
    try:
        if not path.is_file() or path.stat().st_size > POINTER_BYTES:
            return ""
        with open_regular(path) as handle:
            start = handle.read(POINTER_BYTES)
    except (OSError, ValueError, UserError):
        return ""
    for mark, (system, command) in POINTERS.items():
        if start.startswith(mark):
            return f"is a {system} pointer, the file itself is not here; run `{command}` there"
    return ""


def refuse_pointer(path: Path) -> None:
    """Raise `UserError` if `path` is the Git LFS or git-annex pointer of a file not here."""
    if remedy := pointer_remedy(path):
        raise UserError(f"{path}: {remedy}")


def check_plain(value: Any) -> None:
    """Raise `ValueError` if a JSON or YAML value nests too deeply or holds half a character.

    Halves of UTF-16 pairs can be written as escapes, but no file or terminal takes them.
    """
    layer = [value]
    for _ in range(MAX_DEPTH):
        below: list[Any] = []
        for item in layer:
            if isinstance(item, dict):
                below += item.keys()
                below += item.values()
            elif isinstance(item, list | tuple):
                below += item
            elif isinstance(item, str) and not item.isascii():
                try:
                    item.encode()
                except UnicodeEncodeError:
                    raise ValueError("holds half of a character, an escape \\ud800 say") from None
        if not below:
            return
        layer = below
    raise ValueError(f"is nested more than {MAX_DEPTH} levels deep")


def whole_text(value: Any) -> Any:
    """Return a JSON value with halves of characters spelt out as text that `check_plain` takes.

    They come from names of files that are no text: byte ff reads as the half character \\udcff.
    """
    if isinstance(value, str):
        return value.encode(errors="backslashreplace").decode()
    if isinstance(value, dict):
        return {whole_text(k): whole_text(v) for k, v in value.items()}
    return [whole_text(v) for v in value] if isinstance(value, list | tuple) else value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"key {shortened(twice, 60)!r} occurs twice")
    return found


def parse_json(data: bytes | str, kind: type | None = None) -> Any:
    """Return the JSON value of `data`, of type `kind` if given, or raise `ValueError`.

    UTF-8 alone, at most `MAX_DEPTH` levels, no key twice, only whole characters. Infinity and NaN
    are let through, since diffusers writes them.
    """
    try:
        text = data.decode("utf-8-sig") if isinstance(data, bytes) else data
        value = json.loads(text, object_pairs_hook=_unique)
    except UnicodeDecodeError as error:
        raise ValueError(f"is not UTF-8 text (byte {error.start})") from None
    except json.JSONDecodeError as error:
        raise ValueError(str(error)) from None
    except RecursionError:
        raise ValueError(f"is nested more than {MAX_DEPTH} levels deep") from None
    if "\\u" in text or text.count("[") + text.count("{") > MAX_DEPTH:  # else it must be plain
        check_plain(value)
    truth = isinstance(value, bool) and kind is not bool  # a bool passes for an int in Python
    if kind is not None and (truth or not isinstance(value, kind)):
        raise ValueError(f"holds {type(value).__name__}, not {KINDS.get(kind, kind.__name__)}")
    return value


@contextlib.contextmanager
def expecting(where: Path, remedy: str = "restore it or make it again") -> Iterator[None]:
    """Turn what a block raises over values that a file lacks into a `UserError` naming `where`."""
    try:
        yield
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        reason = shortened(f"{type(error).__name__} {error}", 120)
        raise UserError(f"{where}: lacks an expected value ({reason}); {remedy}") from None


def read_json(
    path: Path,
    kind: type | None = None,
    *,
    limit: int = MAX_JSON_BYTES,
    remedy: str = "restore it or give another folder",
) -> Any:
    """Read a JSON file, strictly; whatever is wrong with it is one `UserError` that names it.

    `kind` is the type that the value must have, `dict` say; `limit` is in bytes; `remedy` ends the
    message.
    """
    try:
        return parse_json(read_bytes(path, limit), kind)
    except ValueError as error:
        hint = pointer_remedy(path) or f"broken JSON ({error}); {remedy}"
        raise UserError(f"{path}: {hint}") from None
