"""Files behind addresses that fsspec opens: `s3://`, `gs://`, `https://`, `memory://`.

Object stores have no rename and no folders, but a file appears there when it is whole. So what is
written goes up file by file, and the file that tells that all are there goes last.
"""

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline import files, proof
from pipeline.addresses import address_of, open_address, store_failure
from pipeline.errors import UserError
from pipeline.parallel import thread_pool
from pipeline.paths import check_relative, find_conflict

BUCKETS = ("s3://", "s3a://", "gs://", "gcs://")
"""Stores whose clients create a missing bucket where a folder is asked for."""
LOCAL = ("file", "local")
CHANGING = (".json", ".jsonl", ".md")  # rows and marks, which may change and keep their size


@dataclass(frozen=True)
class Store:
    """A folder or file behind an address; names are relative to it, empty for itself."""

    address: str
    system: Any
    root: str

    def path(self, name: str) -> str:
        """Return what the file system calls `name`."""
        return f"{self.root.rstrip('/')}/{name}" if name else self.root

    def call(self, what: str, work: Callable[[], Any]) -> Any:
        """Return what `work` returns; whatever a store raises is one line that names it."""
        try:
            return work()
        except UserError:
            raise
        except Exception as error:  # clients of stores raise all kinds
            raise store_failure(self.address, what, error) from None

    def read(self, name: str = "", start: int = 0, num_bytes: int | None = None) -> bytes:
        """Return the bytes of a file, or a part of them."""
        end = None if num_bytes is None else start + num_bytes
        path = self.path(name)
        return self.call("read", lambda: self.system.cat_file(path, start=start, end=end))

    def read_optional(self, name: str) -> bytes | None:
        """Return the bytes of a file, None where it is absent.

        Stores that nobody may list answer for an absent file that reading it is not allowed. Only
        there it counts as absent, with a notice.
        """

        def read() -> bytes | None:
            try:
                return self.system.cat_file(self.path(name))
            except FileNotFoundError:
                return None
            except PermissionError as error:
                if self._may_list():
                    raise store_failure(f"{self.address}/{name}", "read", error) from None
                print(
                    f"notice: {self.address}: neither {name} nor the list of files may be read; "
                    f"{name} counts as absent",
                    file=sys.stderr,
                )
                return None

        return self.call("read", read)

    def _may_list(self) -> bool:
        try:
            self.system.ls(self.root)
        except FileNotFoundError:
            return True
        except PermissionError:
            return False
        return True

    def write(self, name: str, data: bytes) -> None:
        """Write bytes to `name`."""
        self._write(name, lambda path: self.system.pipe_file(path, data))

    def sizes(self) -> dict[str, int]:
        """Return the bytes of every file below the address, by relative name."""

        def listed() -> dict[str, int]:
            if hasattr(self.system, "invalidate_cache"):
                self.system.invalidate_cache()
            if not self.system.exists(self.root):
                self.require_bucket()
                return {}
            return {name: info["size"] for name, info in self.found().items()}

        return self.call("listed", listed)

    def require_bucket(self) -> None:
        """Raise `UserError` if the bucket does not exist; it costs money, so nobody creates it."""
        bucket = self.root.partition("/")[0]
        if not self.address.startswith(BUCKETS) or self.system.exists(bucket):
            return
        try:
            self.system.ls(bucket)
        except FileNotFoundError:
            raise UserError(
                f"{self.address}: there is no bucket {bucket}; create it, or correct the address"
            ) from None
        except PermissionError:  # of those who may write and not list
            pass

    def found(self) -> dict[str, Any]:
        """Return what the file system says of every file below the address."""
        prefix = self.root.rstrip("/") + "/"
        found = self.system.find(self.root, detail=True)
        return {
            path.removeprefix(prefix): info
            for path, info in found.items()
            if path.startswith(prefix) and not path.endswith("/")
        }

    def upload(self, source: Path, name: str) -> None:
        """Write a file of this machine to `name`."""
        self._write(name, lambda path: self.system.put_file(str(source), path))

    def _write(self, name: str, put: Callable[[str], None]) -> None:
        def write() -> None:
            if not self.address.startswith(BUCKETS):
                self.system.makedirs(os.path.dirname(self.path(name)), exist_ok=True)
            put(self.path(name))

        self.call("written", write)

    def download(self, name: str, target: Path) -> None:
        """Bring a file to this machine; it is whole or absent there."""
        check_name(self.address, name)
        with files.replacing(target) as temporary:
            self.call("read", lambda: self.system.get_file(self.path(name), str(temporary)))


def check_name(where: str, name: str) -> None:
    """Raise `UserError` unless a name that a store gives is fit for a file below a folder."""
    try:
        check_relative(name)
    except ValueError as error:
        raise UserError(f"{where}: {error}; rename the file there") from None


def local_path(text: str) -> Path | None:
    """Return the path of this machine that a setting names, None for an address elsewhere.

    `file:///data/set` is such a path.
    """
    address = address_of(text)
    if address is None:
        return Path(text)
    scheme, _, rest = address.partition("://")
    return Path("/" + rest.lstrip("/")) if scheme in LOCAL else None


def open_store(text: str | Path) -> Store:
    """Return the store behind an address (see `open_address`)."""
    address = address_of(text)
    if address is None:
        raise UserError(f"{text}: is not an address; write it as s3://bucket/folder")
    return Store(address, *open_address(address))


def upload_folder(folder: Path, names: Sequence[str], store: Store) -> int:
    """Write files of `folder` to a store in this order; return how many went up.

    A file that is there in its full size is not sent again, but for the last one, the mark that all
    are there.
    """
    from tqdm import tqdm

    there, sent = store.sizes(), 0
    for name in tqdm(names, "upload", disable=None):
        same_size = there.get(name) == os.stat(folder / name).st_size
        if name == names[-1] or name.endswith(CHANGING) or not same_size:
            store.upload(folder / name, name)
            sent += 1
    return sent


def bring_folder(text: str, work: Path) -> Path:
    """Return the folder that a setting names; one elsewhere is downloaded to a folder in `work`."""
    here = local_path(text)
    if here is None:
        here = work_folder(text, work)
        download_folder(open_store(text), here)
    return here


def work_folder(address: str, work: Path) -> Path:
    """Return the folder in `work` where files wait that come from, or go to, an address."""
    name = address.rstrip("/").rpartition("/")[2]
    return work / f"{name}-{files.sha256(address.encode())[:12]}"


def download_folder(store: Store, folder: Path) -> None:
    """Make `folder` hold the files below an address and no others.

    Images and shards that are here in full size are not brought again; rows and marks are.
    """
    from tqdm import tqdm

    sizes = store.sizes()
    if not sizes:
        raise UserError(f"{store.address}: holds no file; check the address")
    if conflict := find_conflict(sizes):
        raise UserError(
            f"{store.address}: holds the file {conflict[0]} and below that name {conflict[1]}, "
            "which no folder can; rename one of them there"
        )
    kept = {*sizes, proof.NAME}
    for path in [path for path in folder.rglob("*") if not path.is_dir()]:
        if path.relative_to(folder).as_posix() not in kept:
            path.unlink()

    def bring(name: str) -> None:
        check_name(store.address, name)
        target = folder / name
        same_size = target.is_file() and target.stat().st_size == sizes[name]
        if name.endswith(CHANGING) or not same_size:
            store.download(name, target)

    with thread_pool() as pool:
        for _ in tqdm(pool.map(bring, sorted(sizes)), "download", len(sizes), disable=None):
            pass
