"""The files of a release, written one after the other into one folder.

    webdataset/ parquet/ coco_panoptic/ fiftyone/     the layouts that were asked for
    metadata.jsonl run.json classes.json              a dataset folder, its files within the shards
    README.md croissant.json SHA256SUMS release.json  what the set is
    sample/ quality/                                  a few plain files; scores

Each file is whole or absent. A second call keeps what is there, so a stopped release is continued.
"""

import shutil
import tarfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from pipeline import checksums, files, labels
from pipeline.exports import croissant, folders, panoptic, shards, subset
from pipeline.exports.job import Job, own_file
from pipeline.exports.release_card import CardFields, write_card_text
from pipeline.output_folders import RELEASE
from pipeline.reading import read_json
from pipeline.rows import encode_row
from pipeline.tar_members import add_member

SCORES = ("summary.md", "summary.json")
LAYOUTS = "layouts"  # where layouts of plain files wait until they are packed
FOLDERS = {"coco_panoptic": panoptic.write_coco_panoptic, "fiftyone": folders.write_fiftyone}


def write_release(job: Job, record: dict[str, Any], data: Path, quality: Path) -> None:
    """Write all files of a release below `job.output`, SHA256SUMS last.

    `record` is what release.json says; `data` the dataset folder, `quality` its scores.
    """
    folder, kinds = job.output, record["formats"]
    rows = [sample.row for sample in job.samples]
    if "webdataset" in kinds:
        found = shards.write_shards(replace(job, output=folder / "webdataset"))
        rows = [
            row for path in found for row in shards.index_shard(path, f"webdataset/{path.name}")
        ]
        files.write_changed(folder / "metadata.jsonl", "".join(map(encode_row, rows)).encode())
    if "parquet" in kinds:
        shards.write_tables(replace(job, output=folder / "parquet"))
    for kind in kinds:
        if kind in FOLDERS:
            pack_layout(replace(job, output=folder / LAYOUTS / kind), kind, folder / kind)
    chosen = subset.choose(job.samples, record["sample_mb"])
    if chosen:
        subset.write_subset(chosen, folder / "sample")
    files.write_changed(folder / "classes.json", files.json_bytes(labels.classes_record()))
    run = read_json(data / "run.json", dict) if (data / "run.json").is_file() else {}
    for dataset in (folder, folder / "sample") if run else ():
        if dataset.is_dir():
            copy_own(data, "run.json", dataset / "run.json")
    owner = data if quality == data / "quality" else quality
    for name in SCORES:
        if (quality / name).is_file():
            within = str((quality / name).relative_to(owner))
            copy_own(owner, within, folder / "quality" / name)
    card = write_card_text(card_fields(record), rows, run, folder / "quality")
    files.write_changed(folder / "README.md", card.encode())
    shutil.rmtree(folder / LAYOUTS, ignore_errors=True)
    suffixes = sorted({sample.image.suffix.lower() for sample in job.samples})
    checksums.write_sums(folder, write_croissant(folder, record, suffixes))


def copy_own(folder: Path, name: str, target: Path) -> None:
    """Copy a file that lies in `folder`."""
    files.place(own_file(folder, name), target, "copy")


def pack_layout(job: Job, kind: str, target: Path) -> None:
    """Write a layout of plain files and pack it into tar files of at most `job.shard_mb`.

    Its images are hard links where the file system has them, so they take no room while they wait.
    """
    FOLDERS[kind](job)
    for number, names in enumerate(groups(job.output, job.shard_mb * 1_000_000)):
        path = target / f"{kind}-{number:06d}.tar"
        if path.exists():
            continue
        with (
            files.replacing(path) as temporary,
            tarfile.open(temporary, "w", format=tarfile.USTAR_FORMAT) as archive,
        ):
            for name in names:
                add_member(archive, name, (job.output / name).read_bytes())


def groups(folder: Path, max_bytes: int) -> Iterator[list[str]]:
    """Yield the names of the files of a folder in order, in groups of at most `max_bytes`."""
    group: list[str] = []
    total = 0
    for name in checksums.list_files(folder):
        size = (folder / name).stat().st_size
        if group and total + size > max_bytes:
            yield group
            group, total = [], 0
        group.append(name)
        total += size
    if group:
        yield group


def card_fields(record: dict[str, Any]) -> CardFields:
    """Return what the card tells of the record of a release."""
    same = {key: record[key] for key in ("name", "version", "description", "licence", "split")}
    return CardFields(
        **same,
        chain=tuple((part, text) for part, text in record["licences"]),
        formats=tuple(record["formats"]),
        command=f"pipeline/release.py of streetforge {record['streetforge']}",
    )


def write_croissant(folder: Path, record: dict[str, Any], suffixes: list[str]) -> dict[str, str]:
    """Write croissant.json over the files that are there; return their hashes."""
    names = [n for n in checksums.list_files(folder) if n not in ("croissant.json", RELEASE.marker)]
    sums = checksums.hash_files(folder, names)
    shown = {name: sums[name] for name in names if not name.startswith("sample/")}
    sizes = {name: (folder / name).stat().st_size for name in shown}
    fields = {
        key: str(record[key]) for key in ("name", "description", "licence", "version", "date")
    }
    fields |= {"url": record["url"] or ".", "cite_as": record["cite_as"] or record["name"]}
    found = croissant.describe(fields, shown, sizes, suffixes)
    files.write_changed(folder / "croissant.json", files.json_bytes(found))
    return sums
