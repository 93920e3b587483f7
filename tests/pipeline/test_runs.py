"""Training runs: exact resume, rotation, unmarked rests, full disks, other configs."""

import contextlib
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from pipeline import checkpoint_files, checkpoints, runs
from pipeline.errors import UserError
from pipeline.output_folders import RUN, check_output

ROOT = Path(__file__).resolve().parents[2]


def make() -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 1))
    return model, torch.optim.AdamW(model.parameters(), lr=0.1)


def same(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    pairs = zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    return all(torch.equal(x, y) for x, y in pairs)


def test_resume_is_bit_exact(resume_exactly) -> None:
    resume_exactly(make)


def test_nothing_to_load_is_step_zero(tmp_path: Path) -> None:
    model, optimizer = make()
    assert checkpoints.load_checkpoint(tmp_path, {"model": model}, optimizer) == 0


def test_two_newest_checkpoints_are_kept(tmp_path: Path) -> None:
    model, optimizer = make()
    for step in (1, 2, 10, 11):
        checkpoints.save_checkpoint(tmp_path, step, {"model": model}, optimizer)
    names = sorted(p.name for p in (tmp_path / "checkpoints").iterdir())
    assert names == ["step-00000010", "step-00000011"]


def test_unmarked_checkpoint_is_ignored_and_replaced(tmp_path: Path) -> None:
    model, optimizer = make()
    checkpoints.save_checkpoint(tmp_path, 1, {"model": model}, optimizer)
    rest = tmp_path / "checkpoints" / "step-00000002"
    rest.mkdir()
    (rest / "model.safetensors").write_bytes(b"half")
    latest = checkpoints.latest_checkpoint(tmp_path)
    assert latest is not None and latest.name == "step-00000001"
    checkpoints.save_checkpoint(tmp_path, 2, {"model": model}, optimizer)
    assert checkpoints.load_checkpoint(tmp_path, {"model": model}, optimizer) == 2


def test_full_disk_keeps_the_previous_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, optimizer = make()
    checkpoints.save_checkpoint(tmp_path, 1, {"model": model}, optimizer)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "save_file", full)
        with pytest.raises(UserError, match="No space left.*previous one is intact"):
            checkpoints.save_checkpoint(tmp_path, 2, {"model": model}, optimizer)
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["step-00000001"]
    assert checkpoints.load_checkpoint(tmp_path, {"model": model}, optimizer) == 1


def test_file_that_cannot_grow_keeps_the_previous_checkpoint(tmp_path: Path, train_steps) -> None:
    import resource

    model, optimizer = make()
    train_steps(model, optimizer, 0, 1)
    checkpoints.save_checkpoint(tmp_path, 1, {"model": model}, optimizer)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300, hard))  # errors as a full disk does, midway
    try:
        with pytest.raises(UserError, match="checkpoint not written.*previous one is intact"):
            checkpoints.save_checkpoint(tmp_path, 2, {"model": model}, optimizer)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["step-00000001"]
    assert checkpoints.load_checkpoint(tmp_path, {"model": model}, optimizer) == 1


def test_loss_scaler_is_part_of_the_state(tmp_path: Path) -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    model, optimizer = make()
    checkpoints.save_checkpoint(tmp_path, 1, {"model": model}, optimizer, scaler)
    fresh = torch.amp.GradScaler("cpu")
    checkpoints.load_checkpoint(tmp_path, {"model": model}, optimizer, fresh)
    assert fresh.get_scale() == 8.0


def test_rests_of_killed_saves_are_swept_by_the_next(tmp_path: Path) -> None:
    model, optimizer = make()
    (tmp_path / "checkpoints" / "step-00000001.part-1-0").mkdir(parents=True)
    checkpoints.save_checkpoint(tmp_path, 2, {"model": model}, optimizer)
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["step-00000002"]


def test_other_config_is_refused_with_the_difference(tmp_path: Path) -> None:
    runs.open_run(tmp_path / "r", {"steps": 5, "lr": 0.1}, is_main=True)
    runs.open_run(tmp_path / "r", {"steps": 5, "lr": 0.1}, is_main=True)
    with pytest.raises(UserError, match=r"holds another run \(lr: 0.1 -> 0.2\)"):
        runs.open_run(tmp_path / "r", {"steps": 5, "lr": 0.2}, is_main=True)


