"""Write a dataset folder in the layout that another program reads.

    python pipeline/export.py --data runs/generated --format mmseg --output runs/export/mmseg
    python pipeline/export.py --data runs/generated --format webdataset \\
        --output runs/export/shards --shard-samples 1000 --shard-mb 1000

    mmseg          img_dir/ ann_dir/ and a dataset entry for configs of mmsegmentation
    dginstyle      images/ labels/*_labelTrainIds.png and class statistics, for DAFormer's readers
    webdataset     tar shards with <key>.image.png <key>.label.png <key>.json, of reproducible bytes
    imagefolder    images and metadata.jsonl for Hugging Face datasets
    parquet        the same with the images inside; needs the extra `export`
    coco_panoptic  panoptic PNGs and JSON; connected regions of a thing class are its objects
    fiftyone       data/ and labels/ for FiftyOne

Real, converted and generated folders are exported alike; labels keep the 19 train ids and 255 for
void. The same command continues a stopped export and does nothing when all is done. Several splits
may share an output: --split val. Data and output may be addresses that fsspec opens (s3://, gs://).
"""

import re
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

if sys.path and sys.path[0] == str(Path(__file__).resolve().parent):  # see CONTRIBUTING.md
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from pipeline import checksums, files, remote_files
from pipeline.config import digest, parse, show, to_mapping
from pipeline.dataset import Sample
from pipeline.errors import UserError, guard
from pipeline.exports import (
    folders,
    panoptic,
    shards,
)
from pipeline.exports.job import Job, attributes
from pipeline.exports.samples import read_samples
from pipeline.output_folders import (
    EXPORT,
    check_output,
    refuse_differences,
    require_same,
    require_writable,
    stored_config,
    write_marker,
)
from pipeline.setting_checks import require_positive

WRITERS: dict[str, Callable[[Job], str]] = {
    "mmseg": folders.write_mmseg,
    "dginstyle": folders.write_dginstyle,
    "webdataset": shards.write_webdataset,
    "imagefolder": folders.write_imagefolder,
    "parquet": shards.write_parquet,
    "coco_panoptic": panoptic.write_coco_panoptic,
    "fiftyone": folders.write_fiftyone,
}
WITHOUT_LABELS = ("webdataset", "imagefolder", "parquet")  # the others make no sense then
ONE_SPLIT = ("dginstyle", "fiftyone")


@dataclass(frozen=True)
class Config:
    """What to export, and how."""

    data: str = ""
    """dataset folder, or its address"""
    output: str = ""
    """folder to write, or its address"""
    format: Literal[
        "mmseg", "dginstyle", "webdataset", "imagefolder", "parquet", "coco_panoptic", "fiftyone"
    ] = "mmseg"
    """the layout, see above"""
    split: str = "train"
    """name of the split in the layout; dginstyle and fiftyone have none"""
    link: Literal["hard", "copy", "symlink"] = "hard"
    """how unchanged files are written; hard links fall back to copies"""
    shard_samples: int = 1000
    """largest number of samples in a tar or Parquet file"""
    shard_mb: int = 1000
    """largest size of a tar or Parquet file in megabytes"""
    workers: int = 2
    """processes that read labels"""
    work: Path = Path("runs/export_work")
    """where files wait that come from, or go to, an address"""


def check(config: Config) -> None:
    """Raise `UserError` for settings that cannot work, without reading any file."""
    for name, what in (("data", "dataset folder to export"), ("output", "folder to write")):
        if not getattr(config, name):
            raise UserError(f"--{name}: no folder given; name the {what}")
    if not re.fullmatch("[a-z][a-z0-9_]*", config.split):
        raise UserError(
            f"--split {config.split}: must be small letters, digits and _, beginning with a letter"
        )
    require_positive(config, "shard_samples", "shard_mb", "workers")
    here, data = (remote_files.local_path(text) for text in (config.output, config.data))
    if here is not None:
        check_output(here, EXPORT, inputs={"--data": data} if data else {})
    if config.format == "parquet":
        shards.require_parquet()


def marker_of(config: Config) -> str:
    """Return the name of the file that records an export."""
    return "export.json" if config.format in ONE_SPLIT else f"export-{config.split}.json"


def open_output(config: Config, folder: Path, samples: list[Sample]) -> None:
    """Record what this export is; an output that holds something else is refused."""
    require_writable(folder)
    marker, left_out = marker_of(config), ("output", "workers", "work")
    settings = {k: v for k, v in to_mapping(config).items() if k not in left_out}
    here = remote_files.local_path(config.data)
    record = {**settings, "data": str(here.resolve()) if here else config.data}
    record["samples"] = len(samples)
    record["rows"] = digest([attributes(sample) for sample in samples])
    require_same(folder, EXPORT, record, marker=marker)
    for other in sorted(folder.glob(EXPORT.marker)):  # of other splits
        form = (stored_config(folder, EXPORT, other.name) or {}).get("format")
        if form != config.format:
            refuse_differences(folder, EXPORT, [f"format: {form!r} -> {config.format!r}"])
    files.sweep_temporaries(folder)
    write_marker(folder, EXPORT, record, marker=marker)


def upload(config: Config, folder: Path) -> None:
    """Send a finished export to its address, its record last; then what waited here goes."""
    store, marker = remote_files.open_store(config.output), marker_of(config)
    names = [name for name in checksums.list_files(folder) if name != marker]
    remote_files.upload_folder(folder, [*names, marker], store)
    shutil.rmtree(folder)


def find_folder(config: Config) -> tuple[Path, bool]:
    """Return the folder to write the export to, and whether it is then sent to an address.

    Raises `UserError` if the address holds an export of this name already.
    """
    here = remote_files.local_path(config.output)
    if here is not None:
        return here, False
    if marker_of(config) in remote_files.open_store(config.output).sizes():
        raise UserError(f"{config.output}: holds {marker_of(config)}; choose another --output")
    return remote_files.work_folder(config.output, config.work), True


def main() -> int | None:
    """Run the program; see the module docstring."""
    config, call = parse(Config, __doc__)
    if call.dry_run:
        show(config)
        return None
    check(config)
    folder, is_sent = find_folder(config)
    data = remote_files.bring_folder(config.data, config.work)
    samples = read_samples(data, labelled=config.format not in WITHOUT_LABELS)
    open_output(config, folder, samples)
    job = Job(
        samples,
        folder,
        config.split,
        config.link,
        config.shard_samples,
        config.shard_mb,
        config.workers,
        data,
    )
    hint = WRITERS[config.format](job)
    if is_sent:
        upload(config, folder)
        hint = "sent"
    print(f"{config.output}: {len(samples)} samples as {config.format}; {hint}")
    return None


if __name__ == "__main__":
    guard(main)
