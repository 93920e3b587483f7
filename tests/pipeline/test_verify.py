"""Verify: all damage is found, only its samples are withdrawn, nothing sound is lost."""

import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pipeline import files, images, metadata, prepare, sample_checks, verify
from pipeline.dataset_writer import DatasetWriter
from pipeline.errors import EXIT_INCOMPLETE, UserError
from pipeline.metadata import read_rows
from pipeline.reading import read_json
from pipeline.sample_checks import Checker, check_samples
from tests.pipeline.verifying import both, flip, rewrite, swap
from tests.pipeline.verifying import call as call
from tests.pipeline.verifying import data as data

IMAGES, LABELS = "images/0000/0000000{}.png", "labels/0000/0000000{}.png"


def test_sound_folders_pass_and_are_left_alone(call: Callable, data: Path) -> None:
    before = {p: p.stat().st_mtime_ns for p in data.rglob("*")}
    assert call(data, "--n", 4) == call(data, "--n", 4, "--repair") == (0, [])
    assert {p: p.stat().st_mtime_ns for p in data.rglob("*")} == before


@pytest.mark.parametrize(
    ("damage", "found"),
    [
        (lambda d: flip(d / IMAGES.format(2)), [("00000002", "image_sha256")]),
        (lambda d: flip(d / LABELS.format(2)), [("00000002", "label_sha256")]),
        (lambda d: os.truncate(d / IMAGES.format(0), 40), [("00000000", "image_sha256")]),
        (lambda d: os.truncate(d / LABELS.format(0), 0), [("00000000", "label_sha256")]),
        (lambda d: (d / IMAGES.format(3)).unlink(), [("00000003", "is missing")]),
        (lambda d: (d / LABELS.format(3)).unlink(), [("00000003", "is missing")]),
        (
            lambda d: swap(*both(d, LABELS)),
            [("00000000", "it is the label of 00000001"), ("00000001", "label of 00000000")],
        ),
        (
            lambda d: swap(*both(d, IMAGES)),
            [("00000000", "it is the image of 00000001"), ("00000001", "image of 00000000")],
        ),
        (
            lambda d: shutil.copy(d / IMAGES.format(1), d / LABELS.format(1)),
            [("00000001", "it is the image of 00000001")],
        ),
    ],
)
def test_damage_is_found_and_only_its_samples_are_withdrawn(
    damage: Callable, found: list, call: Callable, data: Path
) -> None:
    damage(data)
    whole = set(data.rglob("*.png"))
    for flags in ((), ("--repair",)):
        code, lines = call(data, *flags)
        assert code == EXIT_INCOMPLETE and len(lines) == len(found)
        for line, (key, what) in zip(lines, found, strict=True):
            assert line.startswith(f"sample {key}: ") and what in line
    assert set(data.rglob("*.png")) == whole
    assert [p.name for p in data.glob("metadata*")] == ["metadata.jsonl"]
    bad = {key for key, _ in found}
    assert {k for k, row in read_rows(data).items() if row["status"] != "ok"} == bad
    code, lines = call(data, "--repair")
    assert code == EXIT_INCOMPLETE and all(": withdrawn: " in line for line in lines)
    assert len(lines) == len(found)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda row: row | {"prompt": "another"}, "differs from its row_sha256"),
        (lambda row: row | {"label_sha256": "0" * 64}, "differs from its row_sha256"),
        (lambda row: {k: v for k, v in row.items() if k != "row_sha256"}, "has no row_sha256"),
        (lambda row: [row], "holds list, not a mapping"),
        (lambda row: row | {"id": 7}, "unfit id: must be text, not 7"),
    ],
)
def test_changed_rows_are_found(change: Callable, what: str, call: Callable, data: Path) -> None:
    rewrite(data, change)
    code, lines = call(data)
    assert code == EXIT_INCOMPLETE and sum(what in line for line in lines) == 1


