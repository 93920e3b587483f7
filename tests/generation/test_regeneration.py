"""Rejected samples are generated again: the same label map and prompt, other noise, exactly."""

import dataclasses
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from generation import run, worker
from generation.plan import noise_seed
from generation.regeneration import (
    GROUP_PATHS,
    PATHS,
    Regeneration,
    paths_of,
    read_regeneration,
)
from generation.sampler import sampler as sampling
from generation.samples import ATTEMPTS
from generation.setting_groups import CorrectionSettings, RareClasses, SecondControl
from generation.settings import Config, default_config, run_mapping
from pipeline.errors import EXIT_INCOMPLETE, UserError
from pipeline.marks import Mark, write_marks
from pipeline.metadata import read_rows
from pipeline.models import POCKET_BASE

ROOT = Path(__file__).resolve().parents[2]
REJECTED = ("00000001", "00000004")
SAME = ("prompt", "condition", "time", "place", "rare_class", "source_label", "crop",
        "label_sha256", "negative_prompt", "revisions")  # fmt: skip


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """A function that runs the program in this process and returns its exit code."""

    def run_main(*arguments: object) -> int:
        monkeypatch.setattr(sys, "argv", ["run.py", *map(str, arguments)])
        return run.main() or 0

    return run_main


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory, flags: list[str]) -> Path:
    """Six generated samples, two of them excluded by a person."""
    folder = tmp_path_factory.mktemp("original") / "set"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["run.py", *flags, "--n", "6", "--output", str(folder)])
        assert not run.main()
    write_marks(folder, dict.fromkeys(REJECTED, Mark(excluded=True)))
    return folder


@pytest.fixture(scope="module")
def again(tmp_path_factory: pytest.TempPathFactory, original: Path) -> Path:
    """The two samples, generated again without interruption by one process."""
    folder = tmp_path_factory.mktemp("again") / "set"
    with pytest.MonkeyPatch.context() as patch:
        words = ["--regenerate", str(original), "--output", str(folder)]
        patch.setattr(sys, "argv", ["run.py", *words])
        assert not run.main()
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def made(folder: Path) -> dict[str, tuple]:
    """What must not depend on processes and restarts."""
    kept = (*SAME, "image_sha256", "attempt", "seed", "status")
    return {key: tuple(str(row[k]) for k in kept) for key, row in read_rows(folder).items()}


def test_noise_is_new_and_all_else_is_the_same(original: Path, again: Path) -> None:
    old, new = read_rows(original), read_rows(again)
    assert sorted(new) == list(REJECTED)
    for key, row in new.items():
        assert {k: row[k] for k in SAME} == {k: old[key][k] for k in SAME}
        assert (old[key]["attempt"], row["attempt"]) == (0, 1)
        assert row["seed"] == noise_seed(0, int(key), 1) != old[key]["seed"]
        assert row["image_sha256"] != old[key]["image_sha256"]
    record = json.loads((again / "run.json").read_text())["config"]
    assert record.pop("regenerated")["samples"] == 2
    assert record == json.loads((original / "run.json").read_text())["config"]


@pytest.mark.parametrize("version", [None, 1])
def test_sets_of_other_plans_are_made_alike(
    call, original: Path, again: Path, tmp_path: Path, version: int | None
) -> None:
    """Rows say what was planned; the new set is of the same run, as further attempts need it."""
    old = shutil.copytree(original, tmp_path / "old")
    record = json.loads((old / "run.json").read_text())
    del record["config"]["plan"]
    record["config"] |= {} if version is None else {"plan": version}
    (old / "run.json").write_text(json.dumps(record))
    assert call("--regenerate", old, "--output", tmp_path / "set") == 0
    assert made(tmp_path / "set") == made(again)
    assert read_regeneration((old, tmp_path / "set")).attempts == dict.fromkeys((1, 4), 1)


