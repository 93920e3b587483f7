"""Checks of settings: finite numbers, ranges, seeds, text, folders, installed extras."""

import dataclasses
import importlib.util
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.errors import UserError
from pipeline.reading import shortened

LARGEST = 10**15  # of any number in a setting: whole numbers up to there are exact as floats


def check_number(value: float, where: str) -> None:
    """Raise `UserError` for what no setting can mean: not finite, or beyond `LARGEST`."""
    if not abs(value) <= LARGEST:  # not a number is not
        shown = f"{value:.3g}" if isinstance(value, float) else shortened(value, 30)
        raise UserError(f"{where} {shown}: must be a number from -{LARGEST:.0e} to {LARGEST:.0e}")


def _is_text(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def check_values(config: Any, prefix: str = "") -> None:
    """Raise `UserError` for numbers beyond reason and for what is no text in a config.

    Names in other encodings than UTF-8 could not be recorded with what is made of them. `prefix`
    is the flag of the group.
    """
    for item in dataclasses.fields(config):
        value, flag = getattr(config, item.name), flag_of(prefix, item.name)
        if dataclasses.is_dataclass(value):
            check_values(value, f"{flag.removeprefix('--')}.")
        parts = value if isinstance(value, tuple | list) else (value,)
        if isinstance(value, dict):
            parts = (*value, *value.values())
        for part in parts:
            if isinstance(part, int | float):
                check_number(part, flag)
                if item.name == "seed":
                    require_seed(part, flag)
            if isinstance(part, str | Path) and not _is_text(str(part)):
                raise UserError(f"{flag} {ascii(str(part))}: is not UTF-8; rename it")


def require_extra(setting: str, module: str, extra: str) -> None:
    """Raise `UserError` if the package that a setting needs is not installed."""
    if importlib.util.find_spec(module) is None:
        raise UserError(
            f"{setting}: needs {module}, which is not installed; "
            f"pip install -e '.[{extra}]', or leave the setting at its default"
        )


def require_positive(config: Any, *names: str, prefix: str = "") -> None:
    """Raise `UserError` unless every named numeric setting is above zero."""
    for name in names:
        value = getattr(config, name)
        if not value > 0:  # not a number is not
            rule = "above 0" if isinstance(value, float) else "1 or more"
            raise UserError(f"{flag_of(prefix, name)} {value:.12g}: must be {rule}")


def require_each_once(setting: str, folders: Sequence[str | Path]) -> None:
    """Raise `UserError` if a folder is named twice: its samples would count twice.

    Addresses are compared as they are written.
    """
    seen = set()
    for folder in folders:
        place = os.path.realpath(folder)  # `resolve` raises for a loop of links
        if place in seen:
            raise UserError(f"{setting} {folder}: is named twice; name each folder once")
        seen.add(place)


def require_seed(seed: Any, setting: str = "--seed", largest: int = LARGEST) -> None:
    """Raise `UserError` unless `seed` is one that numpy and torch take.

    `parse` calls it for every setting of the name `seed`.
    """
    if type(seed) is not int or not 0 <= seed <= largest:
        shown = shortened(seed, 30)
        raise UserError(f"{setting} {shown}: must be 0 or more, a whole number up to {largest}")


def require_between(config: Any, low: float, high: float, *names: str, prefix: str = "") -> None:
    """Raise `UserError` unless every named numeric setting lies in low..high, both included."""
    rule = f"{low:g} or more" if high == math.inf else f"in {low:g}..{high:.15g}"
    for name in names:
        value = getattr(config, name)
        if not low <= value <= high:
            raise UserError(f"{flag_of(prefix, name)} {value:.12g}: must be {rule}")


def flag_of(prefix: str, name: str) -> str:
    """Return the flag of a setting; `prefix` is the flag of its group with a dot, or empty."""
    return f"--{prefix}{name.replace('_', '-')}"
