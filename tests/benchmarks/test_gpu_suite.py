"""The GPU benchmarks, rehearsed on the CPU with small networks; failures and limits of steps."""

import json
import sys
import types
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState

from benchmarks import random_base
from benchmarks.gpu import device, images, suite

NEEDED = ("tile loop", "fused image", "samples per second, controlnet, cached", "ControlNet images",
          "segmented frames", "self-attention", "published / ours")  # fmt: skip


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small base models and ControlNets of both families."""
    folder = tmp_path_factory.mktemp("bases")
    for family in random_base.FAMILIES:
        torch.manual_seed(0)
        base = random_base.build(family, "toy")
        control = random_base.build_controlnet(base.unet).half()
        control.save_pretrained(folder / f"{family}_controlnet")
        base.to(torch.float16).save_pretrained(folder / family)
    return folder


@pytest.fixture(scope="module")
def measured() -> list[str]:
    """The names of all figures that the steps gave."""
    return []


@pytest.mark.parametrize("name", [name for name in suite.STEPS if name != "tests"])
def test_step_runs_at_toy_size(name: str, bases: Path, measured: list[str]) -> None:
    AcceleratorState._reset_state(reset_partial_state=True)  # each step has its own process
    step = device.Step(bases, toy=True)
    suite.STEPS[name].find()(step)
    assert step.rows
    assert not step.details.get("failed")
    measured += [row["name"] for row in step.rows]


def test_all_goals_are_measured(measured: list[str]) -> None:
    if len(measured) < 20:
        pytest.skip("the steps ran in another process")
    assert all(any(part in name for name in measured) for part in NEEDED)


def test_images_that_were_not_written_meet_no_goal(bases: Path, monkeypatch) -> None:
    monkeypatch.setattr(images, "files_in", lambda folder: 0)
    step = device.Step(bases, toy=True)
    images.fused_images(step, compiled=False)
    assert any("of 1 only 0 written, no result" in row["name"] for row in step.rows)
    assert not any(row["goal"] or "met" in row for row in step.rows)


def test_tests_of_the_gpu_are_a_step(monkeypatch) -> None:
    answer = types.SimpleNamespace(returncode=1, stdout="1 failed")
    monkeypatch.setattr(suite.subprocess, "run", lambda command, **_: answer)
    step = device.Step(Path(), toy=False)
    suite.STEPS["tests"].find()(step)
    (row,) = step.rows
    assert row["median"] == 1 and not row["met"] and step.details["tests"] == "1 failed"


def test_a_failed_step_keeps_what_it_found_and_the_others(tmp_path, monkeypatch) -> None:
    """Steps in processes of their own: one raises, one takes too long, one is fine."""
    program = """
import json, sys, time
name, output = sys.argv[sys.argv.index("--step") + 1], sys.argv[sys.argv.index("--output") + 1]
row = dict(name=name, median=2.0, low=1.0, high=3.0, repeats=3, unit="ms", goal=">= 1", met=True,
           ceiling="9")
json.dump({"rows": [row], "details": {}}, open(output, "w"))
if name == "attention":
    raise MemoryError("no memory for a kernel")
time.sleep(60 * (name == "segmenter"))
"""
    script = tmp_path / "python"
    script.write_text(f"#!{sys.executable}\n{program}")
    script.chmod(0o755)
    names = ("attention", "segmenter", "batches")
    monkeypatch.setattr(sys, "executable", str(script))
    monkeypatch.setattr(suite, "write_bases", lambda *arguments, **options: None)
    plans = {name: suite.Plan(3.0, lambda: print) for name in names}
    monkeypatch.setattr(suite, "STEPS", plans)
    monkeypatch.setattr(suite, "LEAST_S", 0.0)
    monkeypatch.setattr(suite, "hardware", lambda: "NVIDIA H200")
    monkeypatch.setenv("STREETFORGE_COMMIT", "abc1234")
    options = ["--output", str(tmp_path / "out"), "--work", str(tmp_path / "work")]
    monkeypatch.setattr(sys, "argv", ["suite.py", *options])
    assert suite.main() == 3
    (path,) = (tmp_path / "out").glob("gpu_nvidia-h200_*_abc1234.json")
    steps = json.loads(path.read_text())["steps"]
    assert steps["attention"]["state"] == "failed: MemoryError: no memory for a kernel"
    assert (
        steps["segmenter"]["state"] == "stopped after 3 s" and steps["batches"]["state"] == "done"
    )
    page = path.with_suffix(".md").read_text()
    assert page.count("| 2 (1 to 3) ms | >= 1 | 9 | yes |") == 3
    monkeypatch.setattr(sys, "argv", ["suite.py", *options, "--seconds", "-1"])
    assert suite.main() == 3
    assert "no time left" in path.read_text()


def test_a_part_that_fails_is_noted() -> None:
    step = device.Step(Path(), toy=True)

    def fail() -> None:
        raise RuntimeError("no kernel\nmore")

    step.attempt("kernel", fail)
    step.add("other", 1.0)
    assert step.details["failed"] == {"kernel": "RuntimeError: no kernel"} and len(step.rows) == 1


def test_clocks_are_read_where_there_is_a_gpu(monkeypatch) -> None:
    answer = types.SimpleNamespace(returncode=0, stdout="1980 MHz, 3201 MHz, 610 W, 50, 0x4\n")
    monkeypatch.setattr(device.subprocess, "run", lambda *a, **k: answer)
    assert device.clocks()["clocks.sm"] == "1980 MHz" and device.clocks()["power.draw"] == "610 W"
    answer.returncode = 9
    assert device.clocks() == {}