def test_a_sample_that_is_rejected_again_gets_the_next_attempt(
    call, original: Path, again: Path, tmp_path: Path
) -> None:
    second = shutil.copytree(again, tmp_path / "again")
    write_marks(second, {REJECTED[1]: Mark(excluded=True)})
    before = contents(second)
    assert call("--regenerate", original, second, "--output", tmp_path / "third") == 0
    rows = read_rows(tmp_path / "third")
    assert {key: row["attempt"] for key, row in rows.items()} == {REJECTED[0]: 1, REJECTED[1]: 2}
    assert rows[REJECTED[0]]["image_sha256"] == read_rows(again)[REJECTED[0]]["image_sha256"]
    assert contents(second) == before


def test_a_stopped_run_continues_exactly(
    call, original: Path, again: Path, tmp_path: Path, monkeypatch
) -> None:
    make, calls = worker.SampleMaker.make, []

    def dying(self, items):
        calls.append(items)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return make(self, items)

    words = ("--regenerate", original, "--output", tmp_path / "set")
    monkeypatch.setattr(worker.SampleMaker, "make", dying)
    with pytest.raises(KeyboardInterrupt):
        call(*words)
    assert len(made(tmp_path / "set")) == 1
    monkeypatch.setattr(worker.SampleMaker, "make", make)
    assert call(*words) == 0
    assert made(tmp_path / "set") == made(again)


def test_two_processes_make_the_same(original: Path, again: Path, tmp_path: Path) -> None:
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--",
        "generation/run.py", "--regenerate", str(original), "--output", str(tmp_path / "set"),
    ]  # fmt: skip
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    assert made(tmp_path / "set") == made(again)


def test_shards_divide_the_rejected_samples(call, original, again, tmp_path: Path) -> None:
    words = ("--regenerate", original, "--output", tmp_path / "set", "--shard")
    assert call(*words, "0/2") == 0
    assert sorted(made(tmp_path / "set")) == [REJECTED[1]]
    assert call(*words, "1/2") == 0
    assert made(tmp_path / "set") == made(again)


def test_unusable_images_use_up_attempts(call, original, tmp_path: Path, monkeypatch) -> None:
    start = sampling.Sampler.start

    def spoil(self, specs):
        return [dataclasses.replace(p, pixels=p.pixels * 0) for p in start(self, specs)]

    first = tmp_path / "first"
    with monkeypatch.context() as patch:
        patch.setattr(sampling.Sampler, "start", spoil)
        assert call("--regenerate", original, "--output", first) == EXIT_INCOMPLETE
    assert {row["attempt"] for row in read_rows(first).values()} == {ATTEMPTS}
    assert call("--regenerate", first, "--output", tmp_path / "second") == 0
    rows = read_rows(tmp_path / "second")
    assert sorted(rows) == list(REJECTED)
    assert {row["attempt"] for row in rows.values()} == {ATTEMPTS + 1}


def test_dry_run_tells_of_the_rejected_samples(call, original, again, tmp_path, capsys) -> None:
    plan = tmp_path / "plan.jsonl"
    words = ("--regenerate", original, "--output", tmp_path / "set", "--dry-run")
    assert call(*words, "--plan-file", plan) == 0
    assert "samples: 2, of which 2 are missing" in capsys.readouterr().out
    rows = [json.loads(line) for line in plan.read_text().splitlines()]
    assert {row["id"]: row["seed"] for row in rows} == {
        key: row["seed"] for key, row in read_rows(again).items()
    }
    assert not (tmp_path / "set").exists()


def test_nothing_rejected_is_said(call, original: Path, tmp_path: Path, capsys) -> None:
    data = shutil.copytree(original, tmp_path / "data")
    (data / "marks.json").unlink()
    assert call("--regenerate", data, "--output", tmp_path / "set") == 0
    assert "no sample is rejected; nothing to do" in capsys.readouterr().out
    assert not (tmp_path / "set").exists()


