"""The output folder: whose run it holds, and when that is written down.

`run.json` is written with the first sample, so that a start with a wrong setting, which stops
before, binds nobody. From then on the folder belongs to that run. Each row carries the digest of
its run as well: a lost `run.json` is restored by the command that made the rows.
"""

import importlib.metadata
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.config import digest
from pipeline.dataset_writer import DatasetWriter, EncodedSample
from pipeline.metadata_index import MetadataIndex
from pipeline.output_folders import DATASET, has_marker, require_same, write_marker

PACKAGES = ("torch", "diffusers", "transformers", "accelerate", "numpy", "pillow")


def package_versions() -> dict[str, str]:
    """Return the versions of the packages that images depend on, for run.json."""
    return {name: importlib.metadata.version(name) for name in PACKAGES}


class RunFolder:
    """The run that a folder holds, and the writer of its samples.

    `identity` is what makes two runs the same (see `pipeline.identity`), `provenance` stands beside
    it in `run.json` and is never compared, `begin` is called once when this process has opened the
    folder for its first sample.
    """

    def __init__(
        self,
        folder: Path,
        identity: dict[str, Any],
        provenance: dict[str, Any],
        begin: Callable[[], None] = lambda: None,
    ) -> None:
        self.folder, self.identity = folder, identity
        self.provenance, self.begin = provenance, begin
        self.digest = digest(identity)
        self.process_index = 0
        self._writer: DatasetWriter | None = None

    def refuse_other(self, rows: MetadataIndex) -> None:
        """Raise `UserError` if the folder holds another run than this; nothing is written."""
        require_same(self.folder, DATASET, self.identity, row_digests=rows.digests)

    def restore(self, rows: MetadataIndex) -> None:
        """Restore a lost or damaged `run.json`, for rows that `refuse_other` let pass."""
        if rows.digests or has_marker(self.folder, DATASET):
            write_marker(self.folder, DATASET, self.identity, provenance=self.provenance)

    def write_all(
        self,
        samples: Sequence[tuple[int, np.ndarray | None, np.ndarray | None, dict[str, Any]]],
    ) -> list[dict[str, Any]]:
        """Commit samples as `DatasetWriter.write_all` does; the first ones open the folder."""
        return self._open().write_all(samples)

    def write_encoded(self, samples: Sequence[EncodedSample]) -> list[dict[str, Any]]:
        """Commit samples that other processes encoded."""
        return self._open().write_encoded(samples)

    def _open(self) -> DatasetWriter:
        if self._writer is None:
            write_marker(self.folder, DATASET, self.identity, provenance=self.provenance)
            self._writer = DatasetWriter(
                self.folder, config=self.identity, process_index=self.process_index
            )
            self.begin()
        return self._writer
