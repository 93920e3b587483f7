"""The pipeline runner on a small recipe of plain Python programs."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from pipeline import launching, stage_runs
from pipeline.errors import UserError
from pipeline.stage_runs import Launch
from pipeline.stages import FOLDER, find_recipe, load_recipe

ROOT = Path(__file__).resolve().parents[2]
WRITE = (
    "import pathlib, sys; p = pathlib.Path(sys.argv[1]); p.mkdir(parents=True, exist_ok=True); "
    "open(p / 'runs.txt', 'a').write('x'); print('made', p); (p / 'done').touch()"
)
RECIPE = """
workspace: {workspace}
stages:
  - name: first
    about: writes a folder
    command: {program} {{workspace}}/first 1
    output: "{{workspace}}/first"
    done: done
  - name: other
    command: {program} {{workspace}}/other
    output: "{{workspace}}/other"
    done: done
  - name: second
    command: {program} {{workspace}}/second {{workspace}}/first/image.png
    output: "{{workspace}}/second"
    done: done
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    program = tmp_path / "program.py"
    program.write_text(WRITE)
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE.format(workspace=tmp_path / "work", program=program))
    return path


def start(recipe: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "pipeline/run.py", "--recipe", str(recipe), *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=600,
    )


def times_run(recipe: Path, stage: str) -> int:
    path = recipe.parent / "work" / stage / "runs.txt"
    return len(path.read_text()) if path.exists() else 0


def test_stages_run_once_and_are_then_skipped(recipe: Path) -> None:
    done = start(recipe)
    assert done.returncode == 0, done.stderr
    assert "[1/3] first: writes a folder (not run yet)" in done.stdout and "made" in done.stdout
    again = start(recipe)
    assert again.stdout.count("complete, skipped") == 3
    assert [times_run(recipe, s) for s in ("first", "other", "second")] == [1, 1, 1]
    record = json.loads((recipe.parent / "work" / "timings.json").read_text())["stages"]
    assert sorted(record) == ["first", "other", "second"]
    assert all(r["seconds"] >= 0 and r["peak_mb"] > 0 and r["finished_at"] for r in record.values())
    assert "made" in (recipe.parent / "work" / "logs" / "first.log").read_text()


def test_inputs_are_found_from_the_commands(recipe: Path) -> None:
    stages = {s.name: s for s in load_recipe(recipe).stages}
    assert stages["second"].inputs == ("first",)
    assert stages["other"].inputs == ()


@pytest.mark.parametrize("name", sorted(path.stem for path in FOLDER.glob("*.yaml")))
def test_every_output_that_a_command_of_a_recipe_names_is_an_input(name: str) -> None:
    """Read as text: a stage that starts before its input, with --jobs, would find nothing."""
    before: list[str] = []
    outputs: dict[str, str] = {}
    for stage in load_recipe(find_recipe(name)).stages:
        text = " ".join(stage.command)
        named = [n for n in before if re.search(rf"{re.escape(outputs[n])}(?=[/ ]|$)", text)]
        assert set(named) <= set(stage.inputs), stage.name
        before.append(stage.name)
        outputs[stage.name] = str(stage.output)


