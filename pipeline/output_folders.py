"""What may lie in a folder that a program writes to and continues.

What is written to must be what it is in a sound folder: through a link a program would write
elsewhere, and a pipe would hold it up for ever.
"""

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from pipeline.errors import UserError
from pipeline.reading import shortened

REMEDY = "choose another --output"
FILE_SUFFIXES = (".json", ".jsonl", ".safetensors", ".md", ".png")
RUN_FOLDERS = (  # in the folder of a run
    "checkpoints", "tensorboard", "averages", "cache", "previews", "predictions", "base", "unet",
    "controlnet", "vae", "lora", "ids", "color", "overlay", "cityscapes",
)  # fmt: skip


def require_kind(path: Path, *, folder: bool) -> None:
    """Raise `UserError` unless a path is a folder, or a regular file, and itself no link.

    What is not there passes: other processes may have removed it meanwhile.
    """
    wanted = "a folder" if folder else "a file"
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    except OSError as error:
        raise UserError(unreadable(path, error)) from None
    if stat.S_ISLNK(mode):
        raise UserError(f"{path}: is a link; put {wanted} in its place or {REMEDY}")
    if not (stat.S_ISDIR if folder else stat.S_ISREG)(mode):
        raise UserError(f"{path}: is not {wanted}; remove it or {REMEDY}")


def unreadable(path: Path, error: Exception) -> str:
    """Return the message for a path that the system does not let us look at."""
    reason = getattr(error, "strerror", None) or error
    return f"{shortened(path)}: cannot be read ({reason}); {REMEDY}"


def check_run_folder(folder: Path) -> None:
    """Raise `UserError` unless all in the folder of a run is of the kind that the run writes.

    Names that no run gives may be anything; nothing below a link is looked at.
    """
    if not folder.is_dir():
        return
    for entry in _entries(folder):
        path = Path(entry.path)
        if entry.name in RUN_FOLDERS:
            require_kind(path, folder=True)
            _check_below(path)
        elif path.suffix in FILE_SUFFIXES:
            require_kind(path, folder=False)


def _check_below(folder: Path) -> None:
    """Raise `UserError` for a link, a pipe or a device below a folder, or the wrong kind."""
    for entry in _entries(folder):
        path = Path(entry.path)
        checkpoint = folder.name == "checkpoints" and entry.name.startswith("step-")
        in_folder = checkpoint or (path.suffix not in FILE_SUFFIXES and entry.is_dir())
        require_kind(path, folder=in_folder)
        if in_folder:
            _check_below(path)


def _entries(folder: Path) -> Iterator[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            yield from entries
    except FileNotFoundError:  # a temporary folder, gone meanwhile
        return
    except OSError as error:
        raise UserError(unreadable(folder, error)) from None
