"""A set is topped up until the shares of its plan hold: through the programs that it runs."""

import importlib
import json
import os
import shlex
import shutil
import sys
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from generation import run, score, top_up
from pipeline.dataset import open_dataset
from pipeline.errors import EXIT_INCOMPLETE, UserError
from pipeline.marks import Mark, write_marks
from pipeline.metadata import read_rows

HERE = Path(__file__).parent
N = 6
RULE = ("--segmenter-class", "picky_segmenter:PickySegmenter", "--reject-below", "0.3")
JUDGE = (*RULE, "--preset", "none")


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory, flags: list[str]) -> Path:
    """Six generated samples."""
    folder = tmp_path_factory.mktemp("original") / "set"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["run.py", *flags, "--n", str(N), "--output", str(folder)])
        assert not run.main()
    return folder


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """A function that runs the program and, in this process too, the programs that it starts."""
    monkeypatch.syspath_prepend(str(HERE))

    def start(command: list[str], log: Path, threads: int) -> tuple[int, int]:
        program = next(i for i, word in enumerate(command) if word.endswith(".py"))
        module = importlib.import_module(f"generation.{Path(command[program]).stem}")
        monkeypatch.setattr(sys, "argv", command[program:])
        log.write_text("")
        try:
            return module.main() or 0, 0
        except UserError as error:
            log.write_text(f"streetforge: {error}\n")
            return 2, 0

    monkeypatch.setattr(top_up, "forward", start)
    monkeypatch.setattr(top_up.signal, "signal", lambda *_: None)

    def run_main(*arguments: object) -> int:
        monkeypatch.setattr(sys, "argv", ["top_up.py", *map(str, arguments)])
        return top_up.main() or 0

    return run_main


@pytest.fixture
def darkest(original: Path, tmp_path: Path) -> Path:
    """A judge that rejects the two darkest images of the original set, and others as dark."""
    means = sorted(np.array(Image.open(s.image)).mean() for s in samples_of(original))
    folder = tmp_path / "judge"
    folder.mkdir()
    (folder / "taste.json").write_text(json.dumps({"above": (means[1] + means[2]) / 2}))
    return folder


@pytest.fixture
def stubborn(original: Path, tmp_path: Path) -> Path:
    """A judge that accepts the first four original images and never another one."""
    images = [np.array(Image.open(s.image)) for s in samples_of(original)[:4]]
    folder = tmp_path / "judge"
    folder.mkdir()
    checksums = [zlib.crc32(image.tobytes()) for image in images]
    (folder / "taste.json").write_text(json.dumps({"checksums": checksums}))
    return folder


def samples_of(folder: Path) -> list:
    return open_dataset(folder, labelled=True)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def made(folder: Path) -> dict[str, tuple]:
    """What must not depend on restarts."""
    kept = ("image_sha256", "label_sha256", "attempt", "seed", "status", "error")
    return {key: tuple(str(row.get(k)) for k in kept) for key, row in read_rows(folder).items()}


def shares(folder: Path) -> Counter:
    return Counter((s.row["condition"], s.row["rare_class"]) for s in samples_of(folder))


