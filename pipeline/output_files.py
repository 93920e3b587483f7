"""May a program write this file? It may replace what it wrote itself, and nothing else.

Folders have a rule of their own, in `pipeline.output_folders`.
"""

import functools
import os
import stat
from collections.abc import Callable, Mapping
from pathlib import Path

from pipeline.errors import UserError
from pipeline.output_entries import require_local
from pipeline.output_folders import SETTING, require_writable
from pipeline.reading import shortened

IsOwn = Callable[[Path], bool]
"""Tells whether a regular file is an earlier result of the program."""


def check_output_file(
    path: Path, is_own: IsOwn | None, what: str, *, setting: str = SETTING
) -> None:
    """Raise `UserError` unless `path` is free or holds an earlier result of the program.

    `what` is the noun of the result. Without `is_own` nothing is ever replaced.
    """
    remedy = f"choose another {setting}"
    require_local(path, setting)
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(
            f"{setting} {shortened(path)}: cannot be written ({reason}); {remedy}"
        ) from None
    if stat.S_ISDIR(mode):
        raise UserError(f"{setting} {path}: is a folder; {remedy}")
    if is_own is None:
        raise UserError(f"{setting} {path}: exists already; {remedy}")
    if not stat.S_ISREG(mode) or not is_own(path):
        raise UserError(f"{setting} {path}: exists and is not a {what} of this program; {remedy}")


def check_tables(path: Path, starts: Mapping[str, str], is_own: IsOwn, what: str) -> None:
    """Raise `UserError` unless the tables of a result at `path` may be written beside it.

    Tables have the name of the result with other suffixes; `starts` is what each begins with, by
    suffix. A table is the program's own beside a result of it, or, where that was deleted, if it
    begins so. Call it after `check_output_file` of the result.
    """
    has_result = path.is_file() and is_own(path)
    for suffix, start in starts.items():
        table = path.with_suffix(suffix)
        if table == path:
            raise UserError(
                f"{SETTING} {path}: is the name of its own table; choose one that ends in .json"
            )
        own = functools.partial(_begins_with, start=start.encode())
        check_output_file(table, (lambda _: True) if has_result else own, f"table of a {what}")


def _begins_with(path: Path, start: bytes) -> bool:
    with open(path, "rb") as handle:
        return handle.read(len(start)) == start


def open_output_file(
    path: Path, is_own: IsOwn | None, what: str, *, setting: str = SETTING
) -> None:
    """Check a file as `check_output_file` does, and prove that its folder can be written to."""
    check_output_file(path, is_own, what, setting=setting)
    require_writable(path.absolute().parent, setting)
