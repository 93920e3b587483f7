"""Generation on a real Ray cluster of two nodes, one of which is killed half way."""

import json
import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from pipeline.errors import EXIT_BAD_INPUT
from pipeline.metadata import read_rows

pytest.importorskip("ray", reason="ray is not installed; pip install -e '.[ray]'")
cluster_utils = pytest.importorskip("ray.cluster_utils")

ROOT = Path(__file__).resolve().parents[2]
N = 80
RUN = [sys.executable, "generation/run.py", "--n", str(N)]


def hashes(folder: Path) -> dict[str, tuple[str, str]]:
    return {k: (r["image_sha256"], r["label_sha256"]) for k, r in read_rows(folder).items()}


@pytest.fixture
def cluster():
    """A head without CPUs and two nodes of one CPU each."""
    made = cluster_utils.Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    made.nodes = [made.add_node(num_cpus=1) for _ in range(2)]
    yield made
    made.shutdown()


def test_killed_node_changes_no_byte(cluster, flags, tmp_path):
    alone = subprocess.run(
        [*RUN, *flags, "--output", str(tmp_path / "alone")], cwd=ROOT, capture_output=True,
        text=True, timeout=600,
    )  # fmt: skip
    assert alone.returncode == 0, alone.stderr[-3000:]

    command = [*RUN, *flags, "--output", str(tmp_path / "set"), "--ray", cluster.address]
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    watchdog = threading.Timer(540, process.kill)
    watchdog.start()
    lines, killed = [], False
    for line in process.stderr:
        lines.append(line)
        if killed is False and re.match(r"streetforge: \d+/80 ", line):
            killed = True
            cluster.remove_node(cluster.nodes[0], allow_graceful=False)
    code = process.wait()
    watchdog.cancel()
    text = "".join(lines)
    assert code == 0, text[-3000:]
    assert "an actor was lost; another one takes its samples" in text
    assert f"{tmp_path / 'set'}: {N} samples" in process.stdout.read()
    assert hashes(tmp_path / "set") == hashes(tmp_path / "alone")
    assert json.loads((tmp_path / "set/status.json").read_text())["ok"] == N


def test_wrong_address_is_one_line(tmp_path):
    done = subprocess.run(
        [*RUN, "--output", str(tmp_path / "set"), "--ray", "127.0.0.1:1"], cwd=ROOT,
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == EXIT_BAD_INPUT
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("streetforge: --ray 127.0.0.1:1: no cluster answers")
