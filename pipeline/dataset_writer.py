"""Writes dataset folders: samples, their rows and the dataset card.

The commit order is that of `pipeline.dataset`.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from pipeline import files, images, labels
from pipeline.config import digest
from pipeline.markdown import plain
from pipeline.metadata import read_rows, repair_tail
from pipeline.output_folders import (
    DATASET,
    check_output,
    require_same,
    require_writable,
    stored_config,
    write_marker,
)
from pipeline.rows import encode_row, is_ok, sample_id, seal

SHARD_SIZE = 1000  # samples per image folder; the contract allows up to 5,000
NUM_NAMED = 64  # workers whose files a dataset card names, since `datasets` takes no patterns
METADATA_NAMES = ["metadata.jsonl", *(f"metadata-{i:03d}.jsonl" for i in range(NUM_NAMED))]


@dataclass(frozen=True)
class EncodedSample:
    """The files of one sample, relative name and bytes of each, and its row."""

    contents: tuple[tuple[str, bytes], ...]
    row: dict[str, Any]


def file_name(kind: str, index: int) -> str:
    """Return the relative name of the `image` or `label` of a sample."""
    return f"{kind}s/{index // SHARD_SIZE:04d}/{sample_id(index)}.png"


def encode_sample(
    index: int, image: np.ndarray | None, label: np.ndarray | None, row: dict[str, Any]
) -> EncodedSample:
    """Encode image HxWx3 and label HxW (both uint8) as PNG and complete the row.

    Without an image the sample has failed, and its row says why in `error`.
    """
    key = sample_id(index)
    if image is None:
        return EncodedSample((), {"id": key, "status": "failed", **row})
    full, contents = {"id": key, "status": "ok", **row}, []
    for kind, array in (("label", label), ("image", image)):
        if array is not None:
            name, data = file_name(kind, index), images.encode_png(array)
            contents.append((name, data))
            full |= {f"{kind}_file_name": name, f"{kind}_sha256": files.sha256(data)}
    if label is not None:  # rare class sampling then reads no label
        full["class_pixels"] = labels.count_classes(label).tolist()
    full |= {"height": image.shape[0], "width": image.shape[1]}
    return EncodedSample(tuple(contents), full)


class DatasetWriter:
    """Append samples to a dataset folder in the contract's commit order.

    Each process opens its own writer. `process_index` numbers its metadata file, which it alone
    may append to; it may be set later, before the first row. `config` is stored in `run.json`; a
    folder is refused by the rules of `pipeline.output_folders`. `provenance` (versions, say) is
    stored beside it and never compared.
    """

    def __init__(
        self,
        folder: Path,
        *,
        config: dict[str, Any],
        process_index: int = 0,
        provenance: dict[str, Any] | None = None,
    ) -> None:
        self.folder, self.process_index = folder, process_index
        self._clean = False  # the metadata file is known to end with a whole row
        self.digest = digest(config)
        check_output(folder, DATASET)
        require_same(folder, DATASET, config, row_digests=self._row_digests())
        require_writable(folder)
        write_marker(folder, DATASET, config, provenance=provenance)
        classes_file = folder / "classes.json"
        if not classes_file.exists():
            files.write_json(classes_file, labels.classes_record())

    def _row_digests(self) -> set[str] | None:
        """Return of which runs the rows are; None where the folder says it itself."""
        if stored_config(self.folder, DATASET) is not None:
            return None
        return {str(row.get("digest", "not named")) for row in read_rows(self.folder).values()}

    @property
    def metadata(self) -> Path:
        """The metadata file of this process."""
        return self.folder / f"metadata-{self.process_index:03d}.jsonl"

    def done_ids(self) -> set[str]:
        """Return the ids that have an `ok` row in any metadata file of the folder."""
        return {k for k, row in read_rows(self.folder).items() if is_ok(row)}

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
        return self.write_encoded([encode_sample(*sample) for sample in samples])

    def write_encoded(self, samples: Sequence[EncodedSample]) -> list[dict[str, Any]]:
        """Commit samples that other processes encoded, all rows last; return the rows."""
        contents = [
            (self.folder / name, data) for sample in samples for name, data in sample.contents
        ]
        rows = [sample.row for sample in samples]
        files.write_all(contents)
        self.append_rows(rows)
        return rows

    def write_failure(self, index: int, error: str, row: dict[str, Any]) -> None:
        """Record that a sample could not be made, with the reason."""
        self.write_all([(index, None, None, {"error": error, **row})])

    def adopt(self, row: dict[str, Any]) -> dict[str, Any]:
        """Return a row of another folder as one of this run; `generation_digest` names its own."""
        own = row.get("generation_digest", row.get("digest"))
        kept = {k: v for k, v in row.items() if k != "row_sha256"}
        return {"status": "ok", **kept, "digest": self.digest, "generation_digest": own}

    def append_row(self, row: dict[str, Any]) -> None:
        """Append one row durably."""
        self.append_rows([row])

    def append_rows(self, rows: Sequence[dict[str, Any]]) -> None:
        """Append rows durably, in one write."""
        path = self.metadata
        if not self._clean:
            repair_tail(path)
        size = path.stat().st_size if path.exists() else None
        lines = "".join(encode_row(seal(row)) for row in rows)
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


def card_header(
    title: str, configs: list[dict[str, Any]] | None = None, licence: str = "other"
) -> str:
    """Return the YAML that the Hugging Face hub and `datasets.load_dataset` read of a card.

    `configs` say how files become splits; the default fits a dataset folder, whose labels would
    else be taken for images. A folder of more than NUM_NAMED workers must be merged first.
    """
    of_folder = {
        "config_name": "default",
        "data_files": [{"split": "train", "path": "**"}],
        "metadata_filenames": METADATA_NAMES,
        "filters": [["status", "==", "ok"]],
    }
    header = {
        "pretty_name": title,
        "license": licence,
        "task_categories": ["image-segmentation"],
        "tags": ["semantic-segmentation", "street-scenes"],
        "configs": [of_folder] if configs is None else configs,
    }
    text = yaml.safe_dump(header, sort_keys=False, default_flow_style=None, width=10_000)
    return f"---\n{text}---\n"


def write_card(folder: Path, title: str, text: str) -> None:
    """Write the dataset card. `title` is any text, `text` is Markdown; see pipeline.markdown."""
    card = f"{card_header(title)}# {plain(title)}\n\n{text.strip()}\n"
    files.write_bytes(folder / "README.md", card.encode())
