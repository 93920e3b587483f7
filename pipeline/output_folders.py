"""May a program write into this folder? One rule for all programs, one marker for each kind.

A program writes into a folder that

1. lies apart from the folders that the program reads,
2. is a folder or is not there yet: no file, no link to nothing, no address of another machine,
3. holds nothing of others: it is new, empty, or has the marker of its own kind,
4. was begun with the same settings, if it has a marker; every difference is named,
5. holds no link, pipe or device under the names that the program writes,
6. can be written to.

`check_output`, `require_same` and `require_new` check rules 1 to 5 and write nothing,
`require_writable` checks rule 6, `write_marker` begins the folder. Hidden files, temporary files of
ours and log files of launchers belong to nobody and are never in the way. What a file may replace
is in `pipeline.output_files`.
"""

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from pipeline import files
from pipeline.config import differences, digest
from pipeline.errors import UserError
from pipeline.output_entries import (
    FILE_SUFFIXES,
    Contents,
    check_below,
    entries,
    folder_exists,
    require_kind,
)
from pipeline.reading import read_json, shortened

SETTING = "--output"
LAUNCHER_LOGS = (".log", ".out", ".err")
SHOWN_DIFFERENCES = 6


@dataclass(frozen=True)
class FolderKind:
    """A kind of folder that programs write and continue."""

    name: str
    """what messages call it"""
    content: str
    """what messages call the thing that it holds"""
    marker: str
    """name, or pattern of names, of the JSON file that says what the folder holds"""
    early: tuple[str, ...] = ()
    """patterns of names that may be there before the marker"""
    folders: Mapping[str, Contents] = field(default_factory=dict)
    """names of folders inside"""
    rows: str = ""
    """pattern of files whose rows carry the digest of the settings, as the marker does"""
    is_moved_in: bool = False
    """it is made elsewhere and renamed, so that not even a hidden file may be in its place"""
    is_flat: bool = False
    """the marker holds the settings themselves, not under the key `config`"""


RUN = FolderKind(
    "run folder",
    "run",
    "config.json",
    # of an interrupted start
    early=("checkpoints", "claims", "logs", "metrics.jsonl", "tensorboard"),
    folders=dict.fromkeys(
        (
            "checkpoints", "claims", "tensorboard", "averages", "cache", "previews", "predictions",
            "base", "unet", "controlnet", "vae", "backbone", "lora", "ids", "color", "overlay",
            "cityscapes",
        ),
        "all",
    ),
)  # fmt: skip
DATASET = FolderKind(
    "dataset folder",
    "run",
    "run.json",
    early=("claims", "status.json", "label_maps.json", "precision.json"),
    folders={"images": "folders", "labels": "folders", "claims": "files"},
    rows="metadata*.jsonl",
)
EXPORT = FolderKind("export", "export", "export*.json", is_flat=True)
DOWNLOAD = FolderKind("download", "download", "download.json", is_moved_in=True, is_flat=True)
RELEASE = FolderKind("release", "release", "release.json", is_moved_in=True, is_flat=True)
MODEL = FolderKind("model folder", "model", "config.json", early=("*.safetensors",), is_flat=True)
MARKED = (RELEASE, DATASET, RUN, EXPORT, DOWNLOAD)  # in the order in which a folder is recognised


def check_output(
    folder: Path,
    kind: FolderKind,
    *,
    inputs: Mapping[str, Path | Sequence[Path]] | None = None,
    setting: str = SETTING,
) -> None:
    """Raise `UserError` unless rules 1, 2, 3 and 5 allow to write a folder of a kind.

    `inputs` are the folders that the program reads, by the setting that names them; `setting` is
    the one that names `folder`. Nothing is written.
    """
    exists = folder_exists(folder, setting)
    require_apart(folder, inputs or {}, setting)
    if not exists:
        return
    if not has_marker(folder, kind):
        found = [e.name for e in entries(folder, setting) if not _is_early(e, kind)]
        foreign = next(iter(found), "")
        # The main process of this run may have begun the folder meanwhile
        if foreign and not has_marker(folder, kind) and not _has_rows(folder, kind):
            raise UserError(
                f"{folder}: {_content(folder, kind, foreign)} and has no {kind.marker}, the mark "
                f"of {_a(kind.name)}; choose another {setting}"
            )
    _check_entries(folder, kind, setting)


def require_new(folder: Path, setting: str = SETTING) -> None:
    """Raise `UserError` unless a folder is new or empty: it is never continued."""
    found = list(entries(folder, setting)) if folder_exists(folder, setting) else []
    if found:
        raise UserError(
            f"{folder}: holds {found[0].name} and is not empty; choose another {setting}"
        )


def require_same(
    folder: Path,
    kind: FolderKind,
    config: Mapping[str, Any],
    *,
    marker: str = "",
    row_digests: set[str] | None = None,
    setting: str = SETTING,
) -> None:
    """Raise `UserError` if a folder was begun with other settings than `config` (rule 4).

    `marker` is the name of the marker where a kind has several. Rows whose digests are all those
    of `config` stand for a lost or damaged marker.
    """
    path = folder / (marker or kind.marker)
    stored = stored_config(folder, kind, marker)
    if stored is None:
        if not path.exists() and not row_digests:
            return
        if row_digests == {digest(dict(config))}:
            return
        rows = ""
        if row_digests:
            others = ", ".join(sorted(row_digests - {digest(dict(config))})[:3])
            rows = f", and rows are of another {kind.content} ({others})"
        what = "is missing" if not path.exists() else f"is damaged, or not of {_a(kind.content)}"
        raise UserError(
            f"{path}: {what}{rows}; restore it from a copy, repeat the very command that made the "
            f"folder, or choose another {setting}"
        )
    refuse_differences(folder, kind, differences(stored, dict(config)), setting)


