"""Files that are either whole or absent: unique temporary name, fsync, rename."""

import contextlib
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import psutil
from PIL import Image

from pipeline.errors import UserError

TEMPORARY_MARK = ".part-"


def fsync_folder(folder: Path) -> None:
    """Make renames in `folder` durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary name beside `path`; on success fsync it and rename it to `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}{TEMPORARY_MARK}{os.getpid()}-{uuid.uuid4().hex[:8]}")
    try:
        yield temporary
        with open(temporary, "rb") as handle:  # it may be a link to what is read-only
            os.fsync(handle.fileno())
        os.replace(temporary, path)
        fsync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def write_bytes(path: Path, data: bytes) -> None:
    """Write `data` so that `path` is whole or unchanged."""
    with replacing(path) as temporary:
        temporary.write_bytes(data)


def place(source: Path, target: Path, how: Literal["hard", "copy", "symlink"] = "hard") -> None:
    """Give a file a second name; copy it where the file system has no hard link for it."""
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


def read_json(path: Path) -> Any:
    """Read JSON; a missing or broken file is a `UserError` that names it."""
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; check the folder given") from None
    except json.JSONDecodeError as error:
        raise UserError(f"{path}: broken JSON ({error}); delete it and run again") from None


def encode_png(array: np.ndarray) -> bytes:
    """Encode HxW ids or HxWx3 RGB (uint8) as PNG bytes that depend on the pixels alone."""
    import io

    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, format="PNG", compress_level=4)
    return buffer.getvalue()


def sha256(data: bytes) -> str:
    """Return the hexadecimal SHA-256 of `data`."""
    return hashlib.sha256(data).hexdigest()


def is_abandoned(path: Path) -> bool:
    """Tell whether the process that made this temporary file is gone."""
    pid = path.name.rpartition(TEMPORARY_MARK)[2].partition("-")[0]
    try:
        state = psutil.Process(int(pid)).status()
    except (ValueError, psutil.NoSuchProcess):
        return True
    return state in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)  # in containers none may collect it


def sweep_temporaries(folder: Path) -> None:
    """Delete temporary files of dead processes below `folder`."""
    for path in folder.rglob(f"*{TEMPORARY_MARK}*"):
        if is_abandoned(path):
            path.unlink(missing_ok=True)


def require_writable(folder: Path) -> None:
    """Create `folder` and prove that a file can be written there, or raise `UserError`."""
    probe = folder / f".probe{TEMPORARY_MARK}{os.getpid()}-{uuid.uuid4().hex[:8]}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"x")
        probe.unlink()
    except OSError as error:
        raise UserError(
            f"{folder}: cannot be written ({error.strerror}); choose another folder or free it"
        ) from None
