"""The dataset folder: how real, converted and generated data look to every reader.

    images/<shard>/<id>.png   labels/<shard>/<id>.png   metadata.jsonl (or metadata-<n>.jsonl)
    classes.json   run.json   README.md

A sample exists if and only if its metadata row does. Files are committed in the order label,
image, row, each through a temporary name, fsync and rename; rows are appended to one metadata
file per process, and a row is written only when the files it names are on the disk. `labels/` may
be absent in an unlabelled picture collection.
"""

import contextlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pipeline import files, labels
from pipeline.errors import UserError

SHARD_SIZE = 1000  # samples per image folder; the contract allows up to 5,000
JPEG_END = b"\xff\xd9"
END_BYTES = 64  # of a picture in which its end mark is looked for


@dataclass(frozen=True)
class Sample:
    """One usable row of a dataset folder. `label` is None in an unlabelled collection."""

    id: str
    image: Path
    label: Path | None
    row: dict[str, Any]

    @property
    def caption(self) -> str:
        """The prompt or caption of the row, empty if it has none."""
        return str(self.row.get("prompt", ""))


def sample_id(index: int) -> str:
    """Return the file stem of sample `index`."""
    return f"{index:08d}"


def seal(row: dict[str, Any]) -> dict[str, Any]:
    """Return `row` as JSON gives it back, with a hash of all its other values."""
    plain = json.loads(json.dumps({k: v for k, v in row.items() if k != "row_sha256"}))
    return plain | {"row_sha256": files.sha256(json.dumps(plain, sort_keys=True).encode())}


def is_sealed(row: dict[str, Any]) -> bool:
    """Tell whether the hash of a row is right; rows of others may have none."""
    return "row_sha256" not in row or seal(row)["row_sha256"] == row["row_sha256"]


def read_rows(folder: Path) -> dict[str, dict[str, Any]]:
    """Read the rows of all metadata files, by id; a torn last line is ignored.

    Of several rows with one id, an `ok` row wins over a failed one. A broken line elsewhere is a
    `UserError`.
    """
    rows: dict[str, dict[str, Any]] = {}
    for path in sorted(folder.glob("metadata*.jsonl")):
        lines = path.read_bytes().split(b"\n")
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
                key = row["id"]
            except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError):
                if number == len(lines):
                    continue  # no newline yet: the writer died here, the sample does not exist
                raise UserError(f"{path}:{number}: broken row; remove that line") from None
            if key not in rows or rows[key].get("status") != "ok":
                rows[key] = row
    return rows


