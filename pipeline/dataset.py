"""The dataset folder: how real, converted and generated data look to every reader.

    images/<shard>/<id>.png   labels/<shard>/<id>.png   metadata.jsonl (or metadata-<n>.jsonl)
    classes.json   run.json   README.md

A sample exists if and only if its metadata row does. Files are committed in the order label,
image, row, each through a temporary name, fsync and rename; rows are appended to one metadata
file per process, and a row is written only when the files it names are on the disk. `labels/` may
be absent in an unlabelled image collection.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline import images, labels, marks, parallel, ranks
from pipeline.addresses import address_of, missing_folder
from pipeline.class_stats import require_classes
from pipeline.errors import UserError
from pipeline.images import read_image
from pipeline.metadata import is_dataset, metadata_files, read_rows
from pipeline.paths import Enclosure, find_files, say_hidden
from pipeline.proof import Proof
from pipeline.remote_rows import read_remote_marks, read_remote_rows
from pipeline.rows import is_ok


@dataclass(frozen=True)
class Sample:
    """One usable row of a dataset folder. `label` is None in an unlabelled collection."""

    id: str
    image: Path
    label: Path | None
    row: dict[str, Any]
    state: str = ""
    """of its files, by names, sizes and times: see `pipeline.proof`"""
    folder: Path | None = None

    @property
    def caption(self) -> str:
        """The prompt or caption of the row, empty if it has none."""
        return self.row.get("prompt") or ""

    @property
    def condition(self) -> str:
        """The condition that the row names, empty if it names none."""
        return str(self.row.get("condition") or "")

    @property
    def class_pixels(self) -> list[int]:
        """Pixels of each class; the label is read where the row does not state them."""
        if (known := self.row.get("class_pixels")) is not None:
            return known
        assert self.label is not None
        return labels.count_classes(labels.read_label(self.label)).tolist()


def open_dataset(
    folder: str | Path, *, labelled: bool, with_excluded: bool = False
) -> list[Sample]:
    """List the `ok` samples of a dataset folder in id order, without those that marks exclude.

    `folder` may be the address of a released set, `s3://bucket/set`: its samples are read from
    there one by one, as they are needed.

    Raises `UserError` if the folder or its metadata is missing, if it is empty, if `labelled` is
    asked for and a row has no label, or if a row names what is no regular file of the folder.
    """
    folder = Path(folder)
    address, samples = address_of(folder), []
    if not address:
        metadata_files(folder)
    enclosure = None if address else Enclosure(folder)
    excluded: frozenset[str] = frozenset()
    if not with_excluded:
        given = read_remote_marks(address) if address else marks.read_marks(folder)
        excluded = marks.excluded(given)
    num_excluded = 0
    rows = read_remote_rows(address) if address else read_rows(folder)
    for key, row in sorted(rows.items()):
        if not is_ok(row):
            continue
        if key in excluded:
            num_excluded += 1
            continue
        if labelled and not row.get("label_file_name"):
            raise UserError(f"{folder}: sample {key} has no label; a labelled dataset is needed")
        samples.append(_open_sample(folder, key, row, enclosure))
    notice = f"{num_excluded} samples are excluded by {marks.NAME}"
    if not samples and num_excluded:
        raise UserError(f"{folder}: all {notice}; take some back with pipeline/browse.py")
    if not samples:
        raise UserError(f"{folder}: holds no finished sample; run the stage that writes it")
    if num_excluded:
        print(f"notice: {folder}: {notice}", file=sys.stderr)
    return samples


def _open_sample(
    folder: Path, key: str, row: dict[str, Any], enclosure: Enclosure | None
) -> Sample:
    """Return the sample of a row; without an `enclosure` its files are far away."""
    state: list[object] = []
    for kind in ("image", "label"):
        if enclosure and (name := row.get(f"{kind}_file_name")):
            try:
                found = enclosure.find(name)
            except UserError as error:
                raise UserError(f"{folder / name}: {kind} of sample {key} {error}") from None
            state += [name, found.st_size, found.st_mtime_ns]
    label = row.get("label_file_name")
    return Sample(
        key,
        folder / row["image_file_name"],
        folder / label if label else None,
        row,
        Proof.state_of(state) if enclosure else "",
        folder if enclosure else None,
    )


def find_images(folder: Path) -> list[Path]:
    """List the images of a dataset folder, or all PNG and JPEG files of any other folder.

    Hidden files and folders, which systems and editors leave behind, are not among them.
    """
    if not folder.is_dir():
        raise missing_folder(folder, "give a dataset folder or one with images")
    if is_dataset(folder):
        return [sample.image for sample in open_dataset(folder, labelled=False)]
    listed, hidden = find_files(folder, (*images.SUFFIXES, *images.OTHER_SUFFIXES))
    say_hidden(folder, hidden)
    found = [path for path in listed if path.suffix.lower() in images.SUFFIXES]
    others = [path for path in listed if path.suffix.lower() not in images.SUFFIXES]
    kinds = ", ".join(sorted({path.suffix.lower() for path in others}))
    foreign = f"{len(others)} files of kinds that are not read ({kinds}); save them as PNG or JPEG"
    if not found:
        hint = f"it holds {foreign}" if others else "check the path"
        raise UserError(f"{folder}: holds no PNG or JPEG file; {hint}")
    if others:
        print(f"notice: {folder}: left out are {foreign}", file=sys.stderr)
    return found


def require_same_size(image: tuple[int, int], label: tuple[int, int], path: Path) -> None:
    """Raise `UserError` unless (width, height) of an image and of its label at `path` agree."""
    if image != label:
        raise UserError(
            f"{path}: label is {label[0]}x{label[1]} but its image is {image[0]}x{image[1]}; both "
            "must have the same size"
        )


def read_pair(sample: Sample) -> tuple[np.ndarray, np.ndarray]:
    """Read (image HxWx3 RGB, label HxW train ids) and check that the sizes agree."""
    assert sample.label is not None
    image, label = read_image(sample.image), labels.read_label(sample.label)
    require_same_size(image.shape[1::-1], label.shape[::-1], sample.label)
    return image, label


def check_sample(sample: Sample) -> None:
    """Read a sample's label and the head and end of its image; `UserError` names what is wrong."""
    size = images.image_size(sample.image)
    if sample.label is not None:
        label = labels.read_label(sample.label)
        require_same_size(size, label.shape[::-1], sample.label)


