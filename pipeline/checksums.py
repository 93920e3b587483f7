"""SHA256SUMS: the hash of every file of a folder, in the form of `sha256sum`.

sha256sum --check SHA256SUMS
"""

import hashlib
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from pipeline import files
from pipeline.errors import UserError
from pipeline.parallel import thread_pool
from pipeline.paths import check_relative, find_conflict

NAME = "SHA256SUMS"
LINE = re.compile(r"([0-9a-fA-F]{64}) [ *](.+)")
MAX_BYTES = 64 << 20
MAX_FILES = 500_000


def hash_file(path: Path) -> str:
    """Return the hexadecimal SHA-256 of a file."""
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def list_files(folder: Path) -> list[str]:
    """Return the relative names of all files below a folder but its sums and temporary ones."""
    names = (
        str(Path(place, name).relative_to(folder))
        for place, _, found in os.walk(folder)
        for name in found
        if files.TEMPORARY_MARK not in name
    )
    return sorted(name for name in names if name != NAME)


def hash_files(folder: Path, names: Sequence[str]) -> dict[str, str]:
    """Return the SHA-256 of files of a folder by name."""
    with thread_pool() as pool:
        found = pool.map(lambda name: hash_file(folder / name), names)
        return dict(zip(names, found, strict=True))


def write_sums(folder: Path, known: Mapping[str, str]) -> None:
    """Write SHA256SUMS over all files of a folder; those with `known` hashes are not read again."""
    names = list_files(folder)
    sums = {**known, **hash_files(folder, [name for name in names if name not in known])}
    text = "".join(f"{sums[name]}  {name}\n" for name in names)
    files.write_bytes(folder / NAME, text.encode())


def parse_sums(data: bytes, where: str) -> dict[str, str]:
    """Return the hashes of a SHA256SUMS by name, or raise `UserError`."""
    sums: dict[str, str] = {}
    try:
        lines = data.decode().splitlines()
        if len(lines) > MAX_FILES:
            raise ValueError(f"names more than {MAX_FILES} files")
        for line in lines:
            match = LINE.fullmatch(line)
            if not match:
                raise ValueError(f"{line[:100]!r} is not a line of `sha256sum`")
            check_relative(match[2])
            if files.TEMPORARY_MARK in match[2] or re.search(r"\.part(/|$)", match[2]):
                raise ValueError(f"{match[2][:100]} is the name of an unfinished file")
            if match[2] in sums or match[2] == NAME:
                raise ValueError(f"names {match[2][:100]} twice, or itself")
            sums[match[2]] = match[1].lower()
        if not sums:
            raise ValueError("names no file")
        if conflict := find_conflict({*sums, NAME}):
            above, below = (name[:100] for name in conflict)
            raise ValueError(f"names the file {above} and below that name {below}")
    except ValueError as error:
        raise UserError(f"{where}: {error}; is this the address of a released set?") from None
    return sums
