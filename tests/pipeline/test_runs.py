"""Training runs: exact resume, rotation, unmarked rests, full disks, other configs."""

import json
import math
from pathlib import Path

import pytest
import torch

from pipeline import runs
from pipeline.errors import UserError


def make() -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 1))
    return model, torch.optim.AdamW(model.parameters(), lr=0.1)


def train(model: torch.nn.Module, optimizer: torch.optim.Optimizer, first: int, last: int) -> None:
    for step in range(first, last):
        data = torch.randn(5, 3, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        model(data).square().mean().backward()
        optimizer.step()


def same(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    pairs = zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    return all(torch.equal(x, y) for x, y in pairs)


def test_resume_is_bit_exact(tmp_path: Path) -> None:
    whole, optimizer = make()
    train(whole, optimizer, 0, 6)
    model, optimizer = make()
    train(model, optimizer, 0, 3)
    runs.save_checkpoint(tmp_path, 3, {"model": model}, optimizer)
    fresh, optimizer = make()
    assert runs.load_checkpoint(tmp_path, {"model": fresh}, optimizer) == 3
    train(fresh, optimizer, 3, 6)
    assert same(whole, fresh)


def test_nothing_to_load_is_step_zero(tmp_path: Path) -> None:
    model, optimizer = make()
    assert runs.load_checkpoint(tmp_path, {"model": model}, optimizer) == 0


def test_two_newest_checkpoints_are_kept(tmp_path: Path) -> None:
    model, optimizer = make()
    for step in (1, 2, 10, 11):
        runs.save_checkpoint(tmp_path, step, {"model": model}, optimizer)
    names = sorted(p.name for p in (tmp_path / "checkpoints").iterdir())
    assert names == ["step-00000010", "step-00000011"]


def test_unmarked_checkpoint_is_ignored_and_replaced(tmp_path: Path) -> None:
    model, optimizer = make()
    runs.save_checkpoint(tmp_path, 1, {"model": model}, optimizer)
    rest = tmp_path / "checkpoints" / "step-00000002"
    rest.mkdir()
    (rest / "model.safetensors").write_bytes(b"half")
    latest = runs.latest_checkpoint(tmp_path)
    assert latest is not None and latest.name == "step-00000001"
    runs.save_checkpoint(tmp_path, 2, {"model": model}, optimizer)
    assert runs.load_checkpoint(tmp_path, {"model": model}, optimizer) == 2


def test_full_disk_keeps_the_previous_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, optimizer = make()
    runs.save_checkpoint(tmp_path, 1, {"model": model}, optimizer)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(runs, "save_file", full)
        with pytest.raises(UserError, match="No space left.*previous one is intact"):
            runs.save_checkpoint(tmp_path, 2, {"model": model}, optimizer)
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["step-00000001"]
    assert runs.load_checkpoint(tmp_path, {"model": model}, optimizer) == 1


def test_file_that_cannot_grow_keeps_the_previous_checkpoint(tmp_path: Path) -> None:
    import resource

    model, optimizer = make()
    train(model, optimizer, 0, 1)
    runs.save_checkpoint(tmp_path, 1, {"model": model}, optimizer)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300, hard))  # errors as a full disk does, midway
    try:
        with pytest.raises(UserError, match="checkpoint not written.*previous one is intact"):
            runs.save_checkpoint(tmp_path, 2, {"model": model}, optimizer)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["step-00000001"]
    assert runs.load_checkpoint(tmp_path, {"model": model}, optimizer) == 1


def test_loss_scaler_is_part_of_the_state(tmp_path: Path) -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    model, optimizer = make()
    runs.save_checkpoint(tmp_path, 1, {"model": model}, optimizer, scaler)
    fresh = torch.amp.GradScaler("cpu")
    runs.load_checkpoint(tmp_path, {"model": model}, optimizer, fresh)
    assert fresh.get_scale() == 8.0


def test_rests_of_killed_saves_are_swept_by_the_next(tmp_path: Path) -> None:
    model, optimizer = make()
    (tmp_path / "checkpoints" / "step-00000001.part-1-0").mkdir(parents=True)
    runs.save_checkpoint(tmp_path, 2, {"model": model}, optimizer)
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["step-00000002"]


def test_other_config_is_refused_with_the_difference(tmp_path: Path) -> None:
    runs.open_run(tmp_path / "r", {"steps": 5, "lr": 0.1}, is_main=True)
    runs.open_run(tmp_path / "r", {"steps": 5, "lr": 0.1}, is_main=True)
    with pytest.raises(UserError, match=r"holds another run \(lr: 0.1 -> 0.2\)"):
        runs.open_run(tmp_path / "r", {"steps": 5, "lr": 0.2}, is_main=True)


@pytest.mark.parametrize("name", ["thesis.txt", "unet", "finished.json", "run.json"])
def test_folder_of_something_else_is_refused_in_one_line(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("{}")
    what = "is a dataset folder" if name == "run.json" else f"holds {name}"
    with pytest.raises(UserError, match=f"{what} and no run.*choose another --output") as caught:
        runs.open_run(tmp_path, {"steps": 5}, is_main=True)
    assert "\n" not in str(caught.value) and [p.name for p in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("text", ['{"_class_name": "UNet2DConditionModel"}', "[1]"])
def test_config_of_something_else_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(UserError, match=r"config\.json: is not the config of a run.*--output"):
        runs.open_run(tmp_path, {"steps": 5}, is_main=True)
    assert (tmp_path / "config.json").read_text() == text


def test_rests_of_an_interrupted_start_are_continued(tmp_path: Path) -> None:
    for folder in ("checkpoints", "logs", "tensorboard"):
        (tmp_path / folder).mkdir()
    for name in ("metrics.jsonl", ".DS_Store", "config.json.part-1-0", "train.log"):
        (tmp_path / name).touch()
    runs.refuse_other_run(tmp_path, {"steps": 5})
    runs.open_run(tmp_path, {"steps": 5}, is_main=True)
    runs.open_run(tmp_path, {"steps": 5}, is_main=False)
    runs.refuse_other_run(tmp_path / "new", {"steps": 5})
    assert not (tmp_path / "new").exists()


def test_finished_mark_counts_for_its_steps_only(tmp_path: Path) -> None:
    assert not runs.is_finished(tmp_path, 5)
    runs.mark_finished(tmp_path, 5, loss=0.1)
    assert runs.is_finished(tmp_path, 5) and not runs.is_finished(tmp_path, 6)


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_loss_that_is_not_finite_stops_and_names_the_last_good(tmp_path: Path, loss: float) -> None:
    runs.check_finite(1.0, 3, tmp_path)
    with pytest.raises(UserError, match="step 3.*no update was made.*none, the run starts anew"):
        runs.check_finite(loss, 3, tmp_path)


def test_jsonl_tracker_appends_one_object_per_step(tmp_path: Path) -> None:
    tracker = runs.JsonlTracker(tmp_path)
    tracker.log({"loss": 0.5}, step=1)
    tracker.log({"loss": 0.25}, step=2)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(line["step"], line["loss"]) for line in lines] == [(1, 0.5), (2, 0.25)]


def test_processes_that_accelerate_does_not_see_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(runs, "Accelerator", lambda **_: type("One", (), {"num_processes": 1})())
    with pytest.raises(UserError, match="start CPU processes with torchrun"):
        runs.make_accelerator(tmp_path)
