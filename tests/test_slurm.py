"""scripts/slurm.sh with stand-ins for Slurm's commands: what it starts, stops and queues again."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
STANDINS = {
    "scontrol": 'echo "scontrol $*" >>"$LOG"; [ "$1" = show ] && echo node1 || true',
    "scancel": 'echo "scancel $*" >>"$LOG"; kill -TERM "$(cat "$LOG.pid")"',
    # ends with 143 when asked to stop, as our programs do, and with 0 after a while
    "srun": 'echo "srun $*" >>"$LOG"; echo $$ >"$LOG.pid"; trap "sleep 0.3; exit 143" TERM\n'
    'touch "$LOG.started"; for i in $(seq $WAIT); do sleep 0.1; done',
}


@pytest.fixture
def start(tmp_path):
    """A function that starts the script as sbatch would."""
    for name, body in STANDINS.items():
        (tmp_path / name).write_text(f"#!/usr/bin/env bash\n{body}\n")
        (tmp_path / name).chmod(0o755)

    def run(wait: int, **environment: str) -> tuple[subprocess.Popen, Path]:
        log = tmp_path / "log"
        variables = {
            "PATH": f"{tmp_path}:{os.environ['PATH']}", "LOG": str(log), "WAIT": str(wait),
            "SLURM_SUBMIT_DIR": str(ROOT), "SLURM_JOB_NUM_NODES": "2", "SLURM_GPUS_ON_NODE": "4",
            "SLURM_JOB_NODELIST": "node[1-2]", "SLURM_JOB_ID": "77",
        }  # fmt: skip
        command = ["bash", "scripts/slurm.sh", "generation/run.py", "--n", "5"]
        child = subprocess.Popen(command, cwd=ROOT, env={**os.environ, **variables, **environment})
        deadline = time.monotonic() + 30
        while not Path(f"{log}.started").exists():
            assert time.monotonic() < deadline
            time.sleep(0.02)
        return child, log

    return run


def test_it_starts_one_launcher_per_node(start):
    child, log = start(1, STREETFORGE_ACCELERATE="configs/accelerate/fsdp_sdxl.yaml")
    assert child.wait(30) == 0
    text = log.read_text()
    assert "--num_machines 2 --num_processes 8 --config_file configs/accelerate/fsdp" in text
    assert text.rstrip().endswith("generation/run.py --n 5") and "requeue" not in text


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
def test_before_the_time_limit_it_stops_and_queues_itself_again(start, number):
    child, log = start(300)
    child.send_signal(number)
    assert child.wait(30) == 143  # after the programs have left
    text = log.read_text()
    assert "scancel --signal=TERM 77" in text
    assert ("scontrol requeue 77" in text) == (number == signal.SIGUSR1)


@pytest.fixture
def start_task(tmp_path):
    """A function that runs a task of scripts/slurm_array.sh; the program records its words."""
    log = tmp_path / "log"
    stand_ins = {
        "python": 'echo "$*" >>"$LOG"; trap "exit 143" TERM\n'
        "for i in $(seq $WAIT); do sleep 0.1; done",
        "scontrol": 'echo "scontrol $*" >>"$LOG"',
    }
    for name, body in stand_ins.items():
        (tmp_path / name).write_text(f"#!/usr/bin/env bash\n{body}\n")
        (tmp_path / name).chmod(0o755)

    def run(wait: int, *words: str) -> tuple[subprocess.Popen, Path]:
        variables = {
            "PATH": f"{tmp_path}:{os.environ['PATH']}", "LOG": str(log), "WAIT": str(wait),
            "STREETFORGE_PYTHON": str(tmp_path / "python"), "SLURM_SUBMIT_DIR": str(ROOT),
            "SLURM_ARRAY_TASK_ID": "5", "SLURM_ARRAY_JOB_ID": "77",
        }  # fmt: skip
        command = ["bash", "scripts/slurm_array.sh", *words]
        return subprocess.Popen(command, cwd=ROOT, env={**os.environ, **variables}), log

    return run


def test_array_task_makes_its_shard(start_task):
    task, log = start_task(0, "64", "--n", "9", "--output", "runs/part-{}")
    assert task.wait(60) == 0
    assert log.read_text() == "generation/run.py --shard 5/64 --n 9 --output runs/part-5\n"


@pytest.mark.parametrize(("number", "again"), [(signal.SIGUSR1, True), (signal.SIGTERM, False)])
def test_array_task_is_queued_again_at_the_time_limit(start_task, number, again):
    task, log = start_task(600, "64")
    deadline = time.monotonic() + 60
    while not log.exists() or not log.read_text():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    time.sleep(0.3)
    task.send_signal(number)
    assert task.wait(60) == 143
    assert ("scontrol requeue 77_5" in log.read_text()) == again


def test_kubernetes_job_has_one_pod_per_shard():
    import yaml

    from generation.settings import Config
    from generation.shards import parse_shard

    job = yaml.safe_load((ROOT / "scripts/kubernetes_job.yaml").read_text())["spec"]
    assert job["completionMode"] == "Indexed"
    words = job["template"]["spec"]["containers"][0]["command"]
    assert (ROOT / words[1]).is_file()
    options = dict(word.removeprefix("--").split("=") for word in words[2:])
    assert (ROOT / options.pop("config")).is_file()
    assert set(options) <= set(Config.__dataclass_fields__)
    last = options["shard"].replace("$(JOB_COMPLETION_INDEX)", str(job["completions"] - 1))
    assert parse_shard(last) == (job["completions"] - 1, job["completions"])
