"""Files are whole or absent."""

import errno
import os
from pathlib import Path

import numpy as np
import pytest

from pipeline import files, images
from pipeline.errors import UserError
from pipeline.output_folders import require_writable
from pipeline.reading import read_json


def test_failed_write_keeps_the_old_file_and_leaves_no_rest(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    files.write_bytes(path, b"old")
    with pytest.raises(RuntimeError), files.replacing(path) as temporary:
        temporary.write_bytes(b"half")
        raise RuntimeError
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_names_as_long_as_the_file_system_takes_are_written(tmp_path: Path) -> None:
    path = tmp_path / ("\u00e4" * 125 + "x.png")
    assert len(os.fsencode(path.name)) == 255
    files.write_bytes(path, b"whole")
    assert [p.read_bytes() for p in tmp_path.iterdir()] == [b"whole"] and path.exists()


def test_full_disk_at_fsync_keeps_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.txt"
    files.write_bytes(path, b"old")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        files.write_bytes(path, b"new")
    assert path.read_bytes() == b"old" and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("has_links", [True, False])
def test_first_to_create_a_file_wins(tmp_path, monkeypatch, has_links) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EPERM, "no hard links here")

    if not has_links:
        monkeypatch.setattr(os, "link", refuse)
    path = tmp_path / "a.json"
    for data in (b"first", b"second"):
        files.create(path, data)
    assert path.read_bytes() == b"first"
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_full_disk_leaves_no_rest_where_there_are_no_hard_links(tmp_path, monkeypatch) -> None:
    path, write = tmp_path / "a.json", os.write

    def refuse(*_: object) -> None:
        monkeypatch.setattr(os, "write", full)
        raise OSError(errno.EPERM, "no hard links here")

    def full(handle: int, data: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "link", refuse)
        with pytest.raises(OSError, match="No space"):
            files.create(path, b"whole")
    monkeypatch.setattr(os, "write", write)
    assert not list(tmp_path.iterdir())


def test_json_round_trip_and_errors(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "a.json"
    files.write_json(path, {"b": 1, "a": [2]})
    assert read_json(path) == {"a": [2], "b": 1}
    path.write_text("{")
    with pytest.raises(UserError, match="broken JSON"):
        read_json(path)
    with pytest.raises(UserError, match="no such file"):
        read_json(tmp_path / "none.json")


def test_sweep_removes_only_rests_of_dead_processes(tmp_path: Path) -> None:
    dead = tmp_path / f"a{files.TEMPORARY_MARK}999999999-abc"
    alive = tmp_path / f"b{files.TEMPORARY_MARK}{os.getpid()}-abc"
    for path in (dead, alive, tmp_path / "c.png"):
        path.write_bytes(b"x")
    files.sweep_temporaries(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == [alive.name, "c.png"]


def test_png_bytes_depend_on_pixels_alone() -> None:
    array = np.arange(64, dtype=np.uint8).reshape(8, 8)
    assert images.encode_png(array) == images.encode_png(array.copy())


def test_folder_below_a_file_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="cannot be written.*choose another --output"):
        require_writable(tmp_path / "file" / "sub")
    require_writable(tmp_path / "new")
    assert list((tmp_path / "new").iterdir()) == []
