"""Download a dataset of the catalogue and unpack it, or unpack archives that are on disk.

    python pipeline/download.py --dataset dginstyle --output data/raw/dginstyle
    python pipeline/download.py --dataset cityscapes --output data/raw/cityscapes \\
        --archive leftImg8bit_trainvaltest.zip gtFine_trainvaltest.zip
    python pipeline/download.py --release https://example.org/streets --output runs/data/streets

Downloads are kept in OUTPUT.downloads, continued after a stop, and checked; OUTPUT appears when all
of them are unpacked. For a dataset that requires a registration, the program prints where to
register and which files it needs.
`--release` takes the address of a set that pipeline/release.py packed (https://, s3://, a folder);
its shards are read as they are.
"""

import re
import sys
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from typing import Any

if sys.path and sys.path[0] == str(Path(__file__).resolve().parent):  # see CONTRIBUTING.md
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from pipeline.catalogue import archives
from pipeline.catalogue.fetching import RemoteFile, fetch, verify
from pipeline.catalogue.git_source import GitSource, check_git, fetch_git
from pipeline.catalogue.releases import Release, fetch_release
from pipeline.catalogue.specs import CATALOGUE, load_spec
from pipeline.claims import sole_writer
from pipeline.config import differences, from_mapping, parse
from pipeline.errors import UserError, guard
from pipeline.output_folders import (
    DOWNLOAD,
    check_output,
    has_marker,
    refuse_differences,
    require_apart,
    require_writable,
)
from pipeline.reading import read_json, shortened
from pipeline.remote_files import local_path

DRIVE = "https://drive.usercontent.google.com/download"


@dataclass(frozen=True)
class Config:
    """Settings of a download."""

    dataset: str = ""
    """Name of a file in datasets/, or the path of such a YAML."""
    release: str = ""
    """Address or folder of a released set, in place of --dataset."""
    sha256: str = ""
    """With --release: SHA-256 of its SHA256SUMS, from a source that you trust."""
    only: tuple[str, ...] = ()
    """With --release: patterns of the files to download, for example 'sample/*'."""
    output: Path = Path("")
    """New folder for the unpacked files."""
    archive: tuple[Path, ...] = ()
    """Downloaded files, with the names that they have at their source."""
    revision: str = ""
    """40-digit commit of a hub repository, if the catalogue pins none."""
    offline: bool = False
    """Use only files on disk: in OUTPUT.downloads or in the cache of the hub."""


@dataclass(frozen=True)
class Hub:
    """Files of a data set on the Hugging Face hub, as names or patterns."""

    repo: str = ""
    revision: str = ""
    files: tuple[str, ...] = ()


@dataclass(frozen=True)
class Registration:
    """Files that only registered users get."""

    address: str = ""
    files: tuple[RemoteFile, ...] = ()


@dataclass(frozen=True)
class Sources:
    """The `get` block of a data set: one of six ways."""

    huggingface: Hub | None = None
    url: tuple[RemoteFile, ...] = ()
    google_drive: RemoteFile | None = None
    registration: Registration | None = None
    git: GitSource | None = None
    release: Release | None = None

    def archives(self) -> list[RemoteFile]:
        """Return the archives of the set, each under the name it is kept by."""
        if self.google_drive:
            file = self.google_drive
            address = f"{DRIVE}?id={file.file_id}&export=download&confirm=t"
            return [replace(file, name=file.name or f"{file.file_id}.archive", address=address)]
        if self.git:
            return [RemoteFile(name=self.git.name, address=self.git.address)]
        found = self.registration.files if self.registration else self.url
        return [replace(f, name=f.name or PurePosixPath(f.address).name) for f in found]


