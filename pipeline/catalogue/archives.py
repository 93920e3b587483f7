"""Unpack zip and tar files member by member: plain files with plain names, within limits.

Nothing is "extracted": names are checked, contents are copied, and everything else that an archive
can hold is refused. The folder appears under its name when it is whole, or not at all.
"""

import contextlib
import errno
import glob
import gzip
import lzma
import os
import shlex
import shutil
import stat
import struct
import sys
import tarfile
import unicodedata
import uuid
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from pipeline import files
from pipeline.errors import UserError, one_line
from pipeline.reading import open_regular, pointer_remedy, shortened

CHUNK_BYTES = 1 << 20
SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz")
ZIP_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)
MAX_NAME = 1000  # characters with all folders: file systems end at 4096 bytes
MAX_MEMBERS = 500_000
MAX_GROWTH = 50  # times the archive's size, on top of the spare: images hardly shrink
SPARE_BYTES = 1 << 30
LITTER = ("__MACOSX", ".DS_Store", "Thumbs.db", "desktop.ini", "@eaDir")
"""Names that file managers leave in archives, beside those that begin with `._` (AppleDouble)."""
DAMAGE = (tarfile.TarError, zipfile.BadZipFile, gzip.BadGzipFile, zlib.error, lzma.LZMAError,
          EOFError, NotImplementedError, ArithmeticError, LookupError, RecursionError, struct.error,
          ValueError)  # fmt: skip
OTHER_FORMATS = {  # sound archives that are not read here, by how they start
    b"\xfd7zXZ\0": "tar -xJf", b"BZh": "tar -xjf", b"\x28\xb5\x2f\xfd": "tar --zstd -xf",
    b"7z\xbc\xaf\x27\x1c": "7z x", b"Rar!": "7z x", b"MZ": "7z x", b"PK\x07\x08": "7z x",
    b"xar!": "7z x", b"\x1f\x9d": "tar -xZf", b"\x5d\0\0": "tar --lzma -xf",
    b"\x04\x22\x4d\x18": "tar -I lz4 -xf",
}  # fmt: skip


class _Unsupported(Exception):
    """The archive may be whole, but only another program reads it; holds that command."""


class _Bounded:
    """A tar stream of bounded length: headers name sizes, and a few bytes of gzip hold many."""

    def __init__(self, stream: Any, budget: int) -> None:
        self.tell, self._stream, self._budget = stream.tell, stream, budget

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= 16 * CHUNK_BYTES:
            raise ValueError("a header is too long")
        self._check(self._stream.tell() + size)
        return self._stream.read(size)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._check(offset)  # tarfile seeks from the start alone
        return self._stream.seek(offset, whence)

    def _check(self, end: int) -> None:
        if end > self._budget:
            raise ValueError("it unpacks to far too much")


def unpack(
    sources: dict[str, Path], output: Path, record: dict[str, Any], *, plain: bool = False
) -> int:
    """Unpack archives (name -> path) into a new folder and return the number of its files.

    `plain` places files that are not called like an archive as they are. Folders that enclose all
    the rest are left out, and so is, with a notice, what file managers add. `record` is stored as
    download.json beside the files.
    """
    mark = f"{output.name}{files.TEMPORARY_MARK}"
    staging = output.with_name(f"{mark}{os.getpid()}-{uuid.uuid4().hex[:8]}")
    for left in filter(files.is_abandoned, output.parent.glob(f"{glob.escape(mark)}*")):
        shutil.rmtree(left)
    seen: dict[str, Path] = {}
    litter: list[str] = []
    try:
        staging.mkdir(parents=True)
        for name, path in sources.items():
            with _naming(path, output):
                for member, stream in _members(name, path, plain):
                    if is_litter(member):
                        litter.append(member)
                    else:
                        _extract(staging, member, stream, path, seen)
        if not seen:
            raise UserError(
                f"{', '.join(map(str, sources.values()))}: no file is in it; get the archive from "
                "its source again"
            )
        root = _innermost(staging)
        if (root / "download.json").is_dir():
            raise UserError(f"{output}: the archive has a folder download.json; unpack it yourself")
        files.write_json(root / "download.json", {**record, "num_files": len(seen)})
        os.sync()  # once for all files: fsync of each takes minutes for a set of 50,000
        os.rename(root, output)
        files.fsync_folder(output.parent)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    if litter:
        some = shortened(", ".join(litter[:3]))
        print(f"notice: {len(litter)} files of file managers are left out: {some}", file=sys.stderr)
    return len(seen)


@contextlib.contextmanager
def _naming(archive: Path, output: Path) -> Iterator[None]:
    """Turn what is wrong with an archive into one line that names it; faults of the disk pass."""
    try:
        yield
    except _Unsupported as error:
        raise UserError(
            f"{archive}: is not a zip, tar or tar.gz that can be read here; unpack it yourself"
            f" into {output} ({error} {shlex.quote(archive.name)}) and prepare it with "
            f"pipeline/prepare.py --root {output}"
        ) from None
    except (*DAMAGE, OSError) as error:
        if not isinstance(error, DAMAGE) and error.errno != errno.EINVAL:
            raise  # of the disk; a damaged zip leads before its first byte, which is EINVAL
        reason = "its headers go too deep" if isinstance(error, RecursionError) else error
        raise UserError(
            f"{archive}: {one_line(str(reason))}; nothing was unpacked, get the archive from "
            "its source again"
        ) from None


