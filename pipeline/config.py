"""Typed dataclass <- YAML <- command line, strict.

Every program describes its options in one dataclass. `--config file.yaml` changes defaults, later
flags change single fields, an unknown key is an error that lists the known ones. Nothing here
imports torch, so `--help`, `--dry-run` and config errors come in about a second.
"""

import argparse
import contextlib
import dataclasses
import hashlib
import io
import itertools
import json
import re
import sys
import types
import typing
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pipeline import ranks
from pipeline.errors import UserError
from pipeline.reading import shortened
from pipeline.renamed_settings import refuse_old_flags, refuse_old_key
from pipeline.setting_checks import check_number, check_values, flag_of
from pipeline.yaml_files import Layer, load_preset

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Invocation:
    """How a program was called, beside its config."""

    dry_run: bool
    debug: bool


def _coerce(value: Any, kind: Any, where: str, default: Any = None) -> Any:
    """Convert a YAML value to the annotated type, or raise `UserError` naming the key."""
    origin = typing.get_origin(kind)
    if kind is Any:
        return value
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        return from_mapping(kind, value, where, default)
    if origin in (typing.Union, types.UnionType):
        if value is None:
            return None
        kinds = [k for k in typing.get_args(kind) if k is not type(None)]
        return _coerce(value, kinds[0], where)
    if origin is typing.Literal:
        if value not in typing.get_args(kind):
            raise UserError(f"{where}: {_shown(value)} is not one of {list(typing.get_args(kind))}")
        return value
    if origin is tuple:
        return _coerce_items(value, typing.get_args(kind), where)
    if origin is dict:
        key_kind, value_kind = typing.get_args(kind)
        if isinstance(value, list | tuple) and value_kind is float:
            value = {_coerce(k, key_kind, where): 1.0 for k in value}  # names mean even shares
        if not isinstance(value, dict):
            raise UserError(f"{where}: expected a mapping, got {_shown(value)}")
        keys = {k: _coerce(k, key_kind, where) for k in value}
        return {keys[k]: _coerce(v, value_kind, f"{where}.{keys[k]}") for k, v in value.items()}
    return _coerce_plain(value, kind, where)


def _coerce_items(value: Any, kinds: tuple[Any, ...], where: str) -> tuple[Any, ...]:
    """Convert a YAML list to a tuple of the annotated types."""
    if isinstance(value, str) and kinds == (str, Ellipsis):
        value = [value]  # `data: folder` says the same as `data: [folder]`
    if not isinstance(value, list | tuple):
        raise UserError(f"{where}: expected a list, got {_shown(value)}")
    each = [kinds[0]] * len(value) if kinds[-1] is Ellipsis else list(kinds)
    if len(each) != len(value):
        raise UserError(f"{where}: expected {len(each)} values, got {len(value)}")
    return tuple(_coerce(v, k, where) for v, k in zip(value, each, strict=True))


def _coerce_plain(value: Any, kind: Any, where: str) -> Any:
    """Convert a YAML value to text, a path, a truth value or a number."""
    truth = isinstance(value, bool)
    if kind is float and isinstance(value, int | float | str) and not truth:
        try:
            value = float(value)  # YAML reads 1e-5 as text
        except (ValueError, OverflowError):
            raise UserError(f"{where}: {_shown(value)} is not a number") from None
        check_number(value, where)
        return value
    if kind in (str, Path):
        if not isinstance(value, str | kind):  # callers in Python may give paths
            advice = ", as YAML reads yes, no, on and off" if truth else ""
            raise UserError(
                f"{where}: expected text, got {_shown(value)}{advice}; put it in quotes"
            )
        if "\0" in str(value):
            raise UserError(f"{where}: {_shown(value)} holds a NUL character; leave it out")
        return kind(value)
    if not isinstance(value, kind) or (kind is int and truth):
        raise UserError(f"{where}: expected {kind.__name__}, got {_shown(value)}")
    if kind is int:
        check_number(value, where)
    return value


def _shown(value: Any) -> str:
    """Return a value as a message shows it."""
    return shortened(repr(value), 80)


def from_mapping(cls: type[T], mapping: Any, where: str, default: T | None = None) -> T:
    """Return `default` (or `cls()`) with the values of a mapping, nested dataclasses alike.

    Unknown keys are errors that list the known ones, or name the new name of an old one.
    """
    default = cls() if default is None else default
    if not isinstance(mapping, dict):
        raise UserError(f"{where}: expected a mapping of settings, got {_shown(mapping)}")
    kinds = typing.get_type_hints(cls)
    known = [f.name for f in dataclasses.fields(cls)]  # type: ignore[arg-type]
    unknown = [key for key in mapping if key not in known]
    if unknown:
        refuse_old_key(cls, unknown[0], where)
        raise UserError(
            f"{where}: unknown key {_shown(unknown[0])}; known keys: {', '.join(known)}"
        )
    values = {
        k: _coerce(v, kinds[k], f"{where}: {k}", getattr(default, k)) for k, v in mapping.items()
    }
    try:
        return dataclasses.replace(default, **values)  # type: ignore[type-var]
    except UserError as error:  # a range, which the dataclass checks
        text = str(error)
        raise UserError(text if text.startswith(where) else f"{where}: {text}") from None