def test_a_folder_that_another_process_writes_to_is_refused(tmp_path: Path) -> None:
    """The lock ends with the process that holds it, even if that is killed."""
    program = (
        "import sys, time; from pathlib import Path; from pipeline import runs\n"
        "runs.open_run(Path(sys.argv[1]), {'steps': 5}, is_main=True)\n"
        "print('open', flush=True); time.sleep(600)"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "r")]
    holder = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout and holder.stdout.readline() == "open\n"
        with pytest.raises(UserError, match="another process is writing to it; wait for its end"):
            runs.open_run(tmp_path / "r", {"steps": 5}, is_main=True)
        runs.open_run(tmp_path / "r", {"steps": 5}, is_main=False)  # a rank beside the main one
    finally:
        holder.kill()
        holder.wait()
    for _ in range(2):  # the process that holds a folder may open it again
        runs.open_run(tmp_path / "r", {"steps": 5}, is_main=True)


def test_a_lock_is_not_made_through_a_link(tmp_path: Path) -> None:
    folder = tmp_path / "r"
    folder.mkdir()
    (folder / ".lock").symlink_to(tmp_path / "elsewhere")
    runs.open_run(folder, {"steps": 5}, is_main=True)
    assert not (tmp_path / "elsewhere").exists() and (folder / "config.json").exists()


