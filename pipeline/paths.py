"""Names that a file of somebody else holds: what may stand there, and where they may lead.

A name that becomes a file is a plain stem. A name of a file below a folder is relative, has no
`..`, and what it leads to through links lies in that folder, or in the store that the folder's
links belong to: `blobs` beside a hub cache's `snapshots`, `.dvc/cache` or `.git/annex/objects` of
a repository around it, or a folder that the user names in STREETFORGE_STORES.
"""

import os
import stat
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from pipeline import files
from pipeline.addresses import address_of
from pipeline.errors import UserError
from pipeline.reading import shortened
from pipeline.tar_members import find_member

STORES_VARIABLE = "STREETFORGE_STORES"
MAX_STEM_BYTES = 150  # file systems take 255, and temporary names add to it
MAX_NAME_BYTES = 1000
MAX_FOLDERS = 20_000  # that are looked through for files


def check_stem(name: object) -> None:
    """Raise `ValueError` unless `name` is fit for the stem of a file in any folder."""
    if not isinstance(name, str):
        raise ValueError(f"must be text, not {shortened(repr(name), 40)}")
    plain = name.isprintable() and not set(name) & set("/\\") and not name.startswith(".")
    if not name or not plain or name != name.strip():
        raise ValueError(f"{shortened(name, 60)!r} is not a plain file name without a path")
    if len(name.encode()) > MAX_STEM_BYTES:
        raise ValueError(f"{shortened(name, 60)!r} is longer than {MAX_STEM_BYTES} bytes")


def check_relative(name: object) -> None:
    """Raise `ValueError` unless `name` is a plain relative path, its parts divided by `/`."""
    if not isinstance(name, str):
        raise ValueError(f"must be text, not {shortened(repr(name), 40)}")
    shown = shortened(name, 100)
    foreign = name.startswith(("/", "~")) or "\\" in name or name[1:2] == ":"
    if foreign or address_of(name):  # `http:/host/x` in the folder `.` would be read from there
        raise ValueError(f"{shown} is not a plain relative path, divided by /")
    if not name.isprintable() or set(name.split("/")) & {"", ".", ".."}:
        raise ValueError(f"{shown} must be a plain path below the folder, without . and ..")
    if len(name.encode()) > MAX_NAME_BYTES:
        raise ValueError(f"{shown} is longer than {MAX_NAME_BYTES} bytes")


def find_conflict(names: Iterable[str]) -> tuple[str, str] | None:
    """Return a relative name and another one that needs it as a folder, None if there is none."""
    known = set(names)
    for name in sorted(known):
        for above in map(str, PurePosixPath(name).parents):
            if above in known:
                return above, name
    return None


class FileState(NamedTuple):
    """What tells that a file is the one that was there before."""

    st_size: int
    st_mtime_ns: int


class Enclosure:
    """A folder whose rows name files; tells where these really are, and refuses what leaves it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._real = os.path.realpath(folder)
        self._stores: tuple[str, ...] | None = None
        self._sound: dict[str, bool] = {}  # parent folders by name: lies within, links followed

    def find(self, name: str) -> FileState:
        """Return the state of the regular file `name` (see `check_relative`) below the folder.

        A member of a tar shard has the time of its shard. Raises a nameless `UserError` for a file
        that is missing, is no regular file, or lies elsewhere.
        """
        member = find_member(name)
        if member is None:
            state = self._find_file(name)
            return FileState(state.st_size, state.st_mtime_ns)
        shard = self._find_file(member.shard)
        if member.start + member.num_bytes > shard.st_size:
            raise UserError("lies beyond the end of its shard; download the shard again")
        return FileState(member.num_bytes, shard.st_mtime_ns)

    def _find_file(self, name: str) -> os.stat_result:
        path = os.path.join(self.folder, name)
        parent = os.path.dirname(name)
        if parent not in self._sound:
            self._sound[parent] = self._holds(os.path.join(self.folder, parent))
        try:
            state = os.lstat(path)
            linked = stat.S_ISLNK(state.st_mode)
            if not self._sound[parent] or (linked and not self._holds(path)):
                raise UserError(
                    "a link leads out of the dataset folder; copy the file into it, or name the "
                    f"folder that holds the file in {STORES_VARIABLE} if you trust the links"
                )
            state = os.stat(path) if linked else state
        except FileNotFoundError:
            raise UserError("is missing; restore it, or see pipeline/verify.py --repair") from None
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise UserError(f"cannot be read ({reason}); check the path") from None
        if not stat.S_ISREG(state.st_mode):
            kind = "a folder" if stat.S_ISDIR(state.st_mode) else "a pipe, a socket or a device"
            raise UserError(f"is {kind}, not a regular file; restore it")
        return state

    def _holds(self, path: str) -> bool:
        real = os.path.realpath(path)
        if _lies_in(real, self._real):
            return True
        if self._stores is None:
            self._stores = find_stores(Path(self._real))
        return any(_lies_in(real, store) for store in self._stores)


def _lies_in(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder.rstrip(os.sep) + os.sep)


def find_stores(folder: Path) -> tuple[str, ...]:
    """Return the folders that the links in `folder`, a real path, may lead to.

    A store must really lie where its layout has it: one that is a link itself holds nothing.
    """
    found = []
    for current in (folder, *folder.parents):
        if current.parent.name == "snapshots":
            found.append(current.parent.parent / "blobs")
        if (current / ".dvc").is_dir():
            found.append(current / ".dvc" / "cache")
        if (current / ".git" / "annex").is_dir():
            found.append(current / ".git" / "annex" / "objects")
    return (*map(str, found), *_declared())


def _declared() -> list[str]:
    names = os.environ.get(STORES_VARIABLE, "").split(os.pathsep)
    return [os.path.realpath(name) for name in names if name]


def is_declared(real: str) -> bool:
    """Tell whether the user trusts links that lead to `real`, a path without links."""
    return any(_lies_in(real, store) for store in _declared())


def find_files(folder: Path, suffixes: Sequence[str]) -> tuple[list[Path], list[Path]]:
    """Return the files below a folder whose names end so, in any case, and hidden things left out.

    Links to folders are followed, each folder once, but none that holds `folder` itself. Both
    lists are in name order.
    """
    top = os.path.realpath(folder)
    found: list[Path] = []
    hidden: list[Path] = []
    seen: set[str] = set()
    for current, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(current)
        above = real != top and os.path.commonpath((real, top)) == real
        if above or real in seen or len(seen) >= MAX_FOLDERS:
            folders.clear()
            continue
        seen.add(real)
        hidden += [Path(current, name) for name in (*folders, *names) if name.startswith(".")]
        folders[:] = [name for name in folders if not name.startswith(".")]
        shown = (n for n in names if not n.startswith(".") and files.TEMPORARY_MARK not in n)
        found += [Path(current, name) for name in shown if name.lower().endswith(tuple(suffixes))]
    if len(seen) >= MAX_FOLDERS:
        raise UserError(f"{folder}: holds {MAX_FOLDERS} folders and more; name the right one")
    return sorted(found), sorted(hidden)


def say_hidden(folder: Path, hidden: Sequence[Path]) -> None:
    """Say on stderr which hidden files and folders are left out, if there are any."""
    if hidden:
        some = ", ".join(ascii(str(path.relative_to(folder)))[1:-1] for path in hidden[:3])
        more = f" and {len(hidden) - 3} more" if len(hidden) > 3 else ""
        print(f"notice: {folder}: hidden, left out: {some}{more}", file=sys.stderr)
