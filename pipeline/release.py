"""Pack a dataset folder for publication: shards, card, checksums, a sample, Croissant metadata.

    python pipeline/release.py runs/generated --output runs/release --name "Streets in fog" \\
        --licence cc-by-4.0 --licences "base model=CreativeML Open RAIL-M"
    python pipeline/release.py s3://bucket/generated --output s3://bucket/release

OUTPUT is itself a dataset folder, with its images in tar shards: every program reads it without
unpacking. It appears when it is complete; the same command continues a stopped run. Data and output
may be addresses that fsspec opens (s3://, gs://, memory://). `--push OWNER/NAME` lists the files
for the Hugging Face hub, `--upload True` sends them.
"""

import datetime
import re
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

if sys.path and sys.path[0] == str(Path(__file__).resolve().parent):  # see CONTRIBUTING.md
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import tyro

from pipeline import __version__, checksums, files, remote_files
from pipeline.claims import sole_writer
from pipeline.config import differences, digest, parse, show
from pipeline.dataset import Sample
from pipeline.errors import UserError, guard
from pipeline.exports import release_files, shards
from pipeline.exports.job import Job, attributes
from pipeline.exports.release_card import licence_chain
from pipeline.exports.samples import read_samples
from pipeline.output_folders import (
    RELEASE,
    check_output,
    has_marker,
    require_apart,
    require_same,
    require_writable,
)
from pipeline.reading import parse_json, read_json
from pipeline.setting_checks import require_between, require_positive

Format = Literal["webdataset", "parquet", "coco_panoptic", "fiftyone"]
UNLABELLED = ("webdataset", "parquet")
MAX_SAMPLE_MB = 100


@dataclass(frozen=True)
class Config:
    """What to release, and how."""

    data: tyro.conf.Positional[str] = ""
    """Dataset folder, or its address."""
    output: str = ""
    """New folder, or address, of the release."""
    name: str = ""
    """Name of the set; empty: that of its folder."""
    version: str = "1.0.0"
    """Version of the set."""
    date: str = ""
    """Day of publication, as 2027-01-31."""
    description: str = "Images of street scenes with label maps, for semantic segmentation."
    """First sentence of the card."""
    licence: str = "other"
    """Licence of the set, as its SPDX identifier in small letters (cc-by-4.0) or in words."""
    licences: tuple[str, ...] = ()
    """Licences of its inputs, as PART=LICENCE."""
    url: str = ""
    """Address at which the set will be found."""
    cite_as: str = ""
    """How to cite the set."""
    formats: tuple[Format, ...] = ("webdataset",)
    """Layouts to pack; each of them holds all images."""
    split: str = "train"
    """Name of the split in the layouts."""
    sample_mb: int = MAX_SAMPLE_MB
    """Largest size of the sample of plain files in megabytes; at most a tenth of the set."""
    shard_samples: int = 1000
    """Largest number of samples in a tar or Parquet file."""
    shard_mb: int = 1000
    """Largest size of a tar or Parquet file in megabytes."""
    quality: str = ""
    """Folder of generation/score.py; empty: `quality` of the dataset folder, if it is there."""
    work: Path = Path("runs/release_work")
    """Folder for temporary files of downloads and uploads."""
    push: str = ""
    """Repository on the Hugging Face hub, OWNER/NAME; nothing is sent without `--upload True`."""
    upload: bool = False
    """Send the release to the hub."""
    workers: int = 2
    """Processes that read labels."""


