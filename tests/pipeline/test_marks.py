"""Marks: excluded samples are left out by every program, and come back."""

import json
import os
import sys
from pathlib import Path

import pytest

from pipeline import export, marks, prepare
from pipeline.dataset import open_dataset
from pipeline.errors import UserError
from pipeline.marks import Mark


def ids(folder: Path, **more: bool) -> list[str]:
    return [sample.id for sample in open_dataset(folder, labelled=True, **more)]


def test_excluded_samples_are_left_out_and_said(tiny_dataset, capsys) -> None:
    folder = tiny_dataset(3, 32, 64)
    everything = ids(folder)
    assert not capsys.readouterr().err
    given = {
        everything[1]: Mark(excluded=True, comment="two moons"),
        everything[2]: Mark(marked=True),
    }
    marks.write_marks(folder, given)
    assert marks.read_marks(folder) == given
    assert ids(folder) == [everything[0], everything[2]]
    assert "1 samples are excluded by marks.json" in capsys.readouterr().err
    assert ids(folder, with_excluded=True) == everything
    marks.write_marks(folder, {everything[1]: Mark()})
    assert ids(folder) == everything and marks.read_marks(folder) == {}


def test_what_others_keep_in_the_file_stays(tiny_dataset) -> None:
    folder = tiny_dataset(2, 32, 64)
    key = ids(folder)[0]
    others = {"reviewer": "Ada", "version": 2}
    (folder / marks.NAME).write_text(json.dumps({**others, "samples": {}}))
    marks.write_marks(folder, {key: Mark(marked=True)})
    found = json.loads((folder / marks.NAME).read_text())
    assert found.pop("samples")[key]["marked"] and found == others


def test_a_set_of_excluded_samples_alone_is_one_line(tiny_dataset) -> None:
    folder = tiny_dataset(1, 32, 64)
    marks.write_marks(folder, dict.fromkeys(ids(folder), Mark(excluded=True)))
    with pytest.raises(UserError, match="all 1 samples are excluded.*browse.py"):
        ids(folder)


def test_exports_and_prepare_leave_excluded_samples_out(
    tiny_dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tiny_dataset(3, 32, 64)
    marks.write_marks(folder, {ids(folder)[0]: Mark(excluded=True)})
    out = tmp_path / "export"
    flags = ["--data", folder, "--format", "imagefolder", "--output", out]
    monkeypatch.setattr(sys, "argv", ["export.py", *map(str, flags)])
    assert not export.main()
    assert len(list(out.rglob("*.png"))) == 4
    prepared = tmp_path / "prepared"
    flags = ["--dataset", "own", "--root", folder, "--split", "all", "--output", prepared,
             "--workers", 1]  # fmt: skip
    monkeypatch.setattr(sys, "argv", ["prepare.py", *map(str, flags)])
    assert not prepare.main()
    assert len(ids(prepared)) == 2


BAD = [
    b"[1]", b"{", b"\xff", b'{"samples": [1]}', b'{"other": {}}', b'{"samples": {"../a": {}}}',
    b'{"samples": {"a": {"excluded": 1}}}', b'{"samples": {"a": {"comment": null}}}',
    b'{"samples": {"a": {"unknown": true}}}', b'{"samples": {"a": [1]}}',
    json.dumps({"samples": {"a": {"comment": "x" * 3000}}}).encode(),
]  # fmt: skip


@pytest.mark.parametrize("data", BAD, ids=lambda data: data[:40].decode(errors="replace"))
def test_broken_marks_are_one_line(tiny_dataset, data: bytes) -> None:
    folder = tiny_dataset(1, 32, 64)
    (folder / "marks.json").write_bytes(data)
    with pytest.raises(UserError, match=r"marks.json: ") as caught:
        ids(folder)
    assert "\n" not in str(caught.value)


def test_marks_behind_links_and_pipes_are_refused(tiny_dataset, tmp_path: Path) -> None:
    folder, outside = tiny_dataset(1, 32, 64), tmp_path / "marks.json"
    outside.write_text('{"samples": {}}')
    (folder / "marks.json").symlink_to(outside)
    with pytest.raises(UserError, match="leads out of the dataset folder"):
        ids(folder)
    (folder / "marks.json").unlink()
    os.mkfifo(folder / "marks.json")
    with pytest.raises(UserError, match="is a pipe"):
        ids(folder)