def test_shares_of_the_plan_hold(call, original: Path, darkest: Path, tmp_path: Path) -> None:
    before, output = contents(original), tmp_path / "out"
    words = ("--data", original, "--segmenter", darkest, *JUDGE, "--output", output)
    assert call(*words, "--attempts", 20) == 0
    assert contents(original).items() >= before.items()
    rows, old = read_rows(output / "dataset"), read_rows(original)
    assert shares(output / "dataset") == shares(original)
    replaced = {key for key, row in rows.items() if row["image_sha256"] != old[key]["image_sha256"]}
    assert len(replaced) == 2 and all(rows[key]["attempt"] > 0 for key in replaced)
    assert {row["attempt"] for key, row in rows.items() if key not in replaced} == {0}
    for key, row in rows.items():
        assert (row["prompt"], row["crop"]) == (old[key]["prompt"], old[key]["crop"])
        image = np.array(Image.open(output / "dataset" / row["image_file_name"]))
        assert image.mean() > json.loads((darkest / "taste.json").read_text())["above"]
    record = json.loads((output / "dataset/run.json").read_text())
    assert {row["digest"] for row in rows.values()} == {record["digest"]}
    assert rows["00000000"]["generation_digest"] == old["00000000"]["digest"]
    summary = json.loads((output / "top_up.json").read_text())
    assert (summary["samples"], summary["accepted"], summary["missing"]) == (N, N, {})
    assert sum(one["added"][0] for one in summary["conditions"].values()) == N - 2
    assert all(one["missing"] == 0 for one in summary["classes"].values())
    assert "| label map chosen for class | planned | round 0 |" in (
        output / "top_up.md"
    ).read_text().replace("|  ", "| ")
    finished = contents(output)
    assert call(*words, "--attempts", 20) == 0, "nothing is left to do"
    assert contents(output).items() >= finished.items()
    shutil.rmtree(output / "rounds")
    set_alone = contents(output)
    assert call(*words) == 0 and contents(output) == set_alone
    assert len(samples_of(output / "dataset")) == N


def test_what_never_passes_is_listed(
    call, original: Path, stubborn: Path, tmp_path: Path, capsys
) -> None:
    output = tmp_path / "out"
    words = ("--data", original, "--segmenter", stubborn, *RULE, "--output", output)
    assert call(*words, "--attempts", 1) == EXIT_INCOMPLETE
    error = capsys.readouterr().err
    assert "2 samples were rejected in every round (00000004, 00000005)" in error
    assert "a larger --attempts goes on" in error
    assert call(*words, "--attempts", 2) == EXIT_INCOMPLETE
    assert len(samples_of(output / "dataset")) == 4
    assert (output / "rounds/2/quality/costs").is_dir(), "labels are filtered in every round"
    rows, old = read_rows(output / "dataset"), read_rows(original)
    summary = json.loads((output / "top_up.json").read_text())
    assert summary["accepted"] == 4 and list(summary["missing"]) == ["00000004", "00000005"]
    for key, one in summary["missing"].items():
        assert rows[key]["status"] == "withdrawn" and rows[key]["attempt"] == one["attempt"] == 2
        assert (
            one["condition"] == old[key]["condition"]
            and "of that expected for its classes" in one["reason"]
        )
        assert summary["classes"][one["rare_class"]]["missing"] > 0
        assert summary["conditions"][one["condition"]]["missing"] > 0
    shutil.rmtree(output / "rounds")
    capsys.readouterr()
    assert call(*words, "--attempts", 3) == EXIT_INCOMPLETE
    error = capsys.readouterr().err
    assert "the rounds are deleted; to go on, give" in error and "larger --attempts" not in error


def test_what_is_rejected_later_is_not_kept_silently(
    call, original: Path, tmp_path: Path, capsys
) -> None:
    """Of an image that a person excludes after its round, and with fewer --attempts than before."""
    data, output = shutil.copytree(original, tmp_path / "data"), tmp_path / "out"
    write_marks(data, {"00000002": Mark(excluded=True)})
    words = ("--data", data, "--output", output, "--attempts")
    assert call(*words, 1) == 0
    write_marks(output / "rounds/1/generated", {"00000002": Mark(excluded=True)})
    refusal = r"dataset: holds 1 images that are rejected now .*\(00000002\); .* delete this folder"
    for attempts in (1, 2):
        with pytest.raises(UserError, match=refusal):
            call(*words, attempts)
    shutil.rmtree(output / "dataset")
    assert call(*words, 2) == 0
    rows = read_rows(output / "dataset")
    assert {key: row["round"] for key, row in rows.items()} == {
        key: 2 * (key == "00000002") for key in read_rows(original)
    }
    assert rows["00000002"]["attempt"] == 2
    with pytest.raises(UserError, match=refusal):
        call(*words, 1)