def check(config: Config) -> None:
    """Raise `UserError` for settings that cannot work, without reading any file."""
    if not config.data:
        raise UserError("DATA: no folder given; name the dataset folder to release")
    if not config.output:
        raise UserError("--output: no folder given; name the folder or address to write")
    if not re.fullmatch("[a-z][a-z0-9_]*", config.split):
        raise UserError(
            f"--split {config.split}: must be small letters, digits and _, beginning with a letter"
        )
    if config.date and not is_day(config.date):
        raise UserError(f"--date {config.date}: must be a day, as 2027-01-31")
    require_positive(config, "shard_samples", "shard_mb", "workers")
    require_between(config, 0, MAX_SAMPLE_MB, "sample_mb")
    if not config.formats or len(set(config.formats)) < len(config.formats):
        raise UserError("--formats: name at least one layout, and each of them once")
    for text in config.licences:
        if not all(part.strip() for part in text.partition("=")):
            raise UserError(f"--licences {text}: must be PART=LICENCE, as 'label maps=MIT'")
    if config.push and not re.fullmatch(r"[\w.-]+/[\w.-]+", config.push):
        raise UserError(f"--push {config.push}: must be OWNER/NAME of a dataset on the hub")
    if config.upload and not config.push:
        raise UserError("--upload: needs --push OWNER/NAME")
    if "parquet" in config.formats:
        shards.require_parquet()
    here, data = (remote_files.local_path(text) for text in (config.output, config.data))
    inputs = {"DATA": data} if data else {}
    setting = "--output" if here is not None else "--work"
    require_apart(staging_folder(config), inputs, setting)  # emptied when the settings change
    if here is not None:
        check_output(here, RELEASE, inputs=inputs)
    elif config.push:
        raise UserError(f"--push: --output {config.output} is far away; give a folder of yours")


def is_day(text: str) -> bool:
    """Tell whether a text is a day of the calendar, as 2027-01-31."""
    try:
        return str(datetime.date.fromisoformat(text)) == text
    except ValueError:
        return False


def describe(config: Config, data: Path, samples: list[Sample]) -> dict[str, Any]:
    """Return release.json: the settings that make the release, and a digest of the rows."""
    quality = Path(config.quality) if config.quality else data / "quality"
    if config.quality and not (quality / "summary.json").is_file():
        raise UserError(f"--quality {quality}: has no summary.json; name a folder of score.py")
    run = read_json(data / "run.json", dict) if (data / "run.json").is_file() else {}
    kept = ("version", "date", "description", "licence", "url", "cite_as", "split", "sample_mb",
            "shard_samples", "shard_mb")  # fmt: skip
    return {
        **{key: getattr(config, key) for key in kept},
        "name": config.name or Path(config.data.rstrip("/")).name,
        "formats": list(config.formats),
        "licences": [list(pair) for pair in licence_chain(config.licences, run)],
        "samples": len(samples),
        "rows": digest([attributes(sample) for sample in samples]),
        "run": run.get("digest", ""),
        "scores": _digest_of(quality / "summary.json"),
        "streetforge": __version__,
    }


def _digest_of(path: Path) -> str:
    return checksums.hash_file(path) if path.is_file() else ""


def is_complete(output: str, record: dict[str, Any]) -> bool:
    """Tell whether the output holds this release already; one that holds something else is refused.

    A folder appears when it is complete. Behind an address `SHA256SUMS` comes last.
    """
    here = remote_files.local_path(output)
    if here is not None:
        require_same(here, RELEASE, record)
        return has_marker(here, RELEASE)
    store = remote_files.open_store(output)
    there = store.sizes()
    if not there:
        return False
    if RELEASE.marker not in there:
        raise UserError(f"{output}: holds something else than a release; choose another --output")
    try:
        stored = parse_json(store.read(RELEASE.marker), dict)
    except ValueError as error:
        raise UserError(f"{output}/{RELEASE.marker}: broken JSON ({error}); delete it") from None
    if lines := differences(stored, record):
        raise UserError(
            f"{output}: holds another release ({'; '.join(lines[:6])}); choose another --output"
        )
    return checksums.NAME in there


def staging_folder(config: Config) -> Path:
    """Return the folder in which the release of an output is packed."""
    here = remote_files.local_path(config.output)
    if here is None:
        return remote_files.work_folder(config.output, config.work)
    if here.name in ("", ".."):
        raise UserError(f"--output {config.output}: must name a new folder; give its path")
    return here.with_name(f"{here.name}.packing")


