"""Old names of settings: a file or flag that has one is refused in one line with the new name.

A settings dataclass states them in `RENAMED`, from its old field names to today's. A setting that
moved into a group has the group in its new name: `{"rcs_temperature": "rare_classes.temperature"}`.
"""

import dataclasses
import typing
from collections.abc import Sequence
from typing import Any

from pipeline.errors import UserError


def renamed_settings(cls: Any) -> dict[str, str]:
    """Return the new name of each old name of a settings dataclass and its bases."""
    names: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        names |= vars(base).get("RENAMED", {})
    return names


def refuse_old_key(cls: Any, key: Any, where: str) -> None:
    """Raise `UserError` if `key` of a file is an old name."""
    if isinstance(key, str) and (name := renamed_settings(cls).get(key)):
        raise UserError(f"{where}: {key!r} is now called {name!r}; rename it")


def refuse_old_flags(cls: Any, words: Sequence[str]) -> None:
    """Raise `UserError` if a word of the command line is an old flag."""
    flags = _old_flags(cls, "--")
    for word in words:
        flag = word.partition("=")[0].replace("_", "-")
        if new := _new_flag(flag, flags):
            raise UserError(f"{flag}: is now called {new}; rename it")
        if flag.startswith("--no-") and (new := _new_flag(f"--{flag[len('--no-') :]}", flags)):
            raise UserError(f"{flag}: is now called {new} False; rename it")


def _new_flag(flag: str, flags: dict[str, str]) -> str | None:
    """Return today's name of a flag that is an old one, or that belongs to a renamed group."""
    for old, new in flags.items():
        if flag == old or flag.startswith(f"{old}."):
            return f"{new}{flag[len(old) :]}"
    return None


def _old_flags(cls: Any, prefix: str) -> dict[str, str]:
    """Return the new flag of each old flag, those of groups included."""
    flags = {
        f"{prefix}{old}".replace("_", "-"): f"{prefix}{new}".replace("_", "-")
        for old, new in renamed_settings(cls).items()
    }
    kinds = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        if dataclasses.is_dataclass(kinds[field.name]):
            flags |= _old_flags(kinds[field.name], f"{prefix}{field.name}.")
    return flags