def read_sources(config: Config) -> Sources:
    """Read and check the `get` block of the data set."""
    spec = load_spec(config.dataset)
    where = f"--dataset {config.dataset}: get"
    if not spec.get or len(spec.get) != 1:
        raise UserError(
            f"{where}: names {len(spec.get or ())} ways to fetch it, not one; get it by hand from "
            f"{spec.homepage or 'its authors'}"
        )
    sources = from_mapping(Sources, spec.get, where)
    hub = sources.huggingface
    if config.archive if hub else config.revision:
        unused = "--archive" if hub else "--revision"
        raise UserError(f"{unused}: has no meaning for {config.dataset}; leave it out")
    if hub:
        hub = replace(hub, revision=(config.revision or hub.revision).lower())
        if not re.fullmatch("[0-9a-f]{40}", hub.revision):
            raise UserError(
                f"{where}: pins no 40-digit revision; give --revision with one of "
                f"https://huggingface.co/datasets/{hub.repo}/commits/main"
            )
        sources = replace(sources, huggingface=hub)
    if sources.git:
        check_git(sources.git, where)
    if sources.release:
        return replace(sources, release=check_release(sources.release, where))
    if not hub and not sources.archives():
        raise UserError(f"{where}: {next(iter(spec.get))} names nothing to fetch; fill it in")
    _check_files(sources, where)
    return sources


def _check_files(sources: Sources, where: str) -> None:
    """Raise `UserError` for names, addresses, sizes and hashes that an entry gets wrong."""
    names = [file.name for file in sources.archives()]
    if len(set(names)) < len(names):
        raise UserError(f"{where}: two files have one name; give each its own `name`")
    for file in sources.archives():
        if not re.fullmatch(r"\w[\w.-]*", file.name):
            raise UserError(f"{where}: {file.name!r} is not a plain file name; give a `name`")
        if file.address.startswith("http:") and not file.has_hash:
            raise UserError(f"{where}: {file.address}: needs https, or a hash to check")
        if not sources.registration and not re.match("https?://[^/]", file.address):
            raise UserError(f"{where}: address {file.address!r} is not one of the web")
        if file.bytes < 0:
            raise UserError(
                f"{where}: {file.name}: bytes {file.bytes}: not a size; correct or remove it"
            )
        for kind, length in (("sha256", 64), ("md5", 32)):
            text = getattr(file, kind)
            if text and not re.fullmatch(f"[0-9a-f]{{{length}}}", text, re.IGNORECASE):
                raise UserError(
                    f"{where}: {file.name}: {kind} {shortened(text, 80)} is not {length} "
                    "hexadecimal digits; correct or remove it"
                )


def given_release(config: Config) -> Sources:
    """Return the release that --release names."""
    if config.archive or config.revision:
        unused = "--archive" if config.archive else "--revision"
        raise UserError(f"{unused}: has no meaning for --release; leave it out")
    return Sources(release=check_release(Release(config.release, config.sha256), "--release"))


def check_release(release: Release, where: str) -> Release:
    """Return a release with its whole address, or raise `UserError`.

    A plain name in the catalogue is a folder beside its files.
    """
    address = release.address
    if release.sha256 and not re.fullmatch("[0-9a-f]{64}", release.sha256, re.IGNORECASE):
        raise UserError(f"{where}: sha256 is not 64 hexadecimal digits; correct or drop it")
    if not address:
        raise UserError(f"{where}: release names no address; fill it in")
    own_machine = re.match(r"http://(127\.0\.0\.1|localhost|\[::1\])[:/]", address)
    if address.startswith("http:") and not (release.sha256 or own_machine):
        raise UserError(f"{where}: {address}: needs https, or --sha256 of its SHA256SUMS")
    if where != "--release" and re.fullmatch(r"\w+", address):
        address = str(CATALOGUE / address)
    return Release(address, release.sha256.lower())


def download_release(config: Config, release: Release, *, dry_run: bool) -> int:
    """Bring a released set to the output folder."""
    staging = config.output.with_name(f"{config.output.name}.downloads")
    if dry_run:
        print(f"would fetch {release.address} for {config.output}")
        return 0
    if (here := local_path(release.address)) and not here.is_dir():
        remedy = "the head of its YAML says how to make it" if config.dataset else "check the path"
        raise UserError(f"{here}: no such folder; {remedy}")
    if here:
        require_apart(config.output, {"--release": here})
        require_apart(staging, {"--release": here})
    require_writable(staging.parent)
    try:
        with sole_writer(staging, beside=True):
            names = fetch_release(release, config.output, staging, config.only)
    except OSError as error:
        raise UserError(
            f"{config.output}: {error.strerror or error}; free the disk or choose another --output"
        ) from None
    print(f"{config.output}: {len(names)} files, all with the hash that SHA256SUMS gives")
    return 0