def open_staging(config: Config, record: dict[str, Any]) -> Path:
    """Return the folder in which the release is packed; what a stopped one left is kept.

    What other settings left there is no use and goes.
    """
    staging = staging_folder(config)
    path = staging / RELEASE.marker
    if path.is_file() and read_json(path) != record:
        print(f"{staging}: of other settings or data, started again", file=sys.stderr)
        shutil.rmtree(staging)
    elif staging.is_dir() and not path.is_file() and any(staging.iterdir()):
        raise UserError(f"{staging}: is in the way and is not a release; move it")
    require_writable(staging)
    files.sweep_temporaries(staging)
    files.write_changed(path, files.json_bytes(record))
    return staging


def publish(config: Config, staging: Path) -> None:
    """Give the packed release its name: a rename, or an upload that ends with SHA256SUMS."""
    here = remote_files.local_path(config.output)
    if here is not None:
        if here.is_dir():
            here.rmdir()  # empty, or `is_complete` had refused it
        staging.rename(here)
        files.fsync_folder(here.parent)
        return
    others = [name for name in checksums.list_files(staging) if name != RELEASE.marker]
    names = [RELEASE.marker, *others, checksums.NAME]  # the first tells whose files they are
    remote_files.upload_folder(staging, names, remote_files.open_store(config.output))
    shutil.rmtree(staging)


def pack(config: Config, record: dict[str, Any], data: Path, samples: list[Sample]) -> None:
    """Pack the release and give it its name, unless another process has done so meanwhile."""
    if is_complete(config.output, record):
        return
    staging = open_staging(config, record)
    job = Job(samples, staging, config.split, "hard", config.shard_samples, config.shard_mb,
              config.workers)  # fmt: skip
    quality = Path(config.quality) if config.quality else data / "quality"
    release_files.write_release(job, record, data, quality)
    publish(config, staging)


def push(config: Config, folder: Path) -> None:
    """List what goes to the hub, the files of SHA256SUMS and itself; send it if asked to."""
    sums = folder / checksums.NAME
    names = [*checksums.parse_sums(sums.read_bytes(), str(sums)), checksums.NAME]
    for name in names:
        print(f"{(folder / name).stat().st_size:>14,} {name}")
    total = sum((folder / name).stat().st_size for name in names)
    print(f"{len(names)} files, {total / 1e6:.1f} MB for the dataset {config.push} of the hub")
    if not config.upload:
        print("nothing was sent; add --upload True to send it")
        return
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HTTPError

    try:
        client = HfApi()
        client.create_repo(config.push, repo_type="dataset", exist_ok=True, private=True)
        client.upload_folder(
            repo_id=config.push,
            repo_type="dataset",
            folder_path=folder,
            allow_patterns=names,
            commit_message=f"Release {config.version}",
        )
    except (HTTPError, OSError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise UserError(
            f"--push {config.push}: not sent ({reason}); check the name, the connection and "
            "`hf auth login`, then repeat the command"
        ) from None
    print(f"{config.push}: sent; the repository is private until you publish it there")


def main() -> int | None:
    """Run the program; see the module docstring."""
    config, call = parse(Config, __doc__)
    check(config)
    if call.dry_run:
        show(config)
        return None
    data = remote_files.bring_folder(config.data, config.work)
    samples = read_samples(data, labelled=not set(config.formats) <= set(UNLABELLED))
    record = describe(config, data, samples)
    if is_complete(config.output, record):
        print(f"{config.output}: is complete already")
    else:
        staging = staging_folder(config)
        require_writable(staging.parent)
        with sole_writer(staging, beside=True):
            pack(config, record, data, samples)
        print(f"{config.output}: {len(samples)} samples as {', '.join(config.formats)}")
    if config.push:
        push(config, remote_files.local_path(config.output) or Path())
    return None


if __name__ == "__main__":
    guard(main)