def test_a_path_behind_a_name_is_an_input(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(
        "workspace: w\nstages:\n"
        "  - {name: a, command: x.py, output: '{workspace}/a'}\n"
        "  - {name: b, command: 'x.py loss={workspace}/a/m.jsonl', output: '{workspace}/b'}\n"
        "  - {name: c, command: 'x.py --data={workspace}/b', output: '{workspace}/c'}\n"
    )
    assert [stage.inputs for stage in load_recipe(path).stages] == [(), ("a",), ("b",)]


def test_each_repeats_a_stage(tmp_path: Path) -> None:
    """One stage per combination of the named values, which fill in all of its texts."""
    path = tmp_path / "recipe.yaml"
    path.write_text(
        "workspace: w\n"
        "stages:\n"
        "  - name: train-{arm}-{seed}\n"
        "    about: train {arm} with seed {seed}\n"
        "    each: {arm: [a, b], seed: [0, 1]}\n"
        "    command: train.py --seed {seed} --output {workspace}/{arm}_{seed}\n"
        '    output: "{workspace}/{arm}_{seed}"\n'
        "  - name: score\n"
        "    command: score.py {workspace}/a_0 {workspace}/a_1\n"
        "    output: s.json\n"
    )
    *trained, score = load_recipe(path).stages
    assert [s.name for s in trained] == ["train-a-0", "train-a-1", "train-b-0", "train-b-1"]
    assert trained[1].command == ("train.py", "--seed", "1", "--output", "w/a_1")
    assert (trained[3].about, str(trained[3].output)) == ("train b with seed 1", "w/b_1")
    assert score.inputs == ("train-a-0", "train-a-1")


GROUP = """
workspace: w
values: {photographs: "", development: dev}
stages:
  - each: {seed: [0, 1]}
    stages:
      - {name: "train-{seed}", command: "train.py {workspace}/{seed}", output: "{workspace}/{seed}"}
      - name: "score-{seed}-{set}"
        each: {set: ["{development}", five]}
        command: "score.py {workspace}/{seed} {set}"
        output: "{workspace}/{seed}_{set}"
      - name: "photographs-{seed}"
        when: "{photographs}"
        command: "score.py {workspace}/{seed} {photographs}"
        output: "{workspace}/{seed}_photographs"
"""


def test_a_group_repeats_its_stages_together(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(GROUP)
    names = [stage.name for stage in load_recipe(path).stages]
    first = ["train-0", "score-0-dev", "score-0-five"]
    assert names == [*first, *(name.replace("0", "1") for name in first)]
    stages = load_recipe(path, given={"photographs": "camvid"}).stages
    assert [s.name for s in stages if "photographs" in s.name] == ["photographs-0", "photographs-1"]
    assert stages[3].command == ("score.py", "w/0", "camvid")
    assert stages[3].inputs == ("train-0",)


def test_a_group_is_no_stage(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(GROUP.replace("- each: {seed", "- name: all\n    each: {seed"))
    with pytest.raises(UserError, match="a group of stages has `each`, `when` and `stages` alone"):
        load_recipe(path)


@pytest.mark.parametrize("filled", ["values: {up: ..}", "each"])
def test_no_filled_in_output_leads_out_of_its_folder(tmp_path: Path, filled: str) -> None:
    own = "each: {up: ['..']}" if filled == "each" else "about: ''"
    stage = f"{{name: a, command: x.py, output: '{{workspace}}/{{up}}/b', {own}}}"
    path = tmp_path / "recipe.yaml"
    head = "" if filled == "each" else f"{filled}\n"
    path.write_text(f"{head}workspace: {tmp_path}/ws\nstages:\n  - {stage}\n")
    with pytest.raises(UserError, match=r"must not lead out of their folder by '\.\.'"):
        load_recipe(path)


def test_all_stages_of_a_recipe_are_counted(tmp_path: Path) -> None:
    numbers = list(range(600))
    each = f"each: {{k: {numbers}}}"
    stages = [
        f"  - {{name: '{name}{{k}}', command: x.py, output: '{name}{{k}}', {each}}}\n"
        for name in "ab"
    ]
    path = tmp_path / "recipe.yaml"
    path.write_text(f"workspace: {tmp_path}/ws\nstages:\n{''.join(stages)}")
    with pytest.raises(UserError, match="makes more than 1000 stages; list fewer values"):
        load_recipe(path)


@pytest.mark.parametrize(
    ("each", "rule"),
    [
        ("{}", "names no value"),
        ("{seed: []}", "names no value"),
        ("{workspace: [a]}", "'workspace' must be a new name"),
        ("{seed: [0.5]}", "seed must list texts or whole numbers"),
        ("{other: [0, 1]}", "two stages are called a"),
    ],
)
def test_faults_of_each_are_one_line(tmp_path: Path, each: str, rule: str) -> None:
    path = tmp_path / "recipe.yaml"
    stage = f"{{name: a, command: x.py, output: o, each: {each}}}"
    path.write_text(f"workspace: w\nstages: [{stage}]\n")
    with pytest.raises(UserError, match=rule):
        load_recipe(path)


def test_a_changed_base_of_a_preset_changes_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.stages.CONFIGS", tmp_path)
    (tmp_path / "base.yaml").write_text("steps: 1")
    (tmp_path / "last.yaml").write_text("_base_: base.yaml")
    path = tmp_path / "recipe.yaml"
    path.write_text(
        f"workspace: w\nstages: [{{name: a, command: x.py {tmp_path}/last.yaml, output: o}}]"
    )
    before = load_recipe(path).stages[0].fingerprint()
    (tmp_path / "base.yaml").write_text("steps: 2")
    assert load_recipe(path).stages[0].fingerprint() != before


def test_changed_command_runs_again_with_what_reads_it(recipe: Path) -> None:
    start(recipe)
    recipe.write_text(recipe.read_text().replace("/first 1", "/first 2"))
    plan = start(recipe, "--dry-run").stdout
    assert "(its command changed)" in plan and "(its input first is made again)" in plan
    done = start(recipe)
    assert done.returncode == 0, done.stderr
    assert "other: complete, skipped" in done.stdout
    # the folders were made anew, not added to
    assert [times_run(recipe, s) for s in ("first", "other", "second")] == [1, 1, 1]
    assert start(recipe).stdout.count("complete, skipped") == 3


def test_input_made_again_alone_makes_later_stages_stale(recipe: Path) -> None:
    start(recipe)
    time.sleep(1.1)  # finishing times are kept in seconds
    assert start(recipe, "--only", "first", "--redo", "first").returncode == 0
    assert "(its input first was made again)" in start(recipe, "--dry-run").stdout


def test_failure_names_stage_log_and_command_and_stops(recipe: Path) -> None:
    (recipe.parent / "program.py").write_text("import sys; print('oh no'); sys.exit(2)")
    done = start(recipe)
    assert done.returncode == 2
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1
    for part in ("stage first stopped with exit code 2", "logs/first.log", "program.py", "again"):
        assert part in lines[0]
    assert "other" not in done.stdout and "(" not in lines[0].partition(";")[0]
    text = "import sys; print('streetforge: no such file'); print('launcher noise'); sys.exit(2)"
    (recipe.parent / "program.py").write_text(text)
    assert "exit code 2 (no such file);" in start(recipe).stderr
    (recipe.parent / "program.py").write_text(WRITE)
    assert "(unfinished, continues)" in start(recipe).stdout


def test_missing_marker_is_an_error(recipe: Path) -> None:
    (recipe.parent / "program.py").write_text("print('nothing')")
    assert "ended without writing" in start(recipe).stderr


@pytest.mark.parametrize("launcher", ["python", "accelerate"])
def test_sigterm_ends_the_child_too(recipe: Path, launcher: str) -> None:
    """Also one whose launcher passes no signal on."""
    named = f"name: first\n    launcher: {launcher}\n"
    recipe.write_text(recipe.read_text().replace("name: first\n", named))
    pid_file = recipe.parent / "pid"
    (recipe.parent / "program.py").write_text(
        f"import os, time; open({str(pid_file)!r}, 'w').write(str(os.getpid())); time.sleep(6000)"
    )
    command = [sys.executable, "pipeline/run.py", "--recipe", str(recipe)]
    parent = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 600
    while not (pid_file.exists() and pid_file.read_text()) and time.monotonic() < deadline:
        assert parent.poll() is None
        time.sleep(0.05)
    parent.send_signal(signal.SIGTERM)
    assert parent.wait(timeout=600) == 143
    with contextlib.suppress(psutil.NoSuchProcess):  # an orphan may wait for init to forget it
        assert psutil.Process(int(pid_file.read_text())).status() == psutil.STATUS_ZOMBIE


IGNORING = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); {}; time.sleep(600)"
SERVICE = "import subprocess, sys; subprocess.Popen([sys.executable, '-c', {!r}])"


@pytest.mark.parametrize("kind", ["ignores", "service"])
@pytest.mark.parametrize("is_stopped", [True, False])
def test_no_program_keeps_the_runner_from_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, is_stopped: bool
) -> None:
    """One that ignores SIGTERM is killed, one that is left behind with the pipe is no stage's."""
    monkeypatch.setattr(launching, "GRACE_S", 0.5)
    pid_file = tmp_path / "pid"
    say = f"import os; open({str(pid_file)!r}, 'w').write(str(os.getpid()))"
    program = IGNORING.format(say)
    if kind == "service":
        program = SERVICE.format(program)
    program = f"{SERVICE.format(program)}; import time; time.sleep(60)"
    children = launching.Children()

    def interrupt() -> None:
        deadline = time.monotonic() + 60
        while not (pid_file.exists() and pid_file.read_text()) and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(0.5)  # the one between has ended
        if is_stopped:
            children.stop()
        else:
            os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    command, started = [sys.executable, "-c", program], time.monotonic()
    try:
        if is_stopped:
            assert launching.forward(command, tmp_path / "log", 1, children=children)[0] == -15
        else:
            with pytest.raises(KeyboardInterrupt):
                launching.forward(command, tmp_path / "log", 1, children=children)
        assert time.monotonic() - started < 50
        pid, deadline = int(pid_file.read_text()), time.monotonic() + 60
        while kind == "ignores" and is_at_work(pid) and time.monotonic() < deadline:
            time.sleep(0.05)  # a process closes its pipe a little before it has ended
        assert is_at_work(pid) == (kind == "service")
    finally:
        thread.join()
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(pid_file.read_text()), signal.SIGKILL)