def fetch_from_hub(hub: Hub, offline: bool) -> dict[str, Path]:
    """Return the files of a pinned revision in the hub's cache, downloaded unless `offline`."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import EntryNotFoundError, HTTPError

    where = f"{hub.repo}@{hub.revision}"
    try:
        name = snapshot_download(
            hub.repo,
            repo_type="dataset",
            revision=hub.revision,
            local_files_only=offline,
            allow_patterns=list(hub.files),
        )
    except (HTTPError, EntryNotFoundError, OSError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise UserError(
            f"{where}: not fetched ({reason}); check the name, the connection and --offline"
        ) from None
    here = {str(p.relative_to(name)): p for p in sorted(Path(name).rglob("*")) if p.is_file()}
    for pattern in hub.files:
        if not any(fnmatch(file, pattern) for file in here):
            raise UserError(f"{where}: has no {pattern}; correct `files` of the get block")
    return {f: p for f, p in here.items() if any(fnmatch(f, pattern) for pattern in hub.files)}


def obtain(config: Config, sources: Sources) -> dict[str, Path]:
    """Return where each archive of the data set is, downloaded first if need be."""
    wanted = sources.archives()
    found: dict[str, Path] = {}
    for path in config.archive:
        single = len(config.archive) == len(wanted) == 1  # browsers rename what they save
        name = wanted[0].name if single else path.name
        if not path.is_file() or name not in [file.name for file in wanted]:
            names = ", ".join(file.name for file in wanted)
            raise UserError(f"--archive {path}: is not here or not of this set, which is {names}")
        found[name] = path
    absent = [file for file in wanted if file.name not in found]
    if sources.registration and absent:
        print(f"Register at {sources.registration.address}, download these files and name them")
        print("all by --archive, or unpack them yourself as listed:")
        for file in wanted:
            size = f" ({file.bytes / 1e9:.1f} GB)" if file.bytes else ""
            print(f"  {file.name}{size}: unpacks to {config.output / file.holds}")
        raise UserError(f"{absent[0].name}: only registered users get it; give it by --archive")
    for file in absent:
        path = config.output.with_name(f"{config.output.name}.downloads") / file.name
        if not path.is_file() and config.offline:
            raise UserError(f"{path}: not here, and --offline is set; give it by --archive")
        if not path.is_file() and sources.git:
            fetch_git(sources.git, path)
        elif not path.is_file():
            fetch(file, path)
        found[file.name] = path
    return {file.name: found[file.name] for file in wanted}


def main() -> int | None:
    """Fetch and unpack a data set."""
    config, call = parse(Config, __doc__)
    if bool(config.release) == bool(config.dataset):
        raise UserError("--dataset, --release: give one of the two")
    sources = read_sources(config) if config.dataset else given_release(config)
    hub = sources.huggingface
    if config.output.name in ("", ".."):
        raise UserError(f"--output {config.output}: must name a new folder; give its path")
    if config.only and not sources.release:
        raise UserError("--only: has a meaning for released sets only; leave it out")
    if sources.release:
        return download_release(config, sources.release, dry_run=call.dry_run)
    pinned = hub or sources.git
    record: dict[str, Any] = {
        "dataset": config.dataset,
        "revision": pinned.revision if pinned else "",
    }
    check_output(config.output, DOWNLOAD)
    if has_marker(config.output, DOWNLOAD):
        stored = read_json(config.output / DOWNLOAD.marker, dict)
        stated = {name: stored.get(name) for name in record}
        refuse_differences(config.output, DOWNLOAD, differences(stated, record))
        print(f"{config.output}: is complete already")
        return 0
    if call.dry_run:
        names = [hub.repo] if hub else [file.address or file.name for file in sources.archives()]
        print("\n".join(f"would fetch {name} for {config.output}" for name in names))
        return 0
    try:
        found = fetch_from_hub(hub, config.offline) if hub else obtain(config, sources)
        known = {file.name: file for file in sources.archives()}
        record["sha256"] = {n: verify(found[n], known[n], str(found[n])) for n in known}
        for name in (n for n in known if not known[n].has_hash):
            print(f"{name}: sha256 {record['sha256'][name]}, nothing to compare it with")
        num_files = archives.unpack(found, config.output, record, plain=hub is not None)
    except OSError as error:
        raise UserError(
            f"{config.output}: {error.strerror or error}; free the disk or choose another --output"
        ) from None
    print(f"{config.output}: {num_files} files")
    return 0


if __name__ == "__main__":
    guard(main)
