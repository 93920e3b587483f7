"""Folders of static shards become one: rows, marks and files of all parts are there."""

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from pipeline import merge
from pipeline.dataset import open_dataset
from pipeline.dataset_writer import DatasetWriter
from pipeline.marks import Mark, read_marks, write_marks
from pipeline.metadata import read_rows


@pytest.fixture
def parts(tmp_path: Path) -> list[Path]:
    """The folders of two shards of one run, of two samples each."""
    folders = [tmp_path / "part-0", tmp_path / "part-1"]
    for number, folder in enumerate(folders):
        writer = DatasetWriter(folder, config={"n": 4}, process_index=number)
        for index in (number, number + 2):
            image = np.full((8, 16, 3), index, np.uint8)
            writer.write(index, image, np.zeros((8, 16), np.uint8), {})
    return folders


def join(monkeypatch: pytest.MonkeyPatch, folder: Path, parts: Sequence[Path]) -> None:
    arguments = ["--data", str(folder), "--parts", *map(str, parts)]
    monkeypatch.setattr(sys, "argv", ["merge.py", *arguments])
    assert merge.main() is None


def test_other_parts_after_a_kill_lose_no_row(
    parts: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = parts
    folder = tmp_path / "set"

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    for _ in range(2):  # the same call goes on, and makes no second file
        with monkeypatch.context() as patch:
            patch.setattr(merge, "write_merged", die)
            with pytest.raises(KeyboardInterrupt):
                join(patch, folder, [first])
        assert len([*folder.glob("metadata*.jsonl")]) == 1
    join(monkeypatch, folder, [second])
    assert read_rows(folder) == read_rows(first) | read_rows(second)
    assert [p.name for p in folder.glob("metadata*.jsonl")] == ["metadata.jsonl"]


def test_samples_that_a_part_excludes_stay_excluded(
    parts: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, blurred = tmp_path / "set", Mark(excluded=True, comment="blurred")
    write_marks(parts[0], {"00000002": blurred, "00000009": blurred})
    write_marks(parts[1], {"00000001": blurred, "00000003": Mark(marked=True)})
    join(monkeypatch, folder, parts)
    assert [sample.id for sample in open_dataset(folder, labelled=True)] == ["00000000", "00000003"]
    assert read_marks(folder) == {
        "00000001": blurred,
        "00000002": blurred,
        "00000003": Mark(marked=True),
    }, "of samples that the parts have"
    own = {**read_marks(folder), "00000002": Mark(marked=True)}
    write_marks(folder, own)
    join(monkeypatch, folder, parts)
    assert read_marks(folder) == own, "the folder's own marks count"
