"""Files that are either whole or absent: unique temporary name, fsync, rename."""

import contextlib
import errno
import functools
import hashlib
import json
import os
import shutil
import socket
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import psutil

from pipeline.errors import UserError
from pipeline.tar_members import find_member, read_member

TEMPORARY_MARK = ".part-"
MAX_TEMPORARY_STEM = 180  # bytes; with mark and owner below the 255 that file systems take
ABANDONED_S = 6 * 3600.0  # age at which a temporary file of another machine is taken for left over
FULL_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
TRANSIENT = (errno.EIO, errno.ESTALE)  # often gone a second later on network file systems
PAUSES_S = (0.5, 1.0, 2.0)  # before a write that failed for a passing reason is tried again
Placing = Literal["hard", "copy", "symlink"]
"""How a file gets a second name."""
NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK)  # of some file systems


def despite_transient_errors(write: Callable[[], object]) -> None:
    """Call `write`, again after pauses if a network file system fails for a passing reason."""
    for pause_s in (*PAUSES_S, None):
        try:
            write()
            return
        except OSError as error:
            if error.errno not in TRANSIENT or pause_s is None:
                raise
            time.sleep(pause_s)


@functools.cache
def host_id() -> str:
    """Return a tag that processes share only if they can see each other's process ids."""
    try:
        namespace = os.readlink("/proc/self/ns/pid")  # containers of one host may share its name
    except OSError:
        namespace = ""
    return hashlib.sha256(f"{socket.gethostname()} {namespace}".encode()).hexdigest()[:12]


def is_running(pid: int) -> bool:
    """Return whether a process with this id is running on this machine."""
    try:
        state = psutil.Process(pid).status()
    except (ValueError, psutil.NoSuchProcess):
        return False
    return state not in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)  # maybe nobody collects it


def fsync_folder(folder: Path) -> None:
    """Make renames in `folder` durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_file(path: Path) -> None:
    """Make the content of a file durable."""
    with open(path, "rb") as handle:  # it may be read-only
        os.fsync(handle.fileno())


def make_folder(folder: Path) -> None:
    """Create a folder and those above it, each durable in the one that holds it."""
    if not folder.is_dir():
        make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        fsync_folder(folder.parent)


def temporary_name(path: Path) -> Path:
    """Return a name beside `path` that no other process uses and that tells whose it is."""
    owner = f"{os.getpid()}-{host_id()}-{uuid.uuid4().hex[:8]}"
    stem = os.fsdecode(os.fsencode(path.name)[:MAX_TEMPORARY_STEM])
    return path.with_name(f"{stem}{TEMPORARY_MARK}{owner}")


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Give an error of a write or fsync, which names no file, the name that `path` shall get."""
    try:
        yield
    except OSError as error:
        if error.errno is not None and error.filename is None:
            error.filename = str(path.with_name(path.name.partition(TEMPORARY_MARK)[0]))
        raise


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary name beside `path`; on success fsync it and rename it to `path`."""
    make_folder(path.parent)
    temporary = temporary_name(path)
    try:
        with _naming(path):
            yield temporary
            sync_file(temporary)
        os.replace(temporary, path)
        fsync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def write_data(path: Path, data: bytes, flags: int) -> None:
    """Write all of `data` to `path`, opened with `flags`; nothing is synced."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | flags, 0o666)
    try:
        with _naming(path):
            rest = memoryview(data)
            while rest:
                rest = rest[os.write(handle, rest) :]
    finally:
        os.close(handle)


def write_all(contents: Sequence[tuple[Path, bytes]]) -> None:
    """Write files so that each is whole or unchanged; on return all are durable.

    They take their names in the given order, after all of them are on the disk.
    """
    staged: list[tuple[Path, Path]] = []
    try:
        for path, data in contents:
            make_folder(path.parent)
            staged.append((temporary_name(path), path))
            write_data(staged[-1][0], data, os.O_EXCL)
        for temporary, _ in staged:  # after all writes: the first sync then carries most of them
            sync_file(temporary)
        for temporary, path in staged:
            os.replace(temporary, path)
        for folder in dict.fromkeys(path.parent for _, path in staged):
            fsync_folder(folder)
    finally:
        for temporary, _ in staged:
            temporary.unlink(missing_ok=True)