def test_label_maps_may_have_moved(
    call, original: Path, label_folder: Path, tmp_path: Path, capsys
) -> None:
    """The folder is named to the program that generates."""
    data, output = shutil.copytree(original, tmp_path / "data"), tmp_path / "out"
    write_marks(data, {"00000002": Mark(excluded=True)})
    maps = shutil.copytree(label_folder, tmp_path / "maps of it")
    record = json.loads((data / "run.json").read_text())
    record["paths"]["label_maps"] = str(tmp_path / "gone")
    (data / "run.json").write_text(json.dumps(record))
    words = ("--data", data, "--output", output, "--attempts", 1)
    with pytest.raises(UserError, match="round-1-generate: .*gone"):
        call(*words)
    assert call(*words, "--label-maps", maps, "--dry-run") == 0
    printed = shlex.split(capsys.readouterr().out.splitlines()[-1])
    assert printed[-2:] == ["--label-maps", str(maps)], "as the shell reads it"
    assert call(*words, "--label-maps", maps) == 0
    assert read_rows(output / "dataset")["00000002"]["attempt"] == 1


def test_a_stopped_top_up_continues_exactly(
    call, original: Path, darkest: Path, tmp_path: Path, monkeypatch
) -> None:
    words = ("--data", original, "--segmenter", darkest, *JUDGE, "--attempts", 2, "--output")
    code = call(*words, tmp_path / "straight")
    forward, calls = top_up.forward, []

    def dying(*arguments):
        calls.append(0)
        if len(calls) in stops:
            raise KeyboardInterrupt
        return forward(*arguments)

    stops = (2, 4, 5)
    monkeypatch.setattr(top_up, "forward", dying)
    for _ in stops:
        with pytest.raises(KeyboardInterrupt):
            call(*words, tmp_path / "stopped")
    assert call(*words, tmp_path / "stopped") == code
    assert made(tmp_path / "stopped/dataset") == made(tmp_path / "straight/dataset")
    found = [(tmp_path / name / "top_up.json").read_bytes() for name in ("stopped", "straight")]
    assert found[0] == found[1]


def test_marks_are_enough_and_programs_are_processes(
    original: Path, tmp_path: Path, run_program
) -> None:
    """Without a network, what a person excluded is generated again; no program is in this one."""
    data, output = shutil.copytree(original, tmp_path / "data"), tmp_path / "out"
    write_marks(data, {"00000002": Mark(excluded=True, comment="two moons")})
    done = run_program("generation/top_up.py", "--data", data, "--output", output)
    assert f"{output / 'dataset'}: 6 of 6 samples" in done.stdout
    rows, old = read_rows(output / "dataset"), read_rows(original)
    assert {key: row["attempt"] for key, row in rows.items()} == {
        key: int(key == "00000002") for key in old
    }
    assert rows["00000002"]["image_sha256"] != old["00000002"]["image_sha256"]
    assert (output / "logs/round-1-generate.log").exists()
    # The finished set is a set like any other: it can be marked and topped up again
    write_marks(output / "dataset", {"00000002": Mark(excluded=True)})
    again = ("generation/top_up.py", "--data", output / "dataset", "--output", tmp_path / "again")
    run_program(*again, "--num-processes", 2)
    assert read_rows(tmp_path / "again/dataset")["00000002"]["attempt"] == 2


def test_scores_that_exist_are_used(
    call, original: Path, stubborn: Path, tmp_path: Path, monkeypatch
) -> None:
    data = shutil.copytree(original, tmp_path / "data")
    judge = ("--segmenters", stubborn, "--segmenter-class", "picky_segmenter:PickySegmenter")
    monkeypatch.setattr(sys, "argv", ["score.py", "--data", str(data), *map(str, judge)])
    assert not score.main()
    words = ("--data", data, "--segmenter", stubborn, *JUDGE, "--attempts", 1)
    quality = data / "quality"
    assert call(*words, "--quality", quality, "--output", tmp_path / "a") == EXIT_INCOMPLETE
    assert call(*words, "--output", tmp_path / "b") == EXIT_INCOMPLETE
    assert made(tmp_path / "a/dataset") == made(tmp_path / "b/dataset")
    assert not (tmp_path / "a/rounds/0/quality").exists()
    rows = (quality / "data.jsonl").read_text().splitlines()
    (quality / "data.jsonl").write_text("\n".join(rows[1:]) + "\n")
    with pytest.raises(UserError, match="1 samples have no scores; run generation/score.py"):
        call(*words, "--quality", quality, "--output", tmp_path / "c")