def test_every_changed_byte_of_the_metadata_is_found(call: Callable, data: Path) -> None:
    path, sound = data / "metadata-000.jsonl", read_rows(data)
    original = path.read_bytes()
    rng = np.random.default_rng(0)
    for place, value in zip(
        rng.integers(0, len(original), 1000), rng.integers(0, 256, 1000), strict=True
    ):
        changed = bytearray(original)
        changed[place] = value
        path.write_bytes(changed)
        scan = metadata.scan_rows(data)
        digest, faults = verify.read_run_digest(data, scan)
        problems = check_samples(Checker(data, scan, digest), scan, 1)
        faults = [*faults, *scan.faults, *verify.judge(scan, problems)[0]]
        faults += verify.find_gaps(scan, 4)
        assert faults or read_rows(data) == sound, (place, value)
    path.write_bytes(original)
    assert call(data, "--n", 4) == (0, [])


def test_rows_without_hashes_are_sound_where_no_row_has_one(call: Callable, data: Path) -> None:
    for path in data.glob("metadata-*.jsonl"):
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        for row in rows:
            del row["row_sha256"]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with (data / "metadata-001.jsonl").open("a") as handle:
        handle.write(json.dumps({"id": "00000004", "status": "failed", "error": "blank"}) + "\n")
    _, lines = call(data, "--repair")
    assert not [line for line in lines if "row_sha256" in line]
    assert sum(row["status"] == "ok" for row in read_rows(data).values()) == 4


def test_a_ray_cluster_finds_what_threads_find(call: Callable, data: Path, monkeypatch) -> None:
    pytest.importorskip("ray", reason="ray is not installed; pip install -e '.[ray]'")
    monkeypatch.setattr(sample_checks, "CHUNK", 3)
    flip(data / IMAGES.format(2))
    (data / LABELS.format(3)).unlink()
    code, lines = call(data)
    assert code == EXIT_INCOMPLETE and len(lines) == 2
    assert call(data, "--ray", "local", "--ray-workers", 1) == (code, lines)


def test_broken_torn_and_repeated_rows_are_repaired(call: Callable, data: Path) -> None:
    path = data / "metadata-000.jsonl"
    first, second, third = path.read_text().splitlines(keepends=True)
    path.write_text(first + "\n" + second + second + "\0\0\n" + third + '{"id": "0000')
    code, lines = call(data)
    assert code == EXIT_INCOMPLETE and len(lines) == 4
    for line, what in zip(
        lines, ("2: broken row, it is empty", "5: broken", "7: torn", "2 ok rows"), strict=True
    ):
        assert what in line
    assert call(data, "--repair")[0] == 0
    assert call(data, "--n", 4) == (0, []) and len(read_rows(data)) == 4


def test_lost_rows_leave_gaps_and_orphans(call: Callable, data: Path) -> None:
    path = data / "metadata-000.jsonl"
    path.write_text(path.read_text().splitlines(keepends=True)[0])
    (data / IMAGES.format(2)).unlink()
    (data / "images/0000/x.png.part-1-2").write_text("a writer may be at work")
    code, lines = call(data, "--n", 6, "--repair")
    assert code == EXIT_INCOMPLETE and len(lines) == 5
    assert "sample 00000001 to 00000002: has no row" in lines[0]
    assert "sample 00000004 to 00000005: has no row" in lines[1]
    assert all("no row names it" in line for line in lines[2:])
    assert (data / IMAGES.format(1)).exists()


def test_the_sound_one_of_two_rows_stays(call: Callable, data: Path) -> None:
    with open(data / "metadata-000.jsonl") as handle:
        row = json.loads(handle.readline())
    bad = {k: v for k, v in row.items() if k != "row_sha256"} | {"image_sha256": "0" * 64}
    writer = DatasetWriter(data, config=read_json(data / "run.json")["config"])
    (data / "metadata-000.jsonl").rename(data / "metadata-009.jsonl")
    writer.append_row(bad)  # is read first
    assert call(data, "--repair")[0] == 0
    assert read_rows(data)["00000000"]["image_sha256"] == row["image_sha256"]