def _innermost(folder: Path) -> Path:
    """Return the folder without those that enclose all the rest."""
    while len(inside := list(folder.iterdir())) == 1 and inside[0].is_dir():
        folder = inside[0]
    return folder


def is_litter(name: str) -> bool:
    """Tell whether a member is what a file manager adds to the files of others."""
    return any(part in LITTER or part.startswith("._") for part in name.split("/"))


def _extract(
    staging: Path, name: str, stream: IO[bytes], source: Path, seen: dict[str, Path]
) -> None:
    """Write one member below `staging`; names must be plain and differ on every file system."""
    parts = name.removeprefix("./").split("/")
    # printable excludes control characters, NUL and bytes that are no text
    long = max(map(len, parts)) > 200 or len(name) > MAX_NAME
    if not name.isprintable() or "\\" in name or long:
        raise ValueError(f"member {name[:200]!r} has characters that no file name should have")
    if any(part in ("", ".", "..") for part in parts):
        raise ValueError(f"member {name!r} points outside the folder")
    key = unicodedata.normalize("NFKC", "/".join(parts)).casefold()
    if key in seen and seen[key] != source and len(parts) == 1:
        return  # the README and licence that come with each archive of a set
    if key in seen:
        raise ValueError(f"member {name!r} occurs twice, or differs from another only in case")
    seen[key] = source
    target = staging.joinpath(*parts)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        handle = open(target, "xb")  # noqa: SIM115 - closed by the block below
    except (FileExistsError, NotADirectoryError, IsADirectoryError):
        raise ValueError(f"member {name!r} needs a folder where another is a file") from None
    with handle:
        shutil.copyfileobj(stream, handle, CHUNK_BYTES)


def _members(name: str, path: Path, plain: bool) -> Iterator[tuple[str, IO[bytes]]]:
    """Yield (name, content) of the files of a zip, tar or tar.gz while it stays within limits."""
    with open_regular(path) as handle:
        budget = SPARE_BYTES + MAX_GROWTH * os.fstat(handle.fileno()).st_size
        start = handle.read(512)
        handle.seek(0)
        if plain and not name.lower().endswith(SUFFIXES):
            yield name, handle
            return
        if start.startswith(b"PK") and not start.startswith(tuple(OTHER_FORMATS)):
            found = _zip_members(handle)
        elif start.startswith(b"\x1f\x8b"):
            found = _tar_members(gzip.GzipFile(fileobj=handle), 2 * budget)
        elif start[257:262] == b"ustar":
            found = _tar_members(handle, 2 * budget)  # twice: headers and padding
        else:
            for mark, command in OTHER_FORMATS.items():
                if start.startswith(mark):
                    raise _Unsupported(command)
            if remedy := pointer_remedy(path):
                raise UserError(f"{path}: {remedy}")
            raise ValueError("neither a zip, a tar nor a tar.gz file (a saved web page?)")
        for number, (member, size, stream) in enumerate(found):
            budget -= size  # what a member claims; the readers hold it to that
            if number >= MAX_MEMBERS or size < 0 or budget < 0:
                raise ValueError(f"member {member[:200]!r} makes it unpack to far too much")
            if stream is not None:
                yield member, stream


def _zip_members(handle: IO[bytes]) -> Iterator[tuple[str, int, IO[bytes] | None]]:
    with zipfile.ZipFile(handle) as archive:
        for info in archive.infolist():
            name, kind = info.orig_filename, stat.S_IFMT(info.external_attr >> 16)
            name = name.replace("\\", "/")  # some programs of Windows write these
            if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise ValueError(f"member {name!r} is a link or a device")
            if info.flag_bits & 1 or info.compress_type not in ZIP_METHODS:
                raise _Unsupported("7z x")
            folder = name.endswith("/")
            yield name, info.file_size, None if folder else archive.open(info)


def _tar_members(stream: Any, budget: int) -> Iterator[tuple[str, int, IO[bytes] | None]]:
    bounded = _Bounded(stream, budget)
    with tarfile.open(fileobj=bounded, mode="r:") as archive:  # type: ignore[call-overload]
        for info in archive:
            if not (info.isreg() or info.isdir()) or info.issparse():
                raise ValueError(f"member {info.name!r} is a link, a device or sparse")
            content = archive.extractfile(info)
            yield info.name, info.size, content  # of a folder: none
            archive.members.clear()  # tarfile remembers every header
        bounded.seek(archive.offset)
        if bounded.read(512) != bytes(512):  # tarfile takes garbage after a member for the end
            raise tarfile.ReadError("the archive ends early")