@pytest.mark.parametrize("name", ["thesis.txt", "unet", "finished.json", "run.json"])
def test_folder_of_something_else_is_refused_in_one_line(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("{}")
    what = "is a dataset folder" if name == "run.json" else f"holds {name}"
    with pytest.raises(
        UserError, match=f"{what} and has no config.json.*choose another --output"
    ) as caught:
        runs.open_run(tmp_path, {"steps": 5}, is_main=True)
    assert "\n" not in str(caught.value) and [p.name for p in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("text", ['{"_class_name": "UNet2DConditionModel"}', "[1]"])
def test_config_of_something_else_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(UserError, match=r"config\.json: is damaged, or not of a run.*--output"):
        runs.open_run(tmp_path, {"steps": 5}, is_main=True)
    assert (tmp_path / "config.json").read_text() == text


def test_rests_of_an_interrupted_start_are_continued(tmp_path: Path) -> None:
    for folder in ("checkpoints", "logs", "tensorboard"):
        (tmp_path / folder).mkdir()
    for name in ("metrics.jsonl", ".DS_Store", "config.json.part-1-0", "train.log"):
        (tmp_path / name).touch()
    check_output(tmp_path, RUN)
    runs.open_run(tmp_path, {"steps": 5}, is_main=True)
    runs.open_run(tmp_path, {"steps": 5}, is_main=False)
    check_output(tmp_path / "new", RUN)
    assert not (tmp_path / "new").exists()


def test_finished_mark_counts_for_its_steps_only(tmp_path: Path) -> None:
    assert not runs.is_finished(tmp_path, 5)
    runs.mark_finished(tmp_path, 5, loss=0.1)
    assert runs.is_finished(tmp_path, 5) and not runs.is_finished(tmp_path, 6)


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_loss_that_is_not_finite_stops_and_names_the_last_good(tmp_path: Path, loss: float) -> None:
    runs.check_finite(1.0, 3, tmp_path)
    with pytest.raises(UserError, match="step 3.*no update was made.*none, the run starts again"):
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
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setattr(runs, "Accelerator", lambda **_: type("One", (), {"num_processes": 1})())
    with pytest.raises(UserError, match="start CPU processes with torchrun"):
        runs.make_accelerator(tmp_path)
    with pytest.raises(UserError, match="start CPU processes with torchrun"):
        runs.start_accelerator()


@pytest.mark.parametrize("on_cpu", [True, False])
def test_float16_without_a_gpu_is_refused(on_cpu: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Accelerate would train in float32."""
    monkeypatch.setattr(runs, "only_cpu", lambda: on_cpu)
    refused = pytest.raises(UserError, match="--precision fp16: needs a GPU")
    for precision in ("fp32", "bf16"):
        runs.require_precision("--precision", precision)
    with refused if on_cpu else contextlib.nullcontext():
        runs.require_precision("--precision", "fp16")


@pytest.mark.parametrize("text", ["1", "true", "yes"])
def test_float16_is_refused_where_accelerate_is_kept_on_the_cpu(
    text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setenv("ACCELERATE_USE_CPU", text)
    with pytest.raises(UserError, match="fp16: needs a GPU, and ACCELERATE_USE_CPU keeps this pro"):
        runs.require_precision("--precision", "fp16")
    monkeypatch.setenv("ACCELERATE_USE_CPU", "false")
    runs.require_precision("--precision", "fp16")


def test_what_says_neither_yes_nor_no_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_CPU", "perhaps")
    with pytest.raises(UserError, match="^environment variable ACCELERATE_USE_CPU=perhaps: must"):
        runs.start_accelerator()


def damage(folder: Path, name: str, data: bytes) -> None:
    (folder / name).write_bytes(data)


OTHER = torch.nn.Linear(2, 2)
DAMAGES = {
    "weights are cut": lambda p: damage(p, "model.safetensors", b"\x08" + b"\0" * 7),
    "weights of another network": lambda p: save_file(OTHER.state_dict(), p / "model.safetensors"),
    "optimizer is cut": lambda p: damage(p, "optimizer.safetensors", b""),
    "optimizer is no JSON": lambda p: damage(p, "optimizer.json", b"{"),
    "optimizer is a list": lambda p: damage(p, "optimizer.json", b"[]"),
    "optimizer is empty": lambda p: damage(p, "optimizer.json", b"{}"),
    "marker of text": lambda p: damage(p, "complete.json", b'{"step": "three"}'),
    "marker is a list": lambda p: damage(p, "complete.json", b"[3]"),
    "marker is latin-1": lambda p: damage(p, "complete.json", b"\xe4"),
    "weights are gone": lambda p: (p / "model.safetensors").unlink(),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_checkpoint_is_passed_over_for_the_older_one(
    name: str, tmp_path: Path, train_steps, capsys: pytest.CaptureFixture[str]
) -> None:
    model, optimizer = make()
    for step in (1, 2):
        train_steps(model, optimizer, step - 1, step)
        checkpoints.save_checkpoint(tmp_path, step, {"model": model}, optimizer)
        if step == 1:
            first = {k: v.clone() for k, v in model.state_dict().items()}
    DAMAGES[name](tmp_path / "checkpoints" / "step-00000002")
    fresh, other = make()
    assert checkpoints.load_checkpoint(tmp_path, {"model": fresh}, other) == 1
    assert all(torch.equal(first[k], v) for k, v in fresh.state_dict().items())
    train_steps(fresh, other, 1, 2)  # the optimizer is that of the older one, too
    assert same(fresh, model)
    assert "step-00000002: cannot be used" in capsys.readouterr().err
    DAMAGES[name](tmp_path / "checkpoints" / "step-00000001")
    with pytest.raises(UserError, match="no other is whole: restore one, or delete") as caught:
        checkpoints.load_checkpoint(tmp_path, {"model": fresh}, other)
    assert "\n" not in str(caught.value)


class Evil:
    """What a pickle can do: call anything."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


def test_sharded_checkpoints_run_no_code(tmp_path: Path) -> None:
    import io
    import pickle

    import torch.distributed.checkpoint as dcp

    folder, mark = tmp_path / "model_0", tmp_path / "ran"
    values = {"weight": torch.ones(3, 2), "groups": [{"lr": 0.1}], "halves": torch.ones(2).half()}
    dcp.save(values, checkpoint_id=folder, no_dist=True)
    checkpoint_files.check_sharded(tmp_path)

    index = folder / ".metadata"
    whole = index.read_bytes()
    index.write_bytes(pickle.dumps(Evil(mark)))
    with pytest.raises(pickle.UnpicklingError):
        checkpoint_files.check_sharded(tmp_path)
    index.write_bytes(whole)

    evil = io.BytesIO()
    torch.save(Evil(mark), evil)
    found = pickle.loads(whole)
    place = next(p for k, p in found.storage_data.items() if k.fqn.startswith("groups"))
    shard = folder / place.relative_path
    data = shard.read_bytes()
    place.offset, place.length = len(data), len(evil.getvalue())
    shard.write_bytes(data + evil.getvalue())
    index.write_bytes(pickle.dumps(found))
    with pytest.raises(checkpoint_files.DAMAGE):
        checkpoint_files.check_sharded(tmp_path)
    place.relative_path = "../" + place.relative_path
    index.write_bytes(pickle.dumps(found))
    with pytest.raises(ValueError, match="not in its folder"):
        checkpoint_files.check_sharded(tmp_path)
    assert not mark.exists()


def test_no_process_ends_before_the_others_have_written(tmp_path: Path) -> None:
    program = tmp_path / "end.py"
    program.write_text(
        "import sys, time\n"
        "from pathlib import Path\n"
        "from pipeline import runs\n"
        "accelerator = runs.start_accelerator()\n"
        "path = Path(sys.argv[1])\n"
        "if accelerator.is_main_process:\n"
        "    time.sleep(3)\n"
        "    path.write_text('last')\n"
        "runs.end(accelerator)\n"
        "assert path.read_text() == 'last'\n"
        "import torch\n"
        "assert not torch.distributed.is_initialized()\n"
    )
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--")
    subprocess.run(
        [sys.executable, *torchrun, str(program), str(tmp_path / "file")],
        check=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        timeout=600,
    )
