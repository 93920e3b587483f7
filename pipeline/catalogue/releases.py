"""Bring a released set back: every file that its SHA256SUMS names, continued and checked.

A release is a folder on a web server, behind an address that fsspec opens, or on this machine. It
appears under its name when all files are there with the right hash, or not at all.
"""

import contextlib
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from urllib.parse import quote

from pipeline import checksums, files, remote_files
from pipeline.catalogue.fetching import RemoteFile, fetch, verify
from pipeline.errors import UserError
from pipeline.reading import read_bytes

WEB = ("http://", "https://")
NEW_SUMS = f"{checksums.NAME}.new"


@dataclass(frozen=True)
class Release:
    """A released set in the catalogue."""

    address: str = ""
    """of its folder; a plain name is a folder beside the catalogue's files"""
    sha256: str = ""
    """of its SHA256SUMS; with it the address need not be trusted"""


@dataclass(frozen=True)
class ReleaseFile(RemoteFile):
    """A file of a release on a web server."""

    @property
    def remedy(self) -> str:
        """What a user can do if the server does not give the file."""
        return "check the address of the release"


def fetch_release(
    release: Release, output: Path, staging: Path, only: Sequence[str] = ()
) -> list[str]:
    """Bring the files of a release into the new folder `output`; return their names.

    They wait in `staging`. `only`: patterns of the names that are wanted.
    """
    require_own(staging)
    new_sums = staging / NEW_SUMS  # the old ones tell whose files wait, until these are whole
    _bring(release, RemoteFile(name=checksums.NAME, sha256=release.sha256), new_sums, again=True)
    data = read_bytes(new_sums, checksums.MAX_BYTES)
    sums = checksums.parse_sums(data, f"{release.address}/{checksums.NAME}")
    wanted = [name for name in sums if not only or any(fnmatch(name, p) for p in only)]
    if not wanted:
        raise UserError(f"--only {' '.join(only)}: fits no file of {release.address}; correct it")
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        require_same(output, data, wanted)
        shutil.rmtree(staging)
        return wanted
    kept = {NEW_SUMS, *wanted}
    for name in checksums.list_files(staging):
        if name.removesuffix(".part") not in kept:  # of other patterns, or of an older release
            (staging / name).unlink()
    os.replace(new_sums, staging / checksums.NAME)
    for name in wanted:
        _bring(release, RemoteFile(name=name, sha256=sums[name]), staging / name)
    for name in (*wanted, NEW_SUMS):
        (staging / f"{name}.part").unlink(missing_ok=True)
    files.sweep_temporaries(staging)
    os.sync()
    staging.rename(output)
    files.fsync_folder(output.parent)
    return wanted


def require_own(staging: Path) -> None:
    """Raise `UserError` if `staging`, which is emptied and renamed, holds files of others.

    What a stopped download left there are files that its SHA256SUMS names.
    """
    own: dict[str, str] = {}
    sums_file = staging / checksums.NAME
    with contextlib.suppress(UserError):  # absent, or of what was no release
        own = checksums.parse_sums(read_bytes(sums_file, checksums.MAX_BYTES), str(sums_file))
    for name in checksums.list_files(staging):
        whole = name.removesuffix(".part")
        if whole not in own and whole != NEW_SUMS:
            raise UserError(
                f"{staging / name}: is no file of a released set, and this folder is for one; "
                "move it, or choose another --output"
            )


def require_same(output: Path, sums: bytes, wanted: Sequence[str]) -> None:
    """Raise `UserError` unless an output that is there already holds these files of the release."""
    own = output / checksums.NAME
    same = own.is_file() and read_bytes(own, checksums.MAX_BYTES) == sums
    if not same or not all((output / name).is_file() for name in wanted):
        raise UserError(f"--output {output}: must be a new or empty folder")


def _bring(release: Release, file: RemoteFile, target: Path, *, again: bool = False) -> None:
    """Bring one file to `target`, unless it is there with the right hash."""
    if target.is_file() and not again:
        if checksums.hash_file(target) == file.sha256:
            return
        target.unlink()
    address = release.address.rstrip("/")
    where = f"{address}/{file.name}"
    if address.startswith(WEB):
        target.unlink(missing_ok=True)
        remote = ReleaseFile(
            name=Path(file.name).name, address=f"{address}/{quote(file.name)}", sha256=file.sha256
        )
        fetch(remote, target)
        return
    here = remote_files.local_path(address)
    if here is None:
        remote_files.open_store(address).download(file.name, target)
    else:
        _copy(here / file.name, target)
    try:
        verify(target, file, where)
    except UserError:
        target.unlink()
        raise


def _copy(source: Path, target: Path) -> None:
    if not source.is_file():
        raise UserError(f"{source}: no such file; is its folder a release of pipeline/release.py?")
    files.place(source, target, "copy")