def test_wrong_ids_sizes_names_and_runs_are_found(call: Callable, tmp_path: Path) -> None:
    folder = tmp_path / "d"
    writer = DatasetWriter(folder, config={"seed": 1})
    image, label = np.zeros((4, 6, 3), np.uint8), np.zeros((4, 6), np.uint8)
    writer.write(0, image, np.full((4, 6), 19, np.uint8), {})
    writer.write(1, image, label[:2], {})
    writer.write(2, image, label, {"digest": "of another run"})
    row = writer.write(3, image, label, {"digest": writer.digest})
    writer.append_row({**row, "id": "00000004"})
    writer.write(5, image, None, {})
    writer.write_failure(6, "black image", {})
    code, lines = call(folder)
    whats = ("ids [19]", "is 6x2", "another run", "by its name", "no label", "failed: black")
    assert code == EXIT_INCOMPLETE and len(lines) == len(whats)
    for line, what in zip(lines, whats, strict=True):
        assert what in line


@pytest.mark.parametrize("name", ["run.json", "classes.json"])
def test_damaged_records_are_found(name: str, call: Callable, data: Path) -> None:
    for damage in (lambda p: p.write_text("{}"), flip, lambda p: p.write_bytes(b"\xff"), os.remove):
        damage(data / name)
        code, lines = call(data)
        assert code == EXIT_INCOMPLETE and len(lines) == 1 and name in lines[0]


