"""Keeps a second program, started by mistake, out of an output folder."""

import fcntl
import os
from pathlib import Path

from pipeline.errors import UserError

NAME = ".lock"
_held: dict[Path, int] = {}  # descriptors by path: a lock ends when its file is closed


def lock_folder(folder: Path) -> None:
    """Hold `folder` until this process ends; raise `UserError` if another process holds it.

    This is a lock of the operating system, so it ends with the process even if that is killed.
    File servers pass it on to other machines; a file system that has no locks is not protected.
    """
    path = folder.resolve() / NAME
    if path in _held:
        if os.fstat(_held[path]).st_nlink:
            return
        os.close(_held.pop(path))  # the folder was removed and made again
    try:
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW  # nothing is made elsewhere
        descriptor = os.open(path, flags, 0o666)
    except OSError:
        return  # what cannot be written to is reported elsewhere
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        os.close(descriptor)
        raise UserError(
            f"{folder}: another process is writing to it; wait for its end, or stop it"
        ) from None
    except OSError:
        os.close(descriptor)
        return
    _held[path] = descriptor
