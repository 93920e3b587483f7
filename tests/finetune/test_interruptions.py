"""A run that is killed, stopped or out of luck continues to the same bits."""

import json
import os
import signal

import pytest
import torch

from finetune import loop, unet
from pipeline import checkpoints
from pipeline.errors import UserError

SMALL = (
    "--crop.size-px", "32", "64", "--crop.scales", "0.5", "1.0",
    "--training.gradient-accumulation", "2",
    "--training.learning-rate", "1e-3", "--training.ema-decay", "0.9", "--previews", "1",
    "--training.steps", "20", "--training.checkpoint-interval", "5",
)  # fmt: skip
# Runs a program by path and kills it at the n-th rename within its checkpoints.
DYING = """
import os, runpy, signal, sys
place, sys.argv = int(sys.argv[1]), sys.argv[2:]
sys.path[0] = os.path.dirname(os.path.abspath(sys.argv[0]))
replace, count = os.replace, 0
def dying(source, target):
    global count
    count += "checkpoints" in str(target)
    if count == place:
        os.kill(os.getpid(), signal.SIGKILL)
    replace(source, target)
os.replace = dying
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.parametrize(("processes", "places"), [(1, (5, 2)), (2, (6,))])
def test_killed_during_a_save_it_resumes_bit_for_bit(
    processes, places, run_program, same_weights, tiny_base, tiny_dataset, tmp_path
):
    """A save renames the folder, then the mark: place 5 is before step 15's folder, 6 its mark."""
    (tmp_path / "dying.py").write_text(DYING)
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--"]
    launch = launcher if processes == 2 else []
    command = ["finetune/unet.py", "--data", tiny_dataset(n=4), "--base", tiny_base, *SMALL]
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    run_program(*launch, *command, "--output", straight)
    good = {1: ["step-00000010", "step-00000010"], 2: ["step-00000010"]}[processes]
    for place, name in zip(places, good, strict=True):
        done = run_program(
            *launch, tmp_path / "dying.py", place, *command, "--output", killed, check=False
        )
        assert done.returncode != 0 and not (killed / "finished.json").exists()
        assert checkpoints.latest_checkpoint(killed).name == name
    run_program(*launch, *command, "--output", killed)
    assert same_weights(straight / "unet", killed / "unet")
    names = sorted(p.name for p in (killed / "checkpoints").iterdir())
    assert names == ["step-00000015", "step-00000020"]  # the rests of killed saves are gone


def test_stop_signal_saves_leaves_and_continues(
    call, same_weights, tiny_dataset, tmp_path, monkeypatch
):
    data = ("--data", tiny_dataset(n=3), "--training.steps", 6)
    call(unet, *data, "--output", tmp_path / "straight")
    accumulate, seen = loop.accumulate_gradients, []

    def accumulate_and_stop(*arguments, step, **options):
        seen.append(step)
        if step == 2:  # the group gets the signal, and the launcher passes it on
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGTERM)
        return accumulate(*arguments, step=step, **options)

    monkeypatch.setattr(loop, "accumulate_gradients", accumulate_and_stop)
    with pytest.raises(SystemExit) as stopped:
        call(unet, *data, "--output", tmp_path / "stopped")
    assert stopped.value.code == 128 + signal.SIGTERM and seen == [0, 1, 2]
    assert checkpoints.latest_checkpoint(tmp_path / "stopped").name == "step-00000003"
    monkeypatch.setattr(loop, "accumulate_gradients", accumulate)
    call(unet, *data, "--output", tmp_path / "stopped")
    assert same_weights(tmp_path / "straight" / "unet", tmp_path / "stopped" / "unet")


@pytest.mark.parametrize("what", ["loss", "gradient norm"])
def test_what_is_not_finite_stops_before_the_update(
    what, call, tiny_dataset, tmp_path, monkeypatch
):
    accumulate, updates = loop.accumulate_gradients, []

    def break_step_3(run, task, model, *rest, step):
        loss = accumulate(run, task, model, *rest, step=step)
        if step == 3:
            next(model.parameters()).grad.fill_(float("nan"))
        return loop.Loss(loss.value * float("nan")) if what == "loss" and step == 3 else loss

    def watch(optimizer, *arguments):
        updates.append(1)
        return update(optimizer, *arguments)

    update = torch.optim.AdamW.step
    monkeypatch.setattr(torch.optim.AdamW, "step", watch)
    monkeypatch.setattr(loop, "accumulate_gradients", break_step_3)
    arguments = ("--data", tiny_dataset(n=2), "--output", tmp_path, "--training.steps", 6)
    with pytest.raises(UserError, match=f"step 3: the {what} is nan; no update.*step-00000002"):
        call(unet, *arguments, "--training.checkpoint-interval", 2)
    assert len(updates) == 3


def test_previews_do_not_touch_the_training(call, same_weights, tiny_dataset, tmp_path):
    data = ("--data", tiny_dataset(n=3), "--training.steps", 3, "--training.checkpoint-interval", 1)
    losses = []
    for name, number in (("with", 2), ("without", 0)):
        call(unet, *data, "--previews", number, "--output", tmp_path / name)
        rows = (tmp_path / name / "metrics.jsonl").read_text().splitlines()
        losses.append([json.loads(row)["loss"] for row in rows])
    assert losses[0] == losses[1] and len(losses[0]) == 3
    assert same_weights(tmp_path / "with" / "unet", tmp_path / "without" / "unet")
    assert len(list((tmp_path / "with" / "previews").glob("*.png"))) == 3
    assert not (tmp_path / "without" / "previews").exists()
    call(unet, *data, "--previews", 0, "--output", tmp_path / "with")  # may change afterwards
