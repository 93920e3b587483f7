"""The program that writes a filtered set: filters, calibration, damage, bad input."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from generation import filter as program
from generation import score
from pipeline import files
from pipeline.claims import Claims
from pipeline.dataset import open_dataset
from pipeline.dataset_writer import DatasetWriter
from pipeline.errors import UserError
from pipeline.labels import colorize
from pipeline.marks import Mark, write_marks
from pipeline.metadata import read_rows

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
ROAD, CAR, SKY, VOID = 0, 13, 10, 255


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """A function that runs the filter, or another program, in this process."""
    monkeypatch.syspath_prepend(str(HERE))

    def run(*arguments: object, main: Callable[[], int | None] = program.main) -> int:
        monkeypatch.setattr(sys, "argv", ["program", *map(str, arguments)])
        return main() or 0

    return run


@pytest.fixture
def scored(call, tmp_path: Path) -> Path:
    """Three images of one label map, a car on a road under a sky; the third has no car."""
    label = np.full((32, 64), SKY, np.uint8)
    label[16:] = ROAD
    label[18:26, 20:36] = CAR
    writer = DatasetWriter(tmp_path / "data", config={})
    for index in range(3):
        shown = label.copy()
        if index == 2:
            shown[label == CAR] = ROAD
        condition = {"condition": ("day", "day", "night")[index]}
        writer.write(index, colorize(shown), label, condition)
    judge = tmp_path / "judge"
    judge.mkdir()
    words = ("--segmenters", judge, "--segmenter-class", "toy_segmenter:ToySegmenter")
    data = tmp_path / "data"
    assert call("--data", data, *words, "--costs", "--costs-stride", 1, main=score.main) == 0
    return data


def test_the_vote_drops_the_missing_car(call, scored: Path, tmp_path: Path) -> None:
    before = {p: p.read_bytes() for p in scored.rglob("*") if p.is_file()}
    words = ("--data", scored, "--output", tmp_path / "out", "--preset", "vote")
    assert call(*words) == 0
    samples = open_dataset(tmp_path / "out", labelled=True)
    old = [np.array(Image.open(s.label)) for s in open_dataset(scored, labelled=True)]
    new = [np.array(Image.open(s.label)) for s in samples]
    assert np.array_equal(new[0], old[0]) and np.array_equal(new[1], old[1])
    assert (new[2][old[2] == CAR] == VOID).all()
    assert np.array_equal(new[2][old[2] != CAR], old[2][old[2] != CAR])
    assert samples[2].row["class_pixels"][CAR] == 0
    report = json.loads((tmp_path / "out/filter.json").read_text())
    assert report["night"]["dropped_by_class"]["car"] == 100
    assert report["day"]["dropped"] == 0
    assert report["all"]["dropped_by_class"]["car"] == pytest.approx(33.33)
    assert {p: p.read_bytes() for p in before} == before, "the scored set stays as it is"
    assert call(*words) == 0
    with pytest.raises(UserError, match="vote_share: 0.5 -> 0.9"):
        call(*words, "--vote-share", 0.9)


def test_rejected_images_keep_a_row_with_the_reason(call, scored: Path, tmp_path: Path) -> None:
    """Calibrated over all conditions, the image without its car shows too little of it."""
    words = ("--data", scored, "--output", tmp_path / "out", "--preset", "none")
    assert call(*words, "--reject-below", 0.99) == 0
    assert [s.id for s in open_dataset(tmp_path / "out", labelled=True)] == ["00000000", "00000001"]
    rejected = read_rows(tmp_path / "out")["00000002"]
    assert (
        rejected["status"] == "withdrawn"
        and "of that expected for its classes" in rejected["error"]
    )
    report = json.loads((tmp_path / "out/filter.json").read_text())
    assert report["night"]["rejected"] == 1 and report["night"]["dropped"] == 100


def test_a_stopped_filter_continues(call, scored: Path, tmp_path: Path, monkeypatch) -> None:
    words = ("--data", scored, "--preset", "transport")
    assert call(*words, "--output", tmp_path / "straight") == 0
    write, calls = program.write_sample, []

    def dying(*arguments, **named) -> None:
        calls.append(0)
        if len(calls) == 2:
            raise KeyboardInterrupt
        write(*arguments, **named)

    monkeypatch.setattr(program, "write_sample", dying)
    with pytest.raises(KeyboardInterrupt):
        call(*words, "--output", tmp_path / "stopped")
    monkeypatch.setattr(program, "write_sample", write)
    assert call(*words, "--output", tmp_path / "stopped") == 0
    found = [
        {str(p.relative_to(f)): p.read_bytes() for p in f.rglob("*") if p.is_file()}
        for f in (tmp_path / "straight", tmp_path / "stopped")
    ]
    assert found[0] == found[1]


BAD = [  # (flags, what the line says)
    (["--factor", 0], "--factor 0: must be above 0"),
    (["--vote-share", 2], "--vote-share 2: must be in 0..1"),
    (["--temperature", -1], "--temperature -1: must be above 0"),
    (["--preset", "magic"], "magic"),
    (["--segmenter", "other"], "the scores are of judge; name one of them"),
    (["--quality", "nowhere"], "3 samples have no scores; run generation/score.py"),
    (["--reject-attribute", "time"], "--reject-attribute time: was not scored"),
    (["--output", "DATA/filtered"], "lies in --data"),
    (
        ["--data", "memory://set"],
        "memory://set/quality: is an address; name a path of this machine",
    ),
]


@pytest.mark.parametrize(("flags", "said"), BAD, ids=lambda v: str(v)[:40])
def test_bad_input_is_one_line(call, scored: Path, tmp_path: Path, flags, said) -> None:
    flags = [str(f).replace("DATA", str(scored)) for f in flags]
    with pytest.raises(UserError, match=re.escape(said)) as caught:
        call("--data", scored, "--output", tmp_path / "out", *flags)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out/run.json").exists()


def rewritten(path: Path, change: Callable[[list[dict]], None]) -> None:
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    change(rows)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def scored_rows_of(folder: Path, change: Callable[[list[dict]], None], call) -> None:
    """Change the rows of a set and score it anew."""

    def unsealed(rows: list[dict]) -> None:
        change(rows)
        for row in rows:
            row.pop("row_sha256", None)

    rewritten(folder / "metadata-000.jsonl", unsealed)
    words = ("--segmenters", folder.parent / "judge", "--costs", "--costs-stride", 1)
    toy = ("--segmenter-class", "toy_segmenter:ToySegmenter")
    assert call("--data", folder, *words, *toy, main=score.main) == 0


def test_samples_that_share_a_label_file_get_their_own(call, scored: Path, tmp_path: Path) -> None:
    def share(rows: list[dict]) -> None:
        for row in rows:
            row["label_file_name"] = rows[0]["label_file_name"]

    words = ("--data", scored, "--preset", "vote", "--output")
    assert call(*words, tmp_path / "own") == 0
    scored_rows_of(scored, share, call)
    assert call(*words, tmp_path / "shared") == 0
    found = [
        {str(p.relative_to(f)): p.read_bytes() for p in f.rglob("*.png")}
        for f in (tmp_path / "own", tmp_path / "shared")
    ]
    assert found[0] == found[1]


@pytest.mark.parametrize("name", ["run.json", "classes.json", "README.md"])
def test_no_row_names_a_file_of_the_folder(call, scored: Path, tmp_path: Path, name) -> None:
    def rename(rows: list[dict]) -> None:
        (scored / name).write_bytes((scored / rows[1]["label_file_name"]).read_bytes())
        rows[1]["label_file_name"] = name

    scored_rows_of(scored, rename, call)
    for _ in range(2):
        assert call("--data", scored, "--output", tmp_path / "out") == 0
    assert (tmp_path / "out" / name).read_text()
    assert len(open_dataset(tmp_path / "out", labelled=True)) == 3


def test_the_vote_is_among_images_of_one_label_map(call, scored: Path, tmp_path: Path) -> None:
    def lie(rows: list[dict]) -> None:
        for kind in ("image", "label"):
            path = scored / rows[1][f"{kind}_file_name"]
            Image.open(path).resize((32, 16), 0).save(path)
        rows[1] |= {"image_sha256": "0" * 64, "height": 16, "width": 32}

    scored_rows_of(scored, lie, call)
    with pytest.raises(UserError, match="00000001.png: is not the label map of"):
        call("--data", scored, "--output", tmp_path / "out", "--preset", "vote")


BROKEN = [  # (where in a row of scores, what stands there)
    (("condition",), None),
    (("brightness",), "light"),
    (("hash",), "ff"),
    (("fidelity",), [1]),
    (("fidelity", "judge"), 3),
    (("fidelity", "judge", "areas"), [[1, 2], [3]]),
    (("fidelity", "judge", "areas"), [[10**30] * 19] * 3),
    (("fidelity", "judge", "band"), [[-1] * 19] * 3),
    (("fidelity", "judge", "loss"), ["x"] * 19),
    (("fidelity", "judge", "loss"), [float("nan")] * 19),
    (("fidelity", "judge", "miou"), "high"),
    (("costs",), 3),
    (("costs", "judge"), 3),
    (("costs", "judge"), "../../costs.npz"),
    (("attributes",), {"condition": 3}),
]


@pytest.mark.parametrize(("place", "value"), BROKEN, ids=lambda v: str(v)[:40])
def test_broken_rows_of_scores_are_one_line(call, scored: Path, tmp_path, place, value) -> None:
    def spoil(rows: list[dict]) -> None:
        inner = rows[1]
        for name in place[:-1]:
            inner = inner[name]
        inner[place[-1]] = value

    rewritten(scored / "quality/data.jsonl", spoil)
    with pytest.raises(UserError, match=r"row 00000001 of data.jsonl is broken \(.*delete") as got:
        call("--data", scored, "--output", tmp_path / "out")
    assert "\n" not in str(got.value) and not (tmp_path / "out").exists()


COSTS = [
    {"costs": np.zeros((19, 32, 64), np.uint8), "stride": np.uint16(0)},
    {"costs": np.zeros((19, 0, 0), np.uint8), "stride": np.int64(-2)},
    {"costs": np.zeros((19, 32, 64), np.uint8), "stride": np.ones(2, np.uint16)},
    {"costs": np.zeros((19, 320, 640), np.uint8), "stride": np.uint16(1)},  # a bomb, in small
    {"costs": np.array([{}], object), "stride": np.uint16(1)},
    None,  # a pipe
]


@pytest.mark.parametrize("arrays", COSTS, ids=range(len(COSTS)))
def test_hostile_costs_are_one_line(call, scored: Path, tmp_path: Path, arrays) -> None:
    path = next((scored / "quality/costs").rglob("00000001.npz"))
    path.unlink()
    if arrays is None:
        os.mkfifo(path)
    else:
        np.savez_compressed(path, **arrays)
    with pytest.raises(UserError, match="00000001.npz: .*; run generation/score.py again") as got:
        call("--data", scored, "--output", tmp_path / "out")
    assert "\n" not in str(got.value)


def test_samples_that_a_person_excluded_are_left_out(call, scored: Path, tmp_path: Path) -> None:
    write_marks(scored, {"00000001": Mark(excluded=True)})
    assert call("--data", scored, "--output", tmp_path / "out") == 0
    assert sorted(read_rows(tmp_path / "out")) == ["00000000", "00000002"]


def test_two_processes_write_the_same(call, scored: Path, tmp_path: Path) -> None:
    relabel(scored, call)
    words = ["--data", str(scored), "--preset", "transport", "--reject-below", "0.99", "--output"]
    assert call(*words, tmp_path / "one") == 0
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--",
        "generation/filter.py", *words, str(tmp_path / "two"),
    ]  # fmt: skip
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    assert read_rows(tmp_path / "one") == read_rows(tmp_path / "two")
    assert len(list((tmp_path / "two").glob("metadata-*.jsonl"))) == 2
    found = [
        {str(p.relative_to(f)): p.read_bytes() for p in f.rglob("*") if p.suffix != ".jsonl"
         and p.is_file()}
        for f in (tmp_path / "one", tmp_path / "two")
    ]  # fmt: skip
    assert found[0] == found[1]


def relabel(folder: Path, call) -> None:
    """Give the second sample a label map of its own, and score the set again."""

    def change(rows: list[dict]) -> None:
        path = folder / rows[1]["label_file_name"]
        label = np.array(Image.open(path))
        label[:4] = VOID
        Image.fromarray(label).save(path)
        rows[1]["label_sha256"] = files.sha256(path.read_bytes())

    scored_rows_of(folder, change, call)


def test_limits_of_another_set(call, scored: Path, tmp_path: Path) -> None:
    """Alone, a bad image is usual; by the limits of the whole set it is rejected and outvoted."""
    part = tmp_path / "part"
    writer = DatasetWriter(part, config={})
    bad = open_dataset(scored, labelled=True)[2]
    image, label = (np.array(Image.open(path)) for path in (bad.image, bad.label))
    writer.write(2, image, label, {"condition": "night"})
    words = ("--segmenters", tmp_path / "judge", "--segmenter-class", "toy_segmenter:ToySegmenter")
    assert call("--data", part, *words, "--costs", "--costs-stride", 1, main=score.main) == 0
    quality = scored / "quality"

    def rows_of(output: str, *flags: object) -> dict:
        assert call("--data", part, "--output", tmp_path / output, *flags) == 0
        return read_rows(tmp_path / output)["00000002"]

    rule = ("--preset", "none", "--reject-below", 0.99)
    assert rows_of("alone", *rule)["status"] == "ok"
    assert rows_of("whole", *rule, "--calibration", quality)["status"] == "withdrawn"
    whole = tmp_path / "reference"
    assert call("--data", scored, "--output", whole, *rule) == 0
    assert read_rows(whole)["00000002"]["error"] == rows_of("whole", *rule, "--calibration",
                                                            quality)["error"]  # fmt: skip
    vote = ("--preset", "vote")
    assert rows_of("vote", *vote)["class_pixels"][CAR] > 0
    assert rows_of("voted", *vote, "--calibration", quality)["class_pixels"][CAR] == 0


def test_limits_are_those_of_the_samples_that_count(call, scored: Path, tmp_path: Path) -> None:
    """Of rows of excluded samples, and of files that changed since, there are no limits."""
    words = ("--data", scored, "--preset", "none", "--reject-below", 0.99, "--output")
    quality = shutil.copytree(scored / "quality", tmp_path / "quality")
    given = ("--quality", quality, "--calibration", quality)
    write_marks(scored, {"00000000": Mark(excluded=True)})

    def reason(output: str, *flags: object) -> str:
        assert call(*words, tmp_path / output, *flags) == 0
        return read_rows(tmp_path / output)["00000002"]["error"]

    own = reason("own")
    assert reason("all", *given) != own, "the excluded image has a car that is recognised"
    assert reason("counting", *given, "--calibration-data", scored) == own

    def outdated(rows: list[dict]) -> None:
        rows[1]["state"] = "of other files"

    rewritten(quality / "data.jsonl", outdated)
    given = (
        "--quality",
        scored / "quality",
        "--calibration",
        quality,
        "--calibration-data",
        scored,
    )
    with pytest.raises(UserError, match="1 samples have no scores; run generation/score.py"):
        call(*words, tmp_path / "outdated", *given)
    with pytest.raises(UserError, match="--calibration-data: needs --calibration"):
        call(*words, tmp_path / "outdated", "--calibration-data", scored)
    (quality / "data.jsonl").write_text("")
    with pytest.raises(UserError, match="has no rows in data.jsonl; run generation/score.py"):
        call(*words, tmp_path / "empty", "--calibration", quality)


def test_a_filter_by_other_scores_is_another_one(call, scored: Path, tmp_path: Path) -> None:
    words = ("--data", scored, "--output", tmp_path / "out", "--quality")
    quality = shutil.copytree(scored / "quality", tmp_path / "quality")
    assert call(*words, quality) == 0 and call(*words, scored / "quality") == 0, "it may move"

    def change(rows: list[dict]) -> None:
        rows[0]["fidelity"]["judge"]["loss"][ROAD] += 1

    rewritten(quality / "data.jsonl", change)
    with pytest.raises(UserError, match="holds another run .scores: '"):
        call(*words, quality)
    quality = shutil.copytree(scored / "quality", tmp_path / "other")
    record = json.loads((quality / "config.json").read_text())
    record["config"]["segmenters"]["judge"] = "0" * 16
    (quality / "config.json").write_text(json.dumps(record))
    with pytest.raises(UserError, match="holds another run .network.revision: '"):
        call(*words, quality)


def test_a_calibration_of_another_network_is_refused(call, scored: Path, tmp_path: Path) -> None:
    words = ("--data", scored, "--output", tmp_path / "out", "--calibration")
    other = shutil.copytree(scored / "quality", tmp_path / "quality")
    record = json.loads((other / "config.json").read_text())
    record["config"]["segmenters"]["judge"] = "0" * 16
    (other / "config.json").write_text(json.dumps(record))
    with pytest.raises(UserError, match="its scores are not of the network judge"):
        call(*words, other)
    with pytest.raises(UserError, match="has no data.jsonl; run generation/score.py to its end"):
        call(*words, tmp_path / "none")
    assert not (tmp_path / "out").exists()


def test_a_second_filter_of_one_folder_waits(call, scored: Path, tmp_path: Path) -> None:
    words = ("--data", scored, "--output", tmp_path / "out")
    assert call(*words) == 0
    before = (tmp_path / "out/metadata-000.jsonl").read_bytes()
    with Claims(tmp_path / "out"), pytest.raises(UserError, match="is writing to it; wait"):
        call(*words)
    assert call(*words) == 0 and not (tmp_path / "out/claims").exists()
    assert (tmp_path / "out/metadata-000.jsonl").read_bytes() == before


def test_damaged_costs_are_named(call, scored: Path, tmp_path: Path) -> None:
    path = next((scored / "quality/costs").rglob("00000001.npz"))
    path.write_bytes(b"nothing")
    with pytest.raises(UserError, match="00000001.npz: cannot be read"):
        call("--data", scored, "--output", tmp_path / "out")
