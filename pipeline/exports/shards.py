"""Exports that put many samples into one file: tar shards and Parquet."""

import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline import files, labels
from pipeline.dataset import Sample
from pipeline.errors import UserError
from pipeline.exports.job import TEXTS, Job, attributes, read_checked, table, write_hub_card
from pipeline.rows import seal
from pipeline.tar_members import add_member, file_size, member_name

ROW_GROUP = 100  # samples that a reader of Parquet must hold at once


def ranges(job: Job) -> list[range]:
    """Return the positions of the samples of each shard, by the limits of number and bytes."""
    shards: list[range] = []
    start = size = 0
    for position, sample in enumerate(job.samples):
        more = sum(file_size(path) for path in (sample.image, sample.label) if path)
        full = position - start == job.shard_samples or size + more > job.shard_mb * 1_000_000
        if position > start and full:
            shards.append(range(start, position))
            start, size = position, 0
        size += more
    return [*shards, range(start, len(job.samples))]


def plan_shards(job: Job, names: str) -> dict[Path, range]:
    """Return the positions of the samples of each shard by path; `names` takes number and total."""
    shards = ranges(job)
    return {
        job.output / names.format(number, len(shards)): positions
        for number, positions in enumerate(shards)
    }


def missing(shards: dict[Path, range]) -> Iterator[tuple[Path, range]]:
    """Yield path and positions of each shard that is not there."""
    from tqdm import tqdm

    for path, positions in tqdm(shards.items(), "shards", disable=None):
        if not path.exists():
            yield path, positions


def shard_row(sample: Sample, image: bytes, label: bytes | None) -> dict[str, Any]:
    """Return the content of <key>.json: attributes of the row, hashes, class pixels."""
    row = {**attributes(sample), "image_sha256": files.sha256(image)}
    if label is not None:
        ids = labels.decode_label(label, str(sample.label))
        row |= {"label_sha256": files.sha256(label)}
        row["class_pixels"] = labels.count_classes(ids).tolist()
    return row


def write_shards(job: Job) -> list[Path]:
    """Write tar shards of <key>.image.png, <key>.label.png and <key>.json; return their paths.

    Equal samples give equal bytes, whatever the time, the machine and the user.
    """
    shards = plan_shards(job, f"{job.split}-{{:06d}}.tar")
    for path, positions in missing(shards):
        with (
            files.replacing(path) as temporary,
            tarfile.open(temporary, "w", format=tarfile.USTAR_FORMAT) as archive,
        ):
            for sample in (job.samples[i] for i in positions):
                suffix = sample.image.suffix.lower()
                image = read_checked(sample, "image")
                label = read_checked(sample, "label") if sample.label else None
                add_member(archive, f"{sample.id}.image{suffix}", image)
                if label is not None:
                    add_member(archive, f"{sample.id}.label.png", label)
                row = json.dumps(shard_row(sample, image, label), sort_keys=True).encode()
                add_member(archive, f"{sample.id}.json", row)
    return list(shards)


def write_webdataset(job: Job) -> str:
    """Write tar shards for webdataset, and a card."""
    last = len(write_shards(job)) - 1
    write_hub_card(job)
    return f'webdataset.WebDataset("{job.output}/{job.split}-{{000000..{last:06d}}}.tar")'


def index_shard(path: Path, place: str) -> Iterator[dict[str, Any]]:
    """Yield the row of each sample of a shard; its files are members of `place`, the shard's name.

    Such rows make a dataset folder whose files are not unpacked (`pipeline.tar_members`).
    """
    with tarfile.open(path, "r:") as archive:
        names: dict[str, str] = {}
        for member in archive:
            key, _, rest = member.name.partition(".")
            kind, _, suffix = rest.partition(".")
            start, size = member.offset_data, member.size
            if kind in ("image", "label"):
                names[f"{kind}_file_name"] = member_name(place, start, size, f"{key}.{suffix}")
            else:
                content = archive.extractfile(member)
                assert content is not None
                row = {**json.loads(content.read()), "id": key, "status": "ok", **names}
                yield seal(row)
                names = {}


def require_parquet() -> None:
    """Raise `UserError` unless the library that defines image columns is installed."""
    try:
        import pyarrow.parquet  # noqa: F401

        from datasets import Image  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"--format parquet: needs Hugging Face datasets ({error}); pip install "
            "-e '.[export]', or use --format imagefolder"
        ) from None


def write_tables(job: Job) -> None:
    """Write Parquet files with the images' bytes inside, typed as Hugging Face images."""
    import pyarrow as pa
    from pyarrow import parquet

    from datasets import Features, Image, Value

    rows = table(job.samples)
    columns: dict[str, Any] = {name: Value("string") for name in (*TEXTS, "attributes")}
    columns |= {name: Value("int64") for name in ("height", "width")}
    features = Features({**columns, "image": Image(), "label": Image()})

    def encoded(sample: Any, kind: Any) -> dict[str, Any] | None:
        path = sample.image if kind == "image" else sample.label
        return path and {"bytes": read_checked(sample, kind), "path": path.name}

    for path, positions in missing(
        plan_shards(job, f"data/{job.split}-{{:05d}}-of-{{:05d}}.parquet")
    ):
        with (
            files.replacing(path) as temporary,
            parquet.ParquetWriter(temporary, features.arrow_schema) as writer,
        ):
            for start in range(positions.start, positions.stop, ROW_GROUP):
                chosen = range(start, min(start + ROW_GROUP, positions.stop))
                group = [
                    {**rows[i], **{k: encoded(job.samples[i], k) for k in ("image", "label")}}
                    for i in chosen
                ]
                writer.write_table(pa.Table.from_pylist(group, schema=features.arrow_schema))


def write_parquet(job: Job) -> str:
    """Write Parquet files with the images' bytes inside, and a card."""
    write_tables(job)
    write_hub_card(job)
    return f'datasets.load_dataset("parquet", data_dir="{job.output}")'