def test_scores_of_another_network_are_refused(
    call, original: Path, stubborn: Path, tmp_path: Path, monkeypatch
) -> None:
    """Even if its folder has the same name."""
    quality = tmp_path / "quality"
    judge = ("--segmenters", stubborn, "--segmenter-class", "picky_segmenter:PickySegmenter")
    words = ["score.py", "--data", original, *judge, "--output", quality]
    monkeypatch.setattr(sys, "argv", [*map(str, words)])
    assert not score.main()
    (tmp_path / "other").mkdir()
    other = shutil.copytree(stubborn, tmp_path / "other/judge")
    words = ("--data", original, *JUDGE, "--quality", quality, "--output", tmp_path / "out")
    assert call(*words, "--segmenter", other, "--dry-run") == 0, "a folder may move"
    attribute = ("--reject-attribute", "condition", "--looks", original)
    with pytest.raises(UserError, match="its classifiers were not trained on --looks"):
        call(*words, "--segmenter", other, *attribute)
    (other / "taste.json").write_text(json.dumps({"above": 100}))
    refusal = "its scores are not of the network --segmenter .*judge, .* leave --quality out"
    with pytest.raises(UserError, match=refusal):
        call(*words, "--segmenter", other)
    record = json.loads((quality / "config.json").read_text())
    record["config"]["segmenters"] = {}
    (quality / "config.json").write_text(json.dumps(record))
    with pytest.raises(UserError, match=refusal):
        call(*words, "--segmenter", stubborn)
    assert not (tmp_path / "out").exists()


BAD = [  # (flags, what the line says)
    (["--attempts", 0], "--attempts 0: must be in 1..100"),
    (["--num-processes", 0], "--num-processes 0: must be in 1..1024"),
    (["--reject-below", 0.5], "--reject-below: needs --segmenter"),
    (["--segmenter-class", "a.b:C"], "--segmenter-class: needs --segmenter"),
    (["--segmenter", "none", "--reject-below", 0.5], "none: no such folder"),
    ([], "nothing in it is rejected; set --segmenter with --reject-below"),
    (["--segmenter", "JUDGE"], "nothing in it is rejected"),
    (["--segmenter", "JUDGE", "--reject-attribute", "condition"], "belong together"),
    (["--segmenter", "JUDGE", *JUDGE, "--output", "DATA/out"], "lies in --data"),
]


@pytest.mark.parametrize(("given", "said"), BAD, ids=lambda v: str(v)[:40])
def test_bad_input_is_one_line(call, original, stubborn, tmp_path: Path, given, said) -> None:
    names = {"JUDGE": str(stubborn), "DATA/out": str(original / "out")}
    words = [names.get(str(flag), str(flag)) for flag in given]
    with pytest.raises(UserError) as caught:
        call("--data", original, "--output", tmp_path / "out", *words)
    assert said in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_another_set_or_a_deleted_image_is_refused(
    call, original: Path, stubborn: Path, tiny_dataset, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    words = ("--segmenter", stubborn, *JUDGE, "--attempts", 1, "--output", output, "--data")
    with pytest.raises(UserError, match="names no run of generation/run.py"):
        call(*words, tiny_dataset(2))
    data = shutil.copytree(original, tmp_path / "data")
    assert call(*words, data) == EXIT_INCOMPLETE
    write_marks(data, {"00000000": Mark(excluded=True)})
    with pytest.raises(UserError, match="holds another run .rejected: '"):
        call(*words, data)
    os.unlink(next(data.rglob("images/*/00000003.png")))
    with pytest.raises(UserError, match="00000003.png: image of sample 00000003"):
        call(*words, data)


def test_dry_run_prints_the_programs(call, original, stubborn, tmp_path, capsys) -> None:
    words = ("--data", original, "--segmenter", stubborn, *JUDGE, "--output", tmp_path / "out")
    assert call(*words, "--dry-run") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:]] == [
        f"generation/{name}.py" for name in ("score", "filter", "run", "score", "filter")
    ]
    assert not (tmp_path / "out").exists()
