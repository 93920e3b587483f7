"""Files behind addresses that fsspec opens: `s3://`, `gs://`, `https://`, `memory://`.

Object stores have no rename and no folders, but a file appears there when it is whole. So what is
written goes up file by file, and the file that tells that all are there goes last.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline import files, proof
from pipeline.errors import UserError
from pipeline.parallel import thread_pool
from pipeline.paths import check_relative
from pipeline.tar_members import address_of

EXTRAS = {"s3": "s3", "gs": "gs", "gcs": "gs"}
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
            raise _failure(self.address, what, error) from None

    def read(self, name: str = "", start: int = 0, num_bytes: int | None = None) -> bytes:
        """Return the bytes of a file, or a part of them."""
        end = None if num_bytes is None else start + num_bytes
        path = self.path(name)
        return self.call("read", lambda: self.system.cat_file(path, start=start, end=end))

    def sizes(self) -> dict[str, int]:
        """Return the bytes of every file below the address, by relative name."""

        def listed() -> dict[str, int]:
            if hasattr(self.system, "invalidate_cache"):
                self.system.invalidate_cache()
            if not self.system.exists(self.root):
                return {}
            return {name: info["size"] for name, info in self.found().items()}

        return self.call("listed", listed)

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

        def put() -> None:
            self.system.makedirs(os.path.dirname(self.path(name)), exist_ok=True)
            self.system.put_file(str(source), self.path(name))

        self.call("written", put)

    def download(self, name: str, target: Path) -> None:
        """Bring a file to this machine; it is whole or absent there."""
        check_name(self.address, name)
        with files.replacing(target) as temporary:
            self.call("read", lambda: self.system.get_file(self.path(name), str(temporary)))


def _failure(address: str, what: str, error: Exception) -> UserError:
    reason = getattr(error, "strerror", None) or str(error).strip() or type(error).__name__
    return UserError(
        f"{address}: cannot be {what} ({reason.splitlines()[0]}); check the address, your "
        "credentials and the connection"
    )


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
    """Return the store behind an address; what it needs and lacks is one line.

    Options of a file system are those of fsspec's own config files and variables, as
    `AWS_ENDPOINT_URL` or `FSSPEC_S3_ENDPOINT_URL`.
    """
    import fsspec

    address = address_of(text)
    if address is None:
        raise UserError(f"{text}: is not an address; write it as s3://bucket/folder")
    scheme = address.partition("://")[0]
    try:
        if "::" in address:
            raise ValueError("chains of file systems are not read")
        system, root = fsspec.url_to_fs(address)
    except ImportError as error:
        extra = EXTRAS.get(scheme)
        remedy = f"pip install 'streetforge[{extra}]'" if extra else "pip install what it names"
        raise UserError(f"{address}: {scheme}:// needs a package ({error}); {remedy}") from None
    except ValueError as error:
        raise UserError(f"{address}: {error}; use s3://, gs://, https:// or a path") from None
    except Exception as error:  # some clients connect at once
        raise _failure(address, "opened", error) from None
    return Store(address, system, root)


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