def check_images(paths: Sequence[Path]) -> None:
    """Read the head and end of image files before any weights load; the first fault is raised."""
    check_dataset([Sample(path.stem, path, None, {}) for path in paths])


def check_dataset(samples: Sequence[Sample]) -> None:
    """Check samples before any weights load; the first fault in their order is raised.

    Those that the proof of their folder covers are not read again (`pipeline.proof`), nor those
    that are far away. Of the processes of a run the first one checks; the others wait for it at
    their first exchange.
    """
    if not ranks.is_main():
        return
    proofs = {folder: Proof.read(folder) for folder in {s.folder for s in samples} if folder}
    near = [s for s in samples if not address_of(s.image)]
    todo = [s for s in near if s.folder is None or not proofs[s.folder].covers(s.id, s.state)]
    with parallel.thread_pool() as pool:
        for _ in pool.map(check_sample, todo):
            pass
    for folder in {s.folder for s in samples}:
        require_classes([s.label for s in samples if s.label and s.folder == folder], folder)
    for folder, proof in proofs.items():
        proof.add({s.id: s.state for s in todo if s.folder == folder})


def prove_checked(folder: Path, ids: set[str]) -> None:
    """Keep that samples are sound, by the program that has just read or written them."""
    if ids:
        samples = open_dataset(folder, labelled=False)
        Proof.read(folder).add({s.id: s.state for s in samples if s.id in ids})
