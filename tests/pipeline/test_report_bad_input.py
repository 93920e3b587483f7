"""What a stranger may leave in a workspace: one line, or left out and said; never a traceback."""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import report
from pipeline.errors import UserError
from pipeline.reading import read_json

ENTRY: dict[str, Any] = {"name": "a", "mean_miou": 3.0, "targets": {"t": {"miou": 3.0, "iou": {}}}}
SCORES: dict[str, Any] = {
    "list": [1],
    "text": "abc",
    "null": None,
    "empty": {},
    "checkpoints text": {"checkpoints": "abc"},
    "checkpoints of text": {"checkpoints": ["abc"]},
    "checkpoints mapping": {"checkpoints": {"a": 1}},
    "no name": {"checkpoints": [{**ENTRY, "name": None}]},
    "name list": {"checkpoints": [{**ENTRY, "name": [1]}]},
    "targets list": {"checkpoints": [{**ENTRY, "targets": [1]}]},
    "target text": {"checkpoints": [{**ENTRY, "targets": {"t": "abc"}}]},
    "miou text": {"checkpoints": [{**ENTRY, "targets": {"t": {"miou": "high"}}}]},
    "miou nan": {"checkpoints": [{**ENTRY, "targets": {"t": {"miou": float("nan")}}}]},
    "miou huge": {"checkpoints": [{**ENTRY, "targets": {"t": {"miou": 1e300}}}]},
    "mean true": {"checkpoints": [{**ENTRY, "mean_miou": True}]},
    "iou list": {"checkpoints": [{**ENTRY, "targets": {"t": {"miou": 3.0, "iou": [1]}}}]},
    "iou text": {"checkpoints": [{**ENTRY, "targets": {"t": {"miou": 3.0, "iou": {"car": "x"}}}}]},
    "conditions list": {"checkpoints": [{**ENTRY, "targets": {"t": {"conditions": [1]}}}]},
    "condition text": {"checkpoints": [{**ENTRY, "targets": {"t": {"conditions": {"f": "x"}}}}]},
}
STAGE: dict[str, Any] = {"seconds": 1.0, "peak_mb": 2, "finished_at": "now"}
TIMINGS: dict[str, Any] = {
    "list": [1],
    "empty": {},
    "stages list": {"stages": [1]},
    "stage text": {"stages": {"a": "x"}},
    "seconds absent": {"stages": {"a": {"peak_mb": 2, "finished_at": "now"}}},
    "seconds text": {"stages": {"a": {**STAGE, "seconds": "1"}}},
    "seconds nan": {"stages": {"a": {**STAGE, "seconds": float("nan")}}},
    "seconds true": {"stages": {"a": {**STAGE, "seconds": True}}},
    "peak null": {"stages": {"a": {**STAGE, "peak_mb": None}}},
    "finished list": {"stages": {"a": {**STAGE, "finished_at": [1]}}},
}
BYTES = {
    "deep": b"[" * 100_000,
    "latin-1": b'{"checkpoints": "\xe9"}',
    "cut": b'{"checkpoints": [',
    "nothing": b"",
}
FILES = [
    *(("scores.json", name, json.dumps(value).encode()) for name, value in SCORES.items()),
    *(("timings.json", name, json.dumps(value).encode()) for name, value in TIMINGS.items()),
    *((file, name, data) for file in ("scores.json", "timings.json")
      for name, data in BYTES.items()),
]  # fmt: skip


@pytest.fixture
def start(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., int | None]:
    def call(*flags: object) -> int | None:
        argv = ["report.py", "--workspace", str(tmp_path), *map(str, flags)]
        monkeypatch.setattr(sys, "argv", argv)
        return report.main()

    return call


@pytest.mark.parametrize(("file", "name", "data"), FILES, ids=[f"{f} {n}" for f, n, _ in FILES])
def test_odd_numbers_are_one_line(
    start: Callable[..., int | None], tmp_path: Path, file: str, name: str, data: bytes
) -> None:
    (tmp_path / file).write_bytes(data)
    with pytest.raises(UserError) as caught:
        start()
    assert str(tmp_path / file) in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "report.html").exists()


def test_pipes_and_folders_in_place_of_files(
    start: Callable[..., int | None], tmp_path: Path
) -> None:
    os.mkfifo(tmp_path / "scores.json")
    with pytest.raises(UserError, match="scores.json: is a pipe"):
        start()
    (tmp_path / "scores.json").unlink()
    (tmp_path / "timings.json").mkdir()
    with pytest.raises(UserError, match="timings.json: is a folder"):
        start()