def parse(
    cls: type[T],
    doc: str | None,
    argv: list[str] | None = None,
    *,
    defaults: Callable[[str], T] | None = None,
) -> tuple[T, Invocation]:
    """Return the config of this call: dataclass defaults, then `--config`, then single flags.

    `defaults` gives those that come with the base model, `--base` or the file's `base`, in place
    of the dataclass's own.
    """
    own, rest = _common_options(argv, with_base=defaults is not None)
    refuse_old_flags(cls, rest)
    layers = load_preset(own.config) if own.config else []
    default = None
    if defaults:
        default, rest = with_base(cls, defaults, layers, own.base, rest)
    default = from_layers(cls, layers, default)
    config = _read_flags(cls, rest, default, doc)
    check_values(config)
    ranks.check()
    return config, Invocation(dry_run=own.dry_run, debug=own.debug)


def _common_options(
    argv: list[str] | None, *, with_base: bool
) -> tuple[argparse.Namespace, list[str]]:
    """Return the options that all programs share, and the other words of the call."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--config", type=Path)
    parser.add_argument("--dry-run", action="store_true")
    parser.add_argument("--debug", action="store_true")
    if with_base:
        parser.add_argument("--base")
    try:
        return parser.parse_known_args(sys.argv[1:] if argv is None else argv)
    except argparse.ArgumentError as error:
        raise UserError(f"{error.argument_name}: {error.message}; see --help") from None


def _read_flags(cls: type[T], words: list[str], default: T, doc: str | None) -> T:
    """Return `default` with the settings that flags change; faults of tyro become one line."""
    import tyro

    description = (
        (doc or "").strip()
        + "\n\nAlso: --config FILE (YAML with any of the settings below), --dry-run (print the "
        "resolved settings and what would be done, then exit), --debug (show tracebacks)."
    )
    box = io.StringIO()
    try:
        with contextlib.redirect_stderr(box):
            return tyro.cli(
                cls,
                args=_spell_out(cls, words),
                default=default,
                description=description,
                config=(tyro.conf.OmitSubcommandPrefixes, tyro.conf.FlagConversionOff),
            )
    except SystemExit as stopped:
        if not stopped.code:  # --help
            raise
        raise UserError(_read_box(box.getvalue())) from None


def from_layers(cls: type[T], layers: Sequence[Layer], default: T | None = None) -> T:
    """Return `default` (or `cls()`) with the settings of a preset, see `yaml_files.load_preset`.

    A group of settings keeps what a later layer does not state; a list or mapping that is the value
    of one setting is replaced as a whole.
    """
    for layer in layers:
        default = from_mapping(cls, layer.settings, str(layer.path), default)
    return cls() if default is None else default


def with_base(
    cls: type[T],
    defaults: Callable[[str], T],
    layers: Sequence[Layer],
    flag: str | None,
    rest: list[str],
) -> tuple[T, list[str]]:
    """Return the defaults that come with the base model and `rest`.

    The model is the one that the flag names, or else the preset. `rest` are the words of the call,
    to which the flag is added.
    """
    stated = [layer.settings["base"] for layer in layers if "base" in layer.settings]
    named = flag if flag is not None else next(reversed(stated), None)
    base = named if isinstance(named, str) else cls().base  # type: ignore[attr-defined]
    return defaults(base), rest if flag is None else ["--base", flag, *rest]


def _read_box(box: str) -> str:
    """Return the fault in one of tyro's error boxes as one line, with the options it suggests."""
    rows = [row.strip(" \u2502") for row in box.splitlines()[1:]]  # drawn in ASCII in some places
    parts = re.split(r" ?[-\u2500]{9,} ?", " ".join(rows))
    fault = next(filter(None, parts), box.strip()).rstrip(".")
    similar = re.split("Perhaps you meant|Arguments similar", box, maxsplit=1)[1:]
    meant = re.findall(r"^\u2502? {5,6}(--[\w.-]+)", "".join(similar), re.MULTILINE)
    hint = f"did you mean {', '.join(dict.fromkeys(meant))}? " if meant else ""
    return f"{fault}; {hint}see --help"


def _spell_out(cls: type, words: list[str]) -> list[str]:
    """Let a bare `--flag` of a true-or-false setting mean `--flag True`."""
    flags = set(_truth_flags(cls))
    spelt = []
    for word, following in itertools.pairwise([*words, "--"]):
        spelt += [word, "True"] if word in flags and following.startswith("--") else [word]
    return spelt


def _truth_flags(cls: type, prefix: str = "") -> Iterator[str]:
    """Yield the flags of true-or-false settings, those of groups included."""
    for name, kind in typing.get_type_hints(cls).items():
        if kind is bool:
            yield flag_of(prefix, name)
        elif dataclasses.is_dataclass(kind):
            group = flag_of(prefix, name).removeprefix("--")
            yield from _truth_flags(typing.cast(type, kind), f"{group}.")


def to_mapping(config: Any) -> dict[str, Any]:
    """Return a config as plain JSON values."""
    return json.loads(json.dumps(dataclasses.asdict(config), default=str))


def show(config: Any) -> None:
    """Print a config as JSON, for --dry-run."""
    print(json.dumps(to_mapping(config), indent=2))


def digest(mapping: Any) -> str:
    """Return the first 16 hex digits of the SHA-256 of a JSON value with sorted keys."""
    text = json.dumps(mapping, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def differences(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> list[str]:
    """Return one `key: old -> new` line for every differing field, nested keys joined by dots."""
    lines = []
    for key in sorted(set(old) | set(new)):
        a, b = old.get(key), new.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            lines += differences(a, b, f"{prefix}{key}.")
        elif a != b:
            lines.append(f"{prefix}{key}: {a!r} -> {b!r}")
    return lines