def refuse_differences(
    folder: Path, kind: FolderKind, lines: Sequence[str], setting: str = SETTING
) -> None:
    """Raise `UserError` if there are differences between a folder's settings and those wanted."""
    if not lines:
        return
    remedy = "repeat the command that began it"
    begun = [e for e in entries(folder, setting) if not fnmatch(e.name, kind.marker)]
    nothing = all(_is_early(entry, kind) for entry in begun) and not _has_checkpoint(folder)
    if nothing and not kind.is_flat:  # flat markers come with or after the results
        remedy = f"delete {folder / kind.marker}, nothing was made yet"
    more = len(lines) - SHOWN_DIFFERENCES
    shown = "; ".join(lines[:SHOWN_DIFFERENCES]) + (f"; {more} more" if more > 0 else "")
    raise UserError(
        f"{folder}: holds another {kind.content} ({shown}); choose another {setting}, or {remedy}"
    )


def write_marker(
    folder: Path,
    kind: FolderKind,
    config: Mapping[str, Any],
    *,
    marker: str = "",
    provenance: Mapping[str, Any] | None = None,
) -> None:
    """Begin a folder; a marker that is there stays, one that was lost or damaged is written again.

    `provenance` (versions, say) stands beside `config` and is never compared. Call `require_same`
    before.
    """
    path = folder / (marker or kind.marker)
    if stored_config(folder, kind, marker) is not None:
        return
    record = dict(config)
    if not kind.is_flat:
        record = {**(provenance or {}), "config": dict(config), "digest": digest(dict(config))}
    if path.exists() or _has_rows(folder, kind):
        files.write_json(path, record)
        print(f"streetforge: {path}: was missing or damaged, written again", file=sys.stderr)
    else:
        files.create(path, files.json_bytes(record))


def stored_config(folder: Path, kind: FolderKind, marker: str = "") -> dict[str, Any] | None:
    """Return the settings that a folder was begun with, None if they are absent or damaged."""
    try:
        record = read_json(folder / (marker or kind.marker), dict)
    except UserError:
        return None
    config = record if kind.is_flat else record.get("config")
    return config if isinstance(config, dict) else None


def has_marker(folder: Path, kind: FolderKind) -> bool:
    """Tell whether a folder holds a marker of a kind, sound or not."""
    return any(folder.glob(kind.marker))


def require_apart(
    folder: Path,
    inputs: Mapping[str, Path | Sequence[Path]],
    setting: str = SETTING,
    *,
    way_out: str = "",
) -> None:
    """Raise `UserError` if an output folder lies in an input folder, or holds one (rule 1).

    `way_out` is the end of the message where a program has a second remedy.
    """
    here = folder.resolve()
    for name, value in inputs.items():
        for path in (value,) if isinstance(value, Path) else value:
            there = path.resolve()
            verb = "lies in" if here.is_relative_to(there) else "holds"
            if verb == "lies in" or there.is_relative_to(here):
                raise UserError(
                    f"{setting} {folder}: {verb} {name} {path}, and results would mix with input; "
                    f"choose another {setting}{way_out}"
                )


def require_writable(folder: Path, setting: str = SETTING) -> None:
    """Create `folder` and prove that a file can be written there, or raise `UserError` (rule 6)."""
    probe = files.temporary_name(folder / ".probe")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"x")
        probe.unlink()
    except OSError as error:
        raise UserError(
            f"{shortened(folder)}: cannot be written ({error.strerror}); choose another {setting}"
        ) from None


def _is_early(entry: os.DirEntry[str], kind: FolderKind) -> bool:
    """Tell whether an entry may lie there before the marker: of this kind, or of nobody."""
    name = entry.name
    if kind.is_moved_in:
        return False
    nobody = name.startswith(".") or files.TEMPORARY_MARK in name or name.endswith(LAUNCHER_LOGS)
    return nobody or any(fnmatch(name, pattern) for pattern in kind.early)


def _has_rows(folder: Path, kind: FolderKind) -> bool:
    return bool(kind.rows) and any(folder.glob(kind.rows))


def _has_checkpoint(folder: Path) -> bool:
    return any(folder.glob("checkpoints/step-*/complete.json"))


def _content(folder: Path, kind: FolderKind, name: str) -> str:
    """Return what a folder holds in place of a marker of `kind`."""
    others = (k.name for k in MARKED if k.marker != kind.marker and has_marker(folder, k))
    other = next(others, None)
    return f"is {_a(other)}" if other else f"holds {name}"


def _a(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeio' else 'a'} {noun}"


def _check_entries(folder: Path, kind: FolderKind, setting: str) -> None:
    """Raise `UserError` for a link, a pipe or the wrong kind of entry in a folder (rule 5).

    Names that no program gives may be anything; nothing below a link is looked at.
    """
    for entry in entries(folder, setting):
        path = Path(entry.path)
        if contents := kind.folders.get(entry.name):
            require_kind(path, folder=True, setting=setting)
            check_below(path, contents, setting)
        elif path.suffix in FILE_SUFFIXES:
            require_kind(path, folder=False, setting=setting)