def open_dataset(folder: str | Path, *, labelled: bool) -> list[Sample]:
    """List the `ok` samples of a dataset folder in id order.

    Raises `UserError` if the folder or its metadata is missing, if it is empty, or if `labelled`
    is asked for and a row has no label.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder}: no such dataset folder; check the path or create it first")
    if not any(folder.glob("metadata*.jsonl")):
        raise UserError(f"{folder}: has no metadata.jsonl; is this a dataset folder?")
    samples = []
    for key, row in sorted(read_rows(folder).items()):
        if row.get("status", "ok") != "ok":
            continue
        name = row.get("label_file_name")
        if labelled and not name:
            raise UserError(f"{folder}: sample {key} has no label; a labelled dataset is needed")
        samples.append(
            Sample(key, folder / row["image_file_name"], folder / name if name else None, row)
        )
    if not samples:
        raise UserError(f"{folder}: holds no finished sample; run the stage that writes it")
    return samples


def find_pictures(folder: Path) -> list[Path]:
    """List the pictures of a dataset folder, or all PNG and JPEG files of any other folder."""
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; give a dataset folder or one with pictures")
    if any(folder.glob("metadata*.jsonl")):
        return [sample.image for sample in open_dataset(folder, labelled=False)]
    found = sorted(p for p in folder.rglob("*") if p.suffix.lower() in (".png", ".jpg", ".jpeg"))
    if not found:
        raise UserError(f"{folder}: holds no PNG or JPEG file; check the path")
    return found


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """Open a PNG or JPEG; what is wrong with it, here or while it is decoded, names the file."""
    try:
        with Image.open(path, formats=("PNG", "JPEG")) as image:
            yield image
    except FileNotFoundError:
        raise UserError(f"{path}: no such image; re-create the sample") from None
    except (OSError, SyntaxError, ValueError) as error:
        raise UserError(f"{path}: not a readable image ({error}); re-create the file") from None


def read_image(path: Path) -> np.ndarray:
    """Read an image file as HxWx3 uint8 RGB, or raise `UserError` naming it."""
    with _opened(path) as image:
        if image.width * image.height > labels.MAX_PIXELS:
            raise UserError(f"{path}: more than {labels.MAX_PIXELS} pixels; scale it down")
        return np.array(image.convert("RGB"))


def read_pair(sample: Sample) -> tuple[np.ndarray, np.ndarray]:
    """Read (image HxWx3 RGB, label HxW train ids) and check that the sizes agree."""
    assert sample.label is not None
    image, label = read_image(sample.image), labels.read_label(sample.label)
    if image.shape[:2] != label.shape:
        raise UserError(
            f"{sample.label}: label is {label.shape[1]}x{label.shape[0]} but its image is "
            f"{image.shape[1]}x{image.shape[0]}; both must have the same size"
        )
    return image, label


def image_size(path: Path) -> tuple[int, int]:
    """Return the (width, height) of a PNG or JPEG by its header, or raise `UserError` naming it."""
    with _opened(path) as image:
        return image.size


def check_end(path: Path) -> None:
    """Raise `UserError` if a PNG or JPEG stops in the middle; one with its end is not decoded."""
    with open(path, "rb") as handle:
        mark = labels.PNG_END if handle.read(4) == b"\x89PNG" else JPEG_END
        handle.seek(max(0, handle.seek(0, os.SEEK_END) - END_BYTES))
        tail = handle.read()
    if mark not in tail:
        read_image(path)  # more padding than that is no fault, and a fault gets its reason


def check_dataset(samples: list[Sample]) -> None:
    """Read every label and the head and end of every image before any weights load.

    The first fault is raised.
    """
    for sample in samples:
        size = image_size(sample.image)
        check_end(sample.image)
        if sample.label is None:
            continue
        label = labels.read_label(sample.label)
        if size != label.shape[::-1]:
            raise UserError(
                f"{sample.label}: label is {label.shape[1]}x{label.shape[0]} but its image is "
                f"{size[0]}x{size[1]}; both must have the same size"
            )


class DatasetWriter:
    """Append samples to a dataset folder in the contract's commit order.

    Each process opens its own writer. `process_index` numbers its metadata file, which it alone
    may append to; it may be set later, before the first row. `config` is stored in `run.json`; a
    folder written with another config is refused with a field-by-field difference. `facts`
    (versions, say) are stored beside it and never compared.
    """

    def __init__(
        self,
        folder: Path,
        *,
        config: dict[str, Any],
        process_index: int = 0,
        facts: dict[str, Any] | None = None,
    ) -> None:
        from pipeline.config import differences, digest

        self.folder, self.process_index = folder, process_index
        self._clean = False  # the metadata file is known to end with a whole row
        files.require_writable(folder)
        run_file, classes_file = folder / "run.json", folder / "classes.json"
        self.digest = digest(config)
        if not run_file.exists():
            others = any(files.TEMPORARY_MARK not in path.name for path in folder.iterdir())
            if others and not run_file.exists():  # a run that starts beside us writes it first
                raise UserError(
                    f"{folder}: is not empty and has no run.json; choose another folder"
                )
            files.create(
                run_file,
                files.json_bytes({**(facts or {}), "config": config, "digest": self.digest}),
            )
        lines = differences(files.read_json(run_file).get("config", {}), config)
        if lines:
            raise UserError(
                f"{folder}: holds another run ({'; '.join(lines[:6])}); choose another "
                "folder, or repeat the command it was made with"
            )
        if not classes_file.exists():
            palette = labels.PALETTE.tolist()
            files.write_json(
                classes_file, {"names": list(labels.CLASS_NAMES), "palette": palette, "void": 255}
            )

    @property
    def metadata(self) -> Path:
        """The metadata file of this process."""
        return self.folder / f"metadata-{self.process_index:03d}.jsonl"

    def done_ids(self) -> set[str]:
        """Return the ids that have an `ok` row in any metadata file of the folder."""
        return {k for k, row in read_rows(self.folder).items() if row.get("status") == "ok"}

    def write(
        self, index: int, image: np.ndarray, label: np.ndarray | None, row: dict[str, Any]
    ) -> dict[str, Any]:
        """Commit one sample: label, image, then its row. Returns the full row."""
        return self.write_all([(index, image, label, row)])[0]

    def write_all(
        self,
        samples: Sequence[tuple[int, np.ndarray | None, np.ndarray | None, dict[str, Any]]],
    ) -> list[dict[str, Any]]:
        """Commit samples (index, image, label, row) together, all rows last; return full rows.

        Without an image the sample has failed, and its row says why in `error`.
        """
        contents, rows = [], []
        for index, image, label, row in samples:
            key, shard = sample_id(index), f"{index // SHARD_SIZE:04d}"
            if image is None:
                rows.append({"id": key, "status": "failed", **row})
                continue
            full = {"id": key, "status": "ok", **row}
            for kind, array in (("label", label), ("image", image)):
                if array is not None:
                    name, data = f"{kind}s/{shard}/{key}.png", files.encode_png(array)
                    contents.append((self.folder / name, data))
                    full |= {f"{kind}_file_name": name, f"{kind}_sha256": files.sha256(data)}
            rows.append(full | {"height": image.shape[0], "width": image.shape[1]})
        files.write_all(contents)
        self.append_rows(rows)
        return rows

    def write_failure(self, index: int, error: str, row: dict[str, Any]) -> None:
        """Record that a sample could not be made, with the reason."""
        self.write_all([(index, None, None, {"error": error, **row})])

    def append_row(self, row: dict[str, Any]) -> None:
        """Append one row durably."""
        self.append_rows([row])

    def append_rows(self, rows: Sequence[dict[str, Any]]) -> None:
        """Append rows durably, in one write."""
        path = self.metadata
        if not self._clean:
            repair_tail(path)
        size = path.stat().st_size if path.exists() else None
        lines = "".join(json.dumps(seal(row), sort_keys=True) + "\n" for row in rows)
        self._clean = False
        try:
            files.write_data(path, lines.encode(), os.O_APPEND)
            files.sync_file(path)
            if size is None:
                files.fsync_folder(self.folder)
        except OSError:
            if path.exists():
                os.truncate(path, size or 0)  # rows that may not last are not there
            raise
        self._clean = True


def repair_tail(path: Path) -> None:
    """Cut a torn last line that a killed writer left, so that appending starts cleanly."""
    if not path.exists():
        return
    data = path.read_bytes()
    whole = data.rfind(b"\n") + 1
    if whole < len(data):
        os.truncate(path, whole)
        files.sync_file(path)


def write_card(folder: Path, title: str, text: str) -> None:
    """Write the dataset card."""
    files.write_bytes(folder / "README.md", f"# {title}\n\n{text.strip()}\n".encode())