def write_bytes(path: Path, data: bytes) -> None:
    """Write `data` so that `path` is whole or unchanged."""
    write_all([(path, data)])


def create(path: Path, data: bytes) -> None:
    """Write a new file; of several processes that try, the first wins and the others do nothing.

    On a file system without hard links it is there, empty, for a moment before it is whole.
    """
    temporary = temporary_name(path)
    try:
        write_data(temporary, data, os.O_EXCL)
        sync_file(temporary)
        with contextlib.suppress(FileExistsError):
            try:
                os.link(temporary, path)
            except OSError as error:
                if error.errno not in NO_LINKS:
                    raise
                _create_in_place(path, data)
        fsync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def _create_in_place(path: Path, data: bytes) -> None:
    """Write a new file under its own name; raise `FileExistsError` if it is there."""
    try:
        write_data(path, data, os.O_EXCL)
        sync_file(path)
    except FileExistsError:
        raise
    except OSError:  # it would count as begun
        path.unlink(missing_ok=True)
        raise


def can_link(source: Path, folder: Path) -> bool:
    """Tell whether the file system gives a hard link to `source` in `folder`."""
    probe = temporary_name(folder / ".link")
    try:
        os.link(source.resolve(), probe)
    except OSError:
        return False
    probe.unlink()
    return True


def place(source: Path, target: Path, how: Placing = "hard") -> None:
    """Give a file a second name; copy it where the file system has no hard link for it.

    A member of a tar shard is written as a file of its own.
    """
    if member := find_member(source):
        write_bytes(target, read_member(member, source))
        return
    with replacing(target) as temporary:
        if how == "symlink":
            temporary.symlink_to(source.resolve())
            return
        if how == "hard":
            with contextlib.suppress(OSError):
                os.link(source.resolve(), temporary)
                return
        shutil.copyfile(source, temporary)


def write_changed(path: Path, data: bytes) -> None:
    """Write `data` unless `path` holds it already."""
    if not path.is_file() or path.read_bytes() != data:
        write_bytes(path, data)


def json_bytes(value: Any) -> bytes:
    """Encode `value` as indented JSON with sorted keys."""
    return (json.dumps(value, indent=2, sort_keys=True) + "\n").encode()


def write_json(path: Path, value: Any) -> None:
    """Write `value` as JSON."""
    write_bytes(path, json_bytes(value))


def sha256(data: bytes) -> str:
    """Return the hexadecimal SHA-256 of `data`."""
    return hashlib.sha256(data).hexdigest()


def is_abandoned(path: Path) -> bool:
    """Tell whether the process that made this temporary file is gone."""
    pid, *others = path.name.rpartition(TEMPORARY_MARK)[2].split("-")
    if len(others) == 2 and others[0] != host_id():
        with contextlib.suppress(FileNotFoundError):
            return time.time() - path.stat().st_mtime > ABANDONED_S
    return not (pid.isdecimal() and is_running(int(pid)))


def sweep_temporaries(folder: Path) -> None:
    """Delete temporary files of dead processes below `folder`."""
    for path in folder.rglob(f"*{TEMPORARY_MARK}*"):
        if is_abandoned(path):
            path.unlink(missing_ok=True)


@contextlib.contextmanager
def storage_errors(folder: Path, need_bytes: Callable[[], int]) -> Iterator[None]:
    """Turn failed writes below `folder` into a `UserError`; `need_bytes`: what is yet to come."""
    try:
        yield
    except OSError as error:
        if error.errno in FULL_DISK:
            remedy = (
                f"about {max(need_bytes() / 1e6, 0.1):.1f} MB are still needed; free some space"
            )
        elif error.errno is None:  # of no file, but of a library
            raise
        else:
            remedy = "fix that"
        raise UserError(
            f"{error.filename or folder}: cannot be written ({error.strerror}); {remedy} and "
            "repeat the command, all finished samples are kept"
        ) from None