def refused(call, *arguments: object) -> str:
    with pytest.raises(UserError) as caught:
        call(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_settings_are_those_of_the_run(
    call, original: Path, flags, tiny_controlnet: Path, label_folder: Path, tmp_path: Path
) -> None:
    words = ("--regenerate", original, "--output", tmp_path / "set")
    assert call(*words, *flags, "--n", 3, "--dry-run") == 0, "the settings may be repeated"
    line = refused(call, *words, "--steps", 7)
    assert "--steps: differs from the run of" in line and "leave this one out" in line
    other = shutil.copytree(tiny_controlnet, tmp_path / "controlnet")
    (other / "config.json").write_text((other / "config.json").read_text() + " ")
    line = refused(call, *words, "--controlnet", other)
    assert "had other settings, models or label maps (models.controlnet: '" in line
    maps = shutil.copytree(label_folder, tmp_path / "maps")
    assert call(*words, "--label-maps", maps, "--dry-run") == 0, "label maps may have moved"
    for path in maps.glob("*.png"):
        path.rename(maps / f"x{path.name}")
    assert "give the folder of the original run by --label-maps" in refused(
        call, *words, "--label-maps", maps
    )
    assert not (tmp_path / "set").exists()


def test_all_settings_come_back_from_the_record() -> None:
    """Those of groups and those that the identity replaces by contents too."""
    config = Config(
        base="a", unet="b", controlnet="c", label_maps="d", steps=7, precision="bf16",
        second_control=SecondControl("canny", "e", 0.3, "f", (1.0, 2.0)),
        correction=CorrectionSettings(scale=0.1, head="g"),
        rare_classes=RareClasses(min_pixels=4),
    )  # fmt: skip
    stored = run_mapping(config)
    for name in ("base", "unet", "controlnet", "label_maps"):
        del stored[name]
    del stored["second_control"]["controlnet"], stored["correction"]["head"]
    stored["second_control"]["detector"] = "its revision"
    record = {"config": {**stored, "models": {}, "data": {}}, "paths": paths_of(config)}
    given = dataclasses.replace(default_config("pocket"), output=Path("out"), n=5)
    found = Regeneration(Path("run"), record, {}).settings(given)
    assert found == dataclasses.replace(config, output=Path("out"), n=1)
    # Each path may be given again, where its folder has moved, and alone
    folder = str(POCKET_BASE)
    for path in PATHS:
        moved = dataclasses.replace(given, **{path: folder})
        found = Regeneration(Path("run"), record, {}).settings(moved)
        assert found == dataclasses.replace(config, output=Path("out"), n=1, **{path: folder})
    for path in GROUP_PATHS:
        group, _, name = path.partition(".")
        usual, own = getattr(given, group), getattr(config, group)
        moved = dataclasses.replace(given, **{group: dataclasses.replace(usual, **{name: "moved"})})
        found = Regeneration(Path("run"), record, {}).settings(moved)
        assert getattr(found, group) == dataclasses.replace(own, **{name: "moved"})
    other = dataclasses.replace(given, correction=CorrectionSettings(scale=0.2, head="moved"))
    with pytest.raises(UserError, match=r"--correction.scale: differs from the run of run \(0.1\)"):
        Regeneration(Path("run"), record, {}).settings(other)


def test_folders_of_other_runs_are_refused(
    call, original: Path, flags, tiny_dataset, tmp_path: Path
) -> None:
    output = tmp_path / "set"
    line = refused(call, "--regenerate", tiny_dataset(2), "--output", output)
    assert "names no run of generation/run.py; give its dataset folder" in line
    other = shutil.copytree(original, tmp_path / "other")
    record = json.loads((other / "run.json").read_text())
    record["config"]["seed"] = 5
    (other / "run.json").write_text(json.dumps(record))
    line = refused(call, "--regenerate", original, other, "--output", output)
    assert f"{other}: is of another run than {original} (seed: 0 -> 5)" in line
    assert "no such dataset folder" in refused(call, "--regenerate", tmp_path / "none")
    line = refused(call, "--regenerate", original, "--output", original / "set")
    assert "lies in --regenerate" in line
    line = refused(call, "--regenerate", original, "--output", "memory://bucket/set")
    assert "--regenerate: writes a folder of this machine" in line


@pytest.mark.parametrize("name", ["attempt", "source_label", "condition"])
def test_rows_that_do_not_say_enough_are_refused(call, original, tmp_path: Path, name) -> None:
    data = shutil.copytree(original, tmp_path / "data")
    path = data / "metadata-000.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for row in rows:
        del row["row_sha256"], row[name]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    line = refused(call, "--regenerate", data, "--output", tmp_path / "set")
    assert "does not say where the sample came from" in line
