"""One metadata file from many: sorted, whole after a kill, nothing lost, bad folders refused."""

import errno
import json
import os
import shutil
import socket
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline import claims, files, merge, metadata, verify
from pipeline.dataset_writer import DatasetWriter
from pipeline.errors import EXIT_INCOMPLETE, UserError
from pipeline.metadata import read_rows
from pipeline.reading import read_json
from tests.pipeline.verifying import call as call
from tests.pipeline.verifying import data as data
from tests.pipeline.verifying import flip, rewrite


def run_merge(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    monkeypatch.setattr(sys, "argv", ["merge.py", "--data", str(folder)])
    assert merge.main() is None


def test_merge_makes_one_sorted_file(
    data: Path, monkeypatch: pytest.MonkeyPatch, call: Callable
) -> None:
    before = read_rows(data)
    (data / "metadata-000.jsonl").rename(data / "metadata-002.jsonl")
    with open(data / "metadata-001.jsonl", "a") as handle:
        handle.write('{"id": "0000')
    for _ in range(2):
        run_merge(monkeypatch, data)
        assert [p.name for p in data.glob("metadata*")] == ["metadata.jsonl"]
        assert read_rows(data) == before and list(read_rows(data)) == sorted(before)
    assert call(data, "--n", 4) == (0, [])
    config = read_json(data / "run.json")["config"]
    assert DatasetWriter(data, config=config).done_ids() == set(before)


def test_merge_survives_a_kill_at_every_point(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before, points = read_rows(data), 0
    for number in range(100):
        folder = data.parent / f"copy{number}"
        shutil.copytree(data, folder)
        calls = iter(range(100))

        def dying(function: Callable, calls=calls, number=number) -> Callable:
            def step(*arguments: object, **options: object) -> object:
                if next(calls) == number:
                    raise KeyboardInterrupt
                return function(*arguments, **options)

            return step

        with monkeypatch.context() as patch:
            for owner, name in ((os, "replace"), (os, "fsync"), (Path, "unlink")):
                patch.setattr(owner, name, dying(getattr(owner, name)))
            try:
                run_merge(patch, folder)
            except KeyboardInterrupt:
                points += 1
            else:
                break
        assert read_rows(folder) == before
        run_merge(monkeypatch, folder)
        assert read_rows(folder) == before
        assert [p.name for p in folder.glob("metadata*.jsonl")] == ["metadata.jsonl"]
    assert points >= 5


def test_folders_at_work_are_refused(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (data / "claims").mkdir()
    holder = {"host": socket.gethostname(), "host_id": files.host_id(), "pid": os.getpid()}
    claim = data / "claims/process-x"
    claim.write_text(json.dumps(holder))
    for function in (lambda: run_merge(monkeypatch, data), lambda: claims.require_idle(data)):
        with pytest.raises(UserError, match=f"process {os.getpid()} .*is writing to it"):
            function()
    claim.write_text(json.dumps({**holder, "pid": 2**22 + 1}))  # dead
    claims.require_idle(data)
    claim.write_text(json.dumps({**holder, "host": "elsewhere", "host_id": "other"}))
    with pytest.raises(UserError, match="elsewhere is writing"):
        claims.require_idle(data)
    os.utime(claim, (0, 0))
    run_merge(monkeypatch, data)


def test_rows_written_meanwhile_are_not_lost(data: Path) -> None:
    scan = metadata.scan_rows(data)
    with open(data / "metadata-001.jsonl", "a") as handle:
        handle.write('{"id": "00000009", "image_file_name": "a.png"}\n')
    with pytest.raises(UserError, match="has changed meanwhile"):
        metadata.write_merged(data, [metadata.choose(r) for r in scan.rows.values()], scan.sizes)
    assert "00000009" in read_rows(data) and not (data / "metadata.jsonl").exists()


def test_two_images_under_one_id_are_never_made_one(
    data: Path, monkeypatch: pytest.MonkeyPatch, call: Callable
) -> None:
    path = data / "metadata-000.jsonl"
    loose = [
        {k: v for k, v in json.loads(line).items() if k not in ("row_sha256", "digest")}
        for line in path.read_text().splitlines()[:2]
    ]
    path.write_text("".join(json.dumps(row | {"id": "x"}) + "\n" for row in loose))
    for other in data.glob("metadata-*.jsonl"):
        other.unlink() if other != path else None
    before = path.read_text()
    with pytest.raises(UserError, match="another row has the id x too"):
        run_merge(monkeypatch, data)
    assert path.read_text() == before
    code, lines = call(data, "--repair")
    assert code == EXIT_INCOMPLETE and any("names another image" in line for line in lines)
    kept = [line for file in data.glob("metadata*.jsonl") for line in file.read_text().splitlines()]
    assert {json.loads(line)["image_file_name"] for line in kept} == {
        row["image_file_name"] for row in loose
    }


def test_merge_stops_at_broken_rows(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rewrite(data, lambda row: row | {"prompt": "another"})
    with pytest.raises(UserError, match="--repair first"):
        run_merge(monkeypatch, data)


@pytest.mark.parametrize("program", [verify, merge])
def test_bad_folders_are_one_line(program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for flags, message in (
        ([], "no folder given"),
        (["--data", str(tmp_path / "no")], "no such dataset folder"),
        (["--data", str(tmp_path)], "has no metadata.jsonl"),
    ):
        monkeypatch.setattr(sys, "argv", ["x.py", *flags])
        with pytest.raises(UserError, match=message):
            program.main()


def test_a_read_only_folder_is_one_line(
    call: Callable, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path, content: bytes) -> None:
        raise OSError(errno.EROFS, "Read-only file system", str(path))

    monkeypatch.setattr(files, "write_bytes", refuse)
    with pytest.raises(UserError, match="cannot be written .Read-only file system."):
        run_merge(monkeypatch, data)
    flip(data / "images/0000/00000000.png")
    with pytest.raises(UserError, match="cannot be written .Read-only file system."):
        call(data, "--repair")
    assert len(list(data.glob("metadata*"))) == 2