def test_prepared_labels_are_made_again(
    call: Callable, gta_tree: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    argv = ["--dataset", "gta", "--root", str(gta_tree(3)), "--output", str(out), "--workers", "1"]
    monkeypatch.setattr(sys, "argv", ["prepare.py", *argv])
    assert prepare.main() is None and call(out)[0] == 0
    before = read_rows(out)
    flip(out / LABELS.format(1))
    assert call(out, "--repair")[0] == EXIT_INCOMPLETE
    monkeypatch.setattr(sys, "argv", ["prepare.py", *argv])
    assert prepare.main() is None
    assert call(out, "--n", 3) == (0, []) and read_rows(out) == before


def test_repair_leaves_folders_of_others_as_they_are(call: Callable, tmp_path: Path) -> None:
    lines = [json.dumps({"file_name": f"{i}.png", "text": "a street"}) for i in range(3)]
    (tmp_path / "metadata.jsonl").write_text("\n".join(lines))
    before = (tmp_path / "metadata.jsonl").read_bytes()
    for program in (lambda: call(tmp_path, "--repair"), lambda: call(tmp_path, "--repair")):
        with pytest.raises(
            UserError, match="not a dataset folder of ours .*Hugging Face"
        ) as caught:
            program()
        assert "remove" not in str(caught.value)
    assert [p.name for p in tmp_path.iterdir()] == ["metadata.jsonl"]
    assert (tmp_path / "metadata.jsonl").read_bytes() == before


@pytest.mark.parametrize("damage", ["cut", "other run", "edited", "list", "gone"])
def test_repair_withdraws_nothing_for_run_json(damage: str, call: Callable, tmp_path: Path) -> None:
    folder = tmp_path / "d"
    writer = DatasetWriter(folder, config={"seed": 1})
    image, label = np.zeros((4, 6, 3), np.uint8), np.zeros((4, 6), np.uint8)
    for index in range(2):
        writer.write(index, image, label, {"digest": writer.digest})
    path, rows_before = folder / "run.json", (folder / "metadata-000.jsonl").read_bytes()
    whole = path.read_bytes()
    if damage == "cut":
        os.truncate(path, 20)
    elif damage == "other run":
        DatasetWriter(tmp_path / "e", config={"seed": 2})
        shutil.copy(tmp_path / "e/run.json", path)
    elif damage == "edited":
        path.write_bytes(whole.replace(b'"seed": 1', b'"seed": 5'))
    elif damage == "list":
        path.write_text("[]")
    else:
        path.unlink()
    for _ in range(2):
        code, lines = call(folder, "--n", 2, "--repair")
        assert code == EXIT_INCOMPLETE and len(lines) == 1 and "restore it from a copy" in lines[0]
    assert (folder / "metadata-000.jsonl").read_bytes() == rows_before
    path.write_bytes(whole)
    assert call(folder, "--n", 2) == (0, [])


@pytest.mark.parametrize("damage", [b"", b'{"config": {"se', b"[]", None])
def test_a_run_without_its_record_goes_on_if_the_rows_prove_it(
    damage: bytes | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, config = tmp_path / "d", {"seed": 1}
    writer = DatasetWriter(folder, config=config)
    image, label = np.zeros((4, 6, 3), np.uint8), np.zeros((4, 6), np.uint8)
    writer.write(0, image, label, {"digest": writer.digest})
    whole = (folder / "run.json").read_bytes()
    (folder / "run.json").unlink()
    if damage is not None:
        (folder / "run.json").write_bytes(damage)
    with pytest.raises(UserError, match="restore it from a copy"):
        DatasetWriter(folder, config={"seed": 2})
    assert DatasetWriter(folder, config=config).done_ids() == {"00000000"}
    assert (folder / "run.json").read_bytes() == whole
    assert "written again" in capsys.readouterr().err


def test_repair_keeps_the_rows_as_they_were(call: Callable, data: Path) -> None:
    flip(data / IMAGES.format(0))
    with open(data / "metadata-000.jsonl", "a") as handle:
        handle.write("a line by hand\n")
    before = {p.name: p.read_bytes() for p in data.glob("metadata*")}
    call(data, "--repair")
    kept = {p.name: p.read_bytes() for p in (data / "replaced/001").iterdir()}
    assert kept == {f"{name}.before": content for name, content in before.items()}
    flip(data / IMAGES.format(1))
    call(data, "--repair")
    assert (data / "replaced/002/metadata.jsonl.before").exists()


def test_repair_follows_no_link_of_the_folder(call: Callable, data: Path, tmp_path: Path) -> None:
    flip(data / IMAGES.format(0))
    (tmp_path / "elsewhere").mkdir()
    (data / "replaced").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="replaced: is a link"):
        call(data, "--repair")
    assert not list((tmp_path / "elsewhere").iterdir())
    assert len(list(data.glob("metadata*"))) == 2


def test_rows_without_hashes_are_checked_by_their_files(call: Callable, tmp_path: Path) -> None:
    image, label = np.zeros((4, 6, 3), np.uint8), np.zeros((4, 6), np.uint8)
    lines = []
    for name in ("a", "b"):
        files.write_bytes(tmp_path / f"{name}.png", images.encode_png(image))
        files.write_bytes(tmp_path / f"{name}_label.png", images.encode_png(label))
        row = {"id": name, "image_file_name": f"{name}.png", "label_file_name": f"{name}_label.png"}
        lines.append(json.dumps(row) + "\n")
    (tmp_path / "metadata.jsonl").write_text("".join(lines))
    _, found = call(tmp_path)
    assert [line.partition(": ")[0] for line in found] == [
        str(tmp_path / "run.json"),
        str(tmp_path / "classes.json"),
    ]
    os.truncate(tmp_path / "b.png", 60)
    (tmp_path / "a.png").unlink()
    os.mkfifo(tmp_path / "a.png")
    _, found = call(tmp_path)
    assert "a.png is a pipe" in found[-2] and "b.png: not a readable image" in found[-1]


def test_numbers_below_zero_are_refused(call: Callable, data: Path) -> None:
    for flags in (("--n", -5), ("--threads", 0)):
        with pytest.raises(UserError, match=f"{flags[0]} {flags[1]}"):
            call(data, *flags)
