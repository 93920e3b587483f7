"""What lies in an output folder: folders, regular files, and what is in the way of a program.

The rule that these functions serve is in `pipeline.output_folders`.
"""

import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from pipeline import files
from pipeline.addresses import address_of
from pipeline.errors import UserError
from pipeline.reading import shortened

FILE_SUFFIXES = (".json", ".jsonl", ".safetensors", ".md", ".png")
Contents = Literal["all", "folders", "files"]
"""What is checked in a folder of a known name: everything below it, or only its own entries, which
must be folders or files."""


def require_local(path: Path, setting: str) -> None:
    """Raise `UserError` if a path spells an address; most programs write to this machine only."""
    if address := address_of(path):
        raise UserError(f"{address}: is an address; name a path of this machine with {setting}")


def folder_exists(folder: Path, setting: str) -> bool:
    """Tell whether a folder is there; raise `UserError` for what can be no folder (rule 2)."""
    require_local(folder, setting)
    try:
        mode = os.stat(folder).st_mode
    except FileNotFoundError:
        if os.path.islink(folder):
            raise UserError(f"{folder}: is a link to nothing; choose another {setting}") from None
        return False
    except (OSError, ValueError) as error:
        raise unreadable(folder, error, setting) from None
    if not stat.S_ISDIR(mode):
        raise UserError(f"{folder}: is a file, not a folder; choose another {setting}")
    return True


def entries(folder: Path, setting: str) -> Iterator[os.DirEntry[str]]:
    """Yield the entries of a folder in name order; raise `UserError` if it cannot be read."""
    try:
        with os.scandir(folder) as found:
            yield from sorted(found, key=lambda entry: entry.name)
    except FileNotFoundError:  # a temporary folder, gone meanwhile
        return
    except OSError as error:
        raise unreadable(folder, error, setting) from None


def require_kind(path: Path, *, folder: bool, setting: str = "--output") -> None:
    """Raise `UserError` unless a path is a folder, or a regular file, and itself no link.

    What is not there passes: other processes may have removed it meanwhile.
    """
    wanted = "a folder" if folder else "a file"
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    except OSError as error:
        raise unreadable(path, error, setting) from None
    if stat.S_ISLNK(mode):
        raise UserError(f"{path}: is a link; put {wanted} in its place or choose another {setting}")
    if not (stat.S_ISDIR if folder else stat.S_ISREG)(mode):
        raise UserError(f"{path}: is not {wanted}; remove it or choose another {setting}")


def check_below(folder: Path, contents: Contents, setting: str) -> None:
    """Raise `UserError` for a link, a pipe or the wrong kind of entry below a folder."""
    for entry in entries(folder, setting):
        path = Path(entry.path)
        if contents != "all":
            if files.TEMPORARY_MARK not in entry.name:
                require_kind(path, folder=contents == "folders", setting=setting)
            continue
        is_checkpoint = folder.name == "checkpoints" and entry.name.startswith("step-")
        is_folder = is_checkpoint or (path.suffix not in FILE_SUFFIXES and entry.is_dir())
        require_kind(path, folder=is_folder, setting=setting)
        if is_folder:
            check_below(path, contents, setting)


def unreadable(path: Path, error: Exception, setting: str) -> UserError:
    """Return the error for a path that the system does not let us look at."""
    reason = getattr(error, "strerror", None) or error
    return UserError(f"{shortened(path)}: cannot be read ({reason}); choose another {setting}")
