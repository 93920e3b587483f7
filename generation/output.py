"""The output folder: what may lie in it, whose run it holds, and when that is written down.

`run.json` is written with the first sample, so that a start with a wrong setting, which stops
before, binds nobody. From then on the folder belongs to that run. Each row carries the digest of
its run as well: a lost `run.json` is written anew by the command that made the rows.
"""

import os
import stat
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipeline import files
from pipeline.config import differences, digest
from pipeline.dataset import DatasetWriter, read_record
from pipeline.errors import UserError
from pipeline.metadata import MetadataIndex
from pipeline.output_folders import require_kind, unreadable

CACHE_NAME = "layouts.json"
FOLDERS = ("images", "labels", "claims")
RECORDS = ("run.json", "classes.json", "status.json", "README.md", CACHE_NAME)
EARLY = ("claims", "status.json", CACHE_NAME)  # may be there before the first sample
SHOWN_DIFFERENCES = 6


def check_output(folder: Path, layouts: Path) -> None:
    """Raise `UserError` unless `folder` can become, or is, the dataset folder of a run.

    Everything that a run writes to must be what it is in a sound folder, and no link: through one
    it would write elsewhere. The label maps of `layouts` may not lie with the results.
    """
    mode = _mode(folder)
    if mode is not None and not stat.S_ISDIR(mode):
        raise UserError(f"{folder}: is a file, not a folder; choose another --output")
    here, there = folder.resolve(), layouts.resolve()
    if here == there or there in here.parents or here in there.parents:
        raise UserError(
            f"--output {folder}: and --label-maps {layouts} lie in one another, so that results "
            "would become label maps; choose another --output"
        )
    if mode is None:
        return
    names = _list(folder)
    for name in names:
        _check_entry(folder / name)
    for name in ("images", "labels"):
        for shard in _list(folder / name) if name in names else ():
            if files.TEMPORARY_MARK not in shard:
                require_kind(folder / name / shard, folder=True)
    for claim in _list(folder / "claims") if "claims" in names else ():
        require_kind(folder / "claims" / claim, folder=False)
    if "run.json" in names:
        return
    rows = any(name.startswith("metadata") for name in names)
    others = [n for n in names if n not in EARLY and files.TEMPORARY_MARK not in n]
    if others and not rows and "run.json" not in _list(folder):  # just written by a run beside us
        raise UserError(f"{folder}: is not empty and has no run.json; choose another --output")


def _check_entry(path: Path) -> None:
    if path.name in FOLDERS:
        require_kind(path, folder=True)
    elif path.name in RECORDS or (path.name.startswith("metadata") and path.suffix == ".jsonl"):
        require_kind(path, folder=False)


def _mode(path: Path) -> int | None:
    """Return the kind of what is at `path`, None for nothing."""
    try:
        return os.stat(path).st_mode
    except FileNotFoundError:
        if os.path.islink(path):
            raise UserError(f"{path}: is a link to nothing; choose another --output") from None
        return None
    except (OSError, ValueError) as error:
        raise UserError(unreadable(path, error)) from None


def _list(folder: Path) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except FileNotFoundError:  # that of the claims goes with the last process
        return []
    except OSError as error:
        raise UserError(unreadable(folder, error)) from None


class RunFolder:
    """The run that a folder holds, and the writer of its samples.

    `identity` is what makes two runs the same (see `pipeline.identity`), `facts` stand beside it in
    `run.json` and are never compared, `begin` is called once when this process has opened the
    folder for its first sample.
    """

    def __init__(
        self,
        folder: Path,
        identity: dict[str, Any],
        facts: dict[str, Any],
        begin: Callable[[], None] = lambda: None,
    ) -> None:
        self.folder, self.identity, self.facts, self.begin = folder, identity, facts, begin
        self.digest = digest(identity)
        self.process_index = 0
        self._writer: DatasetWriter | None = None

    def refuse_other(self, rows: MetadataIndex) -> None:
        """Raise `UserError` if the folder holds another run than this; nothing is written."""
        path, stored = self.folder / "run.json", self._stored()
        if stored is None:
            strange = sorted(rows.digests - {self.digest})
            if strange:
                raise UserError(
                    f"{path}: is missing or damaged, and rows of the folder were made by another "
                    f"run ({', '.join(strange[:3])}, this one is {self.digest}); restore it from a "
                    "copy, repeat the very command that made them, or choose another --output"
                )
            return
        lines = differences(stored, self.identity)
        if lines:
            remedy = "repeat the command it was made with"
            if not rows.ok and not rows.failed:
                remedy = f"delete {path}, nothing was made yet"
            more = len(lines) - SHOWN_DIFFERENCES
            shown = "; ".join(lines[:SHOWN_DIFFERENCES]) + (f"; {more} more" if more > 0 else "")
            raise UserError(
                f"{self.folder}: holds another run ({shown}); choose another --output, or {remedy}"
            )

    def restore(self, rows: MetadataIndex) -> None:
        """Write a lost or damaged `run.json` anew, for rows that `refuse_other` let pass."""
        path = self.folder / "run.json"
        if self._stored() is None and (rows.digests or path.exists()):
            files.write_json(path, self._record())
            print(f"streetforge: {path}: was missing or damaged, written anew", file=sys.stderr)

    def _stored(self) -> dict[str, Any] | None:
        """Return the identity that `run.json` holds, None if it is missing or damaged."""
        record = read_record(self.folder)
        return record["config"] if record else None

    def _record(self) -> dict[str, Any]:
        return {**self.facts, "config": self.identity, "digest": self.digest}

    def write_all(
        self,
        samples: Sequence[tuple[int, np.ndarray | None, np.ndarray | None, dict[str, Any]]],
    ) -> list[dict[str, Any]]:
        """Commit samples as `DatasetWriter.write_all` does; the first ones open the folder."""
        if self._writer is None:
            path = self.folder / "run.json"
            if not path.exists():
                files.create(path, files.json_bytes(self._record()))
            self._writer = DatasetWriter(
                self.folder, config=self.identity, process_index=self.process_index
            )
            self.begin()
        return self._writer.write_all(samples)