def test_programs_of_other_users_do_not_keep_others_from_their_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(process: psutil.Process) -> None:
        raise psutil.AccessDenied(process.pid)

    command = [sys.executable, "-c", "import time; time.sleep(60)"]
    own = subprocess.Popen(command)
    monkeypatch.setattr(launching, "GRACE_S", 0)
    with monkeypatch.context() as patch:
        patch.setattr(psutil.Process, "terminate", refuse)
        ending = launching.Ending(psutil.Process(own.pid))
    while not ending.is_over():
        time.sleep(0.05)
    assert own.wait(timeout=60) == -signal.SIGKILL


def is_at_work(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


MEETING = """
import os, pathlib, sys, time
folder = pathlib.Path(sys.argv[1])
folder.mkdir(parents=True, exist_ok=True)
(folder / "devices").write_text(os.environ.get("CUDA_VISIBLE_DEVICES", "none"))
(folder / "started").touch()
if folder.name != "second":  # the stages that do not read each other wait for each other
    while not all((folder.parent / name / "started").exists() for name in ("first", "other")):
        time.sleep(0.05)
assert folder.name != "second" or (folder.parent / "first" / "done").exists()
{extra}
print("loud")
(folder / "done").touch()
"""


def test_stages_that_do_not_read_each_other_run_at_a_time(recipe: Path) -> None:
    """They meet, which they could not do one after the other; a reader waits for its input."""
    (recipe.parent / "program.py").write_text(MEETING.format(extra=""))
    done = start(recipe, "--jobs", "2")
    assert done.returncode == 0, done.stderr
    assert "loud" not in done.stdout and "log: " in done.stdout
    assert "loud" in (recipe.parent / "work" / "logs" / "other.log").read_text()
    record = json.loads((recipe.parent / "work" / "timings.json").read_text())["stages"]
    assert all(entry["finished_at"] for entry in record.values()) and len(record) == 3
    assert start(recipe, "--jobs", "2").stdout.count("complete, skipped") == 3


def test_after_a_failure_no_stage_starts_and_those_at_work_end(recipe: Path) -> None:
    fail_first = """
import json
if folder.name == "first":
    sys.exit(3)
while not json.loads((folder.parent / "timings.json").read_text())["stages"]["first"]["peak_mb"]:
    time.sleep(0.05)  # until the runner has noted the end of the first stage
time.sleep(1)
"""
    (recipe.parent / "program.py").write_text(MEETING.format(extra=fail_first))
    last = "  - {name: last, command: program.py, output: '{workspace}/last'}\n"
    recipe.write_text(recipe.read_text() + last)
    done = start(recipe, "--jobs", "2")
    assert done.returncode == 2 and "stage first stopped with exit code 3" in done.stderr
    assert "first: failed; the stages that are at work end first" in done.stdout
    assert "other: done" in done.stdout
    assert "second" not in done.stdout and "last" not in done.stdout
    recipe.write_text(recipe.read_text().removesuffix(last))
    (recipe.parent / "program.py").write_text(MEETING.format(extra=""))
    again = start(recipe, "--jobs", "2")
    assert again.returncode == 0 and "other: complete, skipped" in again.stdout


def test_a_stop_signal_ends_all_stages(recipe: Path) -> None:
    text = MEETING.format(extra="(folder / 'pid').write_text(str(os.getpid())); time.sleep(600)")
    (recipe.parent / "program.py").write_text(text)
    command = [sys.executable, "pipeline/run.py", "--recipe", str(recipe), "--jobs", "2"]
    parent = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
    pids = [recipe.parent / "work" / name / "pid" for name in ("first", "other")]
    deadline = time.monotonic() + 600
    while not all(p.exists() and p.read_text() for p in pids) and time.monotonic() < deadline:
        time.sleep(0.05)
    busy = start(recipe)
    assert busy.returncode == 2 and "is writing to it; wait for its end" in busy.stderr
    parent.send_signal(signal.SIGTERM)
    assert parent.wait(timeout=600) == 143
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(int(pid.read_text()), 0)
    assert not (recipe.parent / "work" / "second").exists()


def test_gpus_are_shared_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6,GPU-7")
    assert Launch.on(2, 1, True).places == ({},)
    assert [place["CUDA_VISIBLE_DEVICES"] for place in Launch.on(2, 2, True).places] == [
        "4,5",
        "6,GPU-7",
    ]
    with pytest.raises(UserError, match="it needs 5 GPUs, but this machine has 4; lower --jobs"):
        Launch.on(None, 5, True)


def test_bad_settings_are_one_line(recipe: Path) -> None:
    assert "no such stage; " in start(recipe, "--only", "third").stderr
    assert "must be in 1..1024" in start(recipe, "--num-processes", "0").stderr
    assert "must be in 1..1024" in start(recipe, "--jobs", "0").stderr
    with pytest.raises(UserError, match="recipes: .*pocket"):
        find_recipe("no-such-recipe")
    recipe.write_text(recipe.read_text().replace("{workspace}/other", "{somewhere}/other"))
    assert "cannot be filled in" in start(recipe).stderr


def test_output_outside_the_workspace_is_never_deleted(recipe: Path, tmp_path: Path) -> None:
    outside = tmp_path / "precious"
    recipe.write_text(recipe.read_text().replace("{workspace}/other", str(outside)))
    assert start(recipe).returncode == 0
    done = start(recipe, "--redo", "other")
    assert done.returncode == 2 and "outside the workspace" in done.stderr
    assert (outside / "done").exists()


def test_a_pipe_in_place_of_a_log_is_one_line(recipe: Path) -> None:
    logs = recipe.parent / "work" / "logs"
    logs.mkdir(parents=True)
    os.mkfifo(logs / "first.log")
    done = start(recipe, "--jobs", "2")
    assert done.returncode == 2 and "first.log: is no regular file" in done.stderr


def test_a_link_in_place_of_an_output_is_replaced(recipe: Path) -> None:
    assert start(recipe).returncode == 0
    work = recipe.parent / "work"
    (work / "other").rename(work / "mine")
    (work / "other").symlink_to(work / "mine")
    assert start(recipe, "--redo", "other").returncode == 0
    assert not (work / "other").is_symlink() and (work / "mine" / "done").exists()


def test_a_failure_is_named_without_its_log(recipe: Path) -> None:
    logs = recipe.parent / "work" / "logs"
    (recipe.parent / "program.py").write_text(
        f"import shutil, sys; shutil.rmtree({str(logs)!r}); sys.exit(5)"
    )
    assert "stage first stopped with exit code 5" in start(recipe).stderr


def test_launchers() -> None:
    assert launching.launch_prefix("python", 4, True) == [sys.executable]
    one = launching.launch_prefix("accelerate", 1, False)
    assert one[1:3] == ["-m", "accelerate.commands.launch"] and "--cpu" in one
    cpus = launching.launch_prefix("accelerate", 2, False)
    assert "torch.distributed.run" in cpus and "--nproc-per-node=2" in cpus
    gpus = launching.launch_prefix("accelerate", 8, True)
    assert "--multi_gpu" in gpus and "--num_processes=8" in gpus and "--cpu" not in gpus


def test_a_stage_may_want_more_cpu_processes(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = recipe.read_text()
    recipe.write_text(text.replace("  - name: other", "  - cpu_processes: 2\n    name: other"))
    first, wide, _ = load_recipe(recipe).stages
    monkeypatch.setattr(stage_runs.os, "cpu_count", lambda: 4)
    counts = [Launch.on(asked, 1, False).process_count(wide) for asked in (None, 1, 3)]
    assert counts == [2, 1, 3] and Launch.on(None, 1, False).process_count(first) == 1
    assert Launch.on(None, 1, True).process_count(wide) == 1, "one GPU is not shared out"
    halves = Launch.on(None, 2, False)
    assert [halves.process_count(s) for s in (first, wide)] == [1, 2]
    assert [halves.threads(s) for s in (first, wide)] == [2, 1]
    monkeypatch.setattr(stage_runs.os, "cpu_count", lambda: 1)
    assert Launch.on(None, 1, False).process_count(wide) == 1
    recipe.write_text(recipe.read_text().replace("cpu_processes: 2", "cpu_processes: 0"))
    done = start(recipe)
    assert done.returncode == 2 and "cpu_processes of other is 0" in done.stderr


def test_two_cpu_processes_really_are_two(tmp_path: Path) -> None:
    program = tmp_path / "count.py"
    program.write_text(
        "from accelerate import Accelerator\n"
        "a = Accelerator(cpu=True)\n"
        "open(f'{__file__}.{a.process_index}-of-{a.num_processes}', 'w')\n"
        "a.end_training()\n"
    )
    command = [*launching.launch_prefix("accelerate", 2, False), str(program)]
    subprocess.run(command, check=True, capture_output=True, timeout=300)
    assert sorted(p.name for p in tmp_path.glob("count.py.*")) == [
        "count.py.0-of-2",
        "count.py.1-of-2",
    ]
