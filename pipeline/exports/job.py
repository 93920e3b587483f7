"""What all exports share: the job, the columns of a row, and the names that files get.

A file is whole or absent under its final name and is not written twice, so that an export can be
stopped and continued.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pipeline import files, images, labels, parallel
from pipeline.dataset import Sample
from pipeline.dataset_writer import SHARD_SIZE, card_header
from pipeline.errors import UserError
from pipeline.paths import Enclosure

OWN_KEYS = (
    "status", "error", "image_file_name", "label_file_name", "row_sha256", "class_pixels",
    "seconds", "generated_at",
)  # fmt: skip
TEXTS = (
    "id", "prompt", "condition", "look", "time", "place", "source_label", "digest",
    "image_sha256", "label_sha256",
)  # fmt: skip
Pairs = Iterable[tuple[Path, Path]]
"""Source files and the names that they get."""


@dataclass(frozen=True)
class Job:
    """What to export, where to and how."""

    samples: list[Sample]
    output: Path
    split: str
    link: files.Placing
    shard_samples: int
    shard_mb: int
    workers: int
    data: Path | None = None
    """The dataset folder of the samples, where a layout needs more of it than these."""

    def places(self) -> Iterable[tuple[str, Sample]]:
        """Yield a name without suffix for each sample, a few thousand to a folder."""
        for position, sample in enumerate(self.samples):
            yield f"{position // SHARD_SIZE:04d}/{sample.id}", sample


def attributes(sample: Sample) -> dict[str, Any]:
    """Return what the row says about the sample, without file names and book-keeping."""
    return {k: v for k, v in sample.row.items() if k not in OWN_KEYS}


def table(samples: list[Sample]) -> list[dict[str, Any]]:
    """Return a row of the same columns and types for each sample, whatever its set knows of it.

    Splits that are exported one by one, of different sets even, then have equal features: text is
    empty where a set does not say it, and all else is JSON in `attributes`.
    """
    rows = []
    for sample in samples:
        known = attributes(sample)
        row: dict[str, Any] = {name: str(known.pop(name, None) or "") for name in TEXTS}
        row |= {name: known.pop(name) for name in ("height", "width")}
        rows.append({**row, "attributes": json.dumps(known, sort_keys=True)})
    return rows


def write_hub_card(job: Job) -> None:
    """Write README.md with the header that the Hugging Face hub reads, unless there is one."""
    path, title = job.output / "README.md", "Street scenes with label maps"
    if not path.exists():
        text = (
            "Labels are the 19 Cityscapes train ids, 255 is void. Licence: that of the exported "
            "set, see its card. Columns: what most sets know of a sample; all else is JSON in "
            "`attributes`."
        )
        files.write_bytes(path, f"{card_header(title, [])}# {title}\n\n{text}\n".encode())


def own_file(folder: Path, name: str) -> Path:
    """Return the path of a file in `folder`: a link could publish any file of this machine."""
    try:
        Enclosure(folder).find(name)
    except UserError as error:
        raise UserError(f"{folder / name}: {error}") from None
    return folder / name


def write_run(job: Job, folder: Path) -> None:
    """Copy the set's run.json, by whose role a target stays one in a layout that we read."""
    if job.data and (job.data / "run.json").is_file():
        content = own_file(job.data, "run.json").read_bytes()
        files.write_changed(folder / "run.json", content)


def place_all(job: Job, image_pairs: Pairs, label_pairs: Pairs = ()) -> None:
    """Give each source file its target name, where that is not there yet."""
    from tqdm import tqdm

    pairs = [(*pair, False) for pair in image_pairs] + [(*pair, True) for pair in label_pairs]
    todo = [pair for pair in pairs if not pair[1].exists()]

    def place(item: tuple[Path, Path, bool]) -> None:
        source, target, is_label = item
        data = encoded_label(source) if is_label else None
        if data is None:
            files.place(source, target, job.link)
        else:
            files.write_bytes(target, data)

    with parallel.thread_pool() as pool:
        for _ in tqdm(pool.map(place, todo), "files", len(todo), disable=None):
            pass


def image_suffix(job: Job) -> str:
    """Return the suffix of all images; readers of these layouts know a single one."""
    suffixes = sorted({sample.image.suffix.lower() for sample in job.samples})
    if len(suffixes) > 1:
        raise UserError(
            f"images have the suffixes {', '.join(suffixes)}, this layout allows one; export "
            "them as webdataset, parquet or imagefolder, or prepare them apart"
        )
    return suffixes[0]


def place_pairs(job: Job, image_name: str, label_name: str) -> None:
    """Place all images and labels; `{}` in a name stands for the sample's place."""
    image_pairs, label_pairs = [], []
    for place, sample in job.places():
        target = job.output / (image_name.format(place) + sample.image.suffix.lower())
        image_pairs.append((sample.image, target))
        if sample.label:
            label_pairs.append((sample.label, job.output / (label_name.format(place) + ".png")))
    place_all(job, image_pairs, label_pairs)


def encoded_label(path: Path) -> bytes | None:
    """Return a label as the PNG that every reader takes for ids, None if the file is one.

    Many readers expand palettes to colours.
    """
    header = images.read_header(path, "label")
    if (header.mode, header.orientation) == ("L", 1):
        return None
    return images.encode_png(labels.read_label(path))


def read_checked(sample: Sample, kind: Literal["image", "label"]) -> bytes:
    """Return the bytes of an image or label, which its row's hash must match."""
    path = sample.image if kind == "image" else sample.label
    assert path is not None
    data = images.read_file(path)
    stated = sample.row.get(f"{kind}_sha256")
    if stated is not None and stated != files.sha256(data):
        raise UserError(f"{path}: differs from its {kind}_sha256; run pipeline/verify.py")
    return (encoded_label(path) if kind == "label" else None) or data
