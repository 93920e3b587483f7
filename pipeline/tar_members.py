"""Members of tar shards as paths, so that programs read a sample without unpacking its shard.

    webdataset/train-000000.tar/1536-20480/00000012.png

Behind the shard stand the first byte and the number of bytes of the member, then the name that it
has for a reader. A tar file is not compressed, so a member is one read. The shard is a file here or
an address that fsspec opens, `s3://bucket/set/train-000000.tar/...` say.
"""

from __future__ import annotations

import io
import os
import re
import stat
import tarfile
from dataclasses import dataclass
from pathlib import Path

from pipeline.addresses import address_of, open_address
from pipeline.errors import UserError

PATTERN = re.compile(r"(.+\.tar)/(\d{1,15})-(\d{1,10})/([^/]+)")
MAX_MEMBER_BYTES = 512 << 20
RENEW = "download the shard again"


@dataclass(frozen=True)
class Member:
    """Where the bytes of a member lie: `num_bytes` from `start` on in the file `shard`."""

    shard: str
    start: int
    num_bytes: int


def member_name(shard: str, start: int, num_bytes: int, name: str) -> str:
    """Return the path of a member; `name` is what a reader shall take it for."""
    return f"{shard}/{start}-{num_bytes}/{name}"


def find_member(path: str | Path) -> Member | None:
    """Return the member that a path names, None where it names a file of its own."""
    text = str(path)
    match = PATTERN.fullmatch(text) if ".tar/" in text else None
    if match is None:
        return None
    return Member(address_of(match[1]) or match[1], int(match[2]), int(match[3]))


def read_member(member: Member, path: str | Path) -> bytes:
    """Return the bytes of a member; `path` names it in errors."""
    if member.num_bytes > MAX_MEMBER_BYTES:
        raise UserError(f"{path}: is larger than {MAX_MEMBER_BYTES / 1e6:.0f} MB; {RENEW}")
    try:
        data = _read_remote(member) if address_of(member.shard) else _read_local(member)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    except Exception as error:  # stores raise all kinds
        reason = getattr(error, "strerror", None) or f"{type(error).__name__} {error}"
        raise UserError(f"{path}: the shard cannot be read ({reason}); {RENEW}") from None
    if len(data) != member.num_bytes:
        raise UserError(f"{path}: the shard ends before it; {RENEW}")
    return data


def add_member(archive: tarfile.TarFile, name: str, data: bytes) -> int:
    """Append a file whose header depends on name and size alone; return where its bytes begin."""
    member = tarfile.TarInfo(name)  # time 0, owner 0, no names
    member.size, member.mode = len(data), 0o644
    archive.addfile(member, io.BytesIO(data))
    return archive.offset - -(-len(data) // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE


def file_of(path: str | Path) -> Path:
    """Return the file on this disk in which a file or a member lies: the member's shard."""
    member = find_member(path)
    return Path(member.shard if member else path)


def file_size(path: Path) -> int:
    """Return the bytes of a file or of a member."""
    member = find_member(path)
    return member.num_bytes if member else os.stat(path).st_size


def _read_local(member: Member) -> bytes:
    if not stat.S_ISREG(os.stat(member.shard).st_mode):
        raise ValueError("it is not a regular file")
    handle = os.open(member.shard, os.O_RDONLY)
    try:
        return os.pread(handle, member.num_bytes, member.start)
    finally:
        os.close(handle)


def _read_remote(member: Member) -> bytes:
    system, path = open_address(member.shard)
    return system.cat_file(path, start=member.start, end=member.start + member.num_bytes)