def test_output_that_cannot_be_written(start: Callable[..., int | None], tmp_path: Path) -> None:
    (tmp_path / "report.html").mkdir()
    with pytest.raises(UserError, match="report.html: is a folder"):
        start()
    (tmp_path / "file").write_text("")
    for output, message in (
        (tmp_path / "file" / "report.html", "cannot be written"),
        (tmp_path / ("x" * 300) / "report.html", "cannot be written"),
        (Path("/proc/report.html"), "cannot be written"),
    ):
        with pytest.raises(UserError, match=message):
            start("--output", output)


ODD: list[dict[str, Any]] = [
    {"condition": ["fog", {"a": 1}]},
    {"condition": None, "prompt": 7},
    {"condition": {"a": "<img src=x onerror=alert(1)>"}, "look": [1]},
    {"prompt": ["<script>alert(1)</script>", '" onload="alert(1)'], "look": "<b>"},
    {"crop": "abc"},
    {"crop": [0, 0, 10**9, 4]},
    {"crop": [-4, 0, 8, 8]},
    {"crop": [0, 0, 8.5, 8]},
    {"source_label": "../secret/labels/a.png"},
    {"source_label": "/etc/hostname"},
    {"source_label": ["x"]},
    {"source_label": "a\0b"},
    {"source_label": "x" * 5000},
]


@pytest.mark.parametrize("change", ODD, ids=lambda change: repr(change)[:40])
def test_odd_rows_are_shown_escaped_or_left_out(
    start: Callable[..., int | None],
    tiny_dataset: Callable[..., Path],
    tmp_path: Path,
    change: dict[str, Any],
) -> None:
    tiny_dataset(1, 64, 128, folder=tmp_path / "data" / "source")
    tiny_dataset(1, 64, 128, folder=tmp_path / "secret")
    for name in ("generated", "data/collection"):
        folder = tiny_dataset(2, 64, 128, folder=tmp_path / name)
        (file,) = folder.glob("metadata*.jsonl")
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        rows[0].pop("row_sha256", None)
        rows[0] |= change
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert not start()
    page = (tmp_path / "report.html").read_text()
    assert "<script" not in page and "<img src=x" not in page and '" onload' not in page
    if "source_label" in change or "crop" in change:
        assert "source image</figcaption>" not in page


def test_a_folder_that_cannot_be_read_is_left_out_and_said(
    start: Callable[..., int | None],
    tiny_dataset: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = tiny_dataset(2, 64, 128, folder=tmp_path / "generated")
    (file,) = folder.glob("metadata*.jsonl")
    file.write_text("[\n" + file.read_text())
    assert not start()
    message = capsys.readouterr().err
    assert f"notice: left out, {file}:1" in message
    assert "Not in this workspace yet: generated images" in (tmp_path / "report.html").read_text()


def test_scores_of_a_sound_run_still_pass(start: Callable[..., int | None], tmp_path: Path) -> None:
    part = {"miou": None, "iou": {"car": 3, "train": None}}
    entry = {**ENTRY, "targets": {"t": {**part, "conditions": {"fog": part}}}, "mean_miou": None}
    (tmp_path / "scores.json").write_text(json.dumps({"checkpoints": [entry], "more": [1]}))
    (tmp_path / "timings.json").write_text(json.dumps({"stages": {"<b>": STAGE}}))
    assert not start() and read_json(tmp_path / "scores.json", dict)
    assert "&lt;b&gt;" in (tmp_path / "report.html").read_text()


ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(
        st.sampled_from(
            ["checkpoints", "name", "targets", "miou", "iou", "conditions", "mean_miou", "stages",
             "seconds", "peak_mb", "finished_at", "command", "car"]
        ) | st.text(max_size=6), inner, max_size=5,
    ),
    max_leaves=25,
)  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(
    scores=st.fixed_dictionaries({"checkpoints": st.lists(
        st.fixed_dictionaries({"name": st.text(), "mean_miou": ANY, "targets": ANY}))}) | ANY,
    timings=st.fixed_dictionaries({"stages": st.dictionaries(st.text(), st.fixed_dictionaries(
        {"seconds": ANY, "peak_mb": st.integers(0, 9), "finished_at": st.just("now") | ANY,
         "command": ANY}))}) | ANY,
)  # fmt: skip
def test_any_scores_and_timings_are_a_page_or_one_line(
    tmp_path_factory: pytest.TempPathFactory, scores: Any, timings: Any
) -> None:
    folder = tmp_path_factory.mktemp("report")
    (folder / "scores.json").write_text(json.dumps(scores))
    (folder / "timings.json").write_text(json.dumps(timings))
    try:
        page = report.render(report.gather(folder, 1))
    except UserError as error:
        assert ".json: " in str(error)
    else:
        assert page.startswith("<!doctype html>") or "<html" in page
