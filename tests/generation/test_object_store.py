"""Tar shards in a local S3 server: killed workers, reruns, and the set read from there."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("s3fs", reason="s3fs is not installed; pip install -e '.[s3]'")
server = pytest.importorskip("moto.server", reason="pip install 'moto[server]'")

from pipeline.metadata import read_rows  # noqa: E402
from pipeline.remote_files import open_store  # noqa: E402
from pipeline.tar_set import committed, read_all_rows  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
N = 12
RUN = [sys.executable, "generation/run.py", "--steps", "1", "--n", str(N), "--shard-samples", "3"]
ADDRESS = "s3://bucket/sets/one"


@pytest.fixture(scope="module")
def environment():
    """The variables that lead s3fs and boto to a server of this test."""
    with pytest.MonkeyPatch.context() as patch:
        running = server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        running.start()
        host, port = running.get_host_and_port()
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        patch.setenv("AWS_ACCESS_KEY_ID", "test")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "test")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        import boto3
        import s3fs

        s3fs.S3FileSystem.clear_instance_cache()  # clients keep the address of an earlier server
        boto3.client("s3").create_bucket(Bucket="bucket")
        yield dict(os.environ)
        running.stop()


def start(*arguments: str) -> subprocess.Popen:
    return subprocess.Popen(
        [*RUN, *arguments], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def hashes(rows) -> dict[str, tuple[str, str]]:
    return {row["id"]: (row["image_sha256"], row["label_sha256"]) for row in rows}


def test_killed_worker_leaves_nothing_counted_and_a_rerun_completes(environment, tmp_path):
    store = open_store(ADDRESS)
    victim, other = (start("--output", ADDRESS, "--shard", f"{i}/2") for i in range(2))
    deadline = time.monotonic() + 500
    while not committed(store).get(0) and victim.poll() is None and time.monotonic() < deadline:
        time.sleep(0.1)
    victim.send_signal(signal.SIGKILL)
    victim.communicate()
    _, errors = other.communicate(timeout=500)
    assert other.returncode == 0, errors[-3000:]
    found = committed(store)
    assert set(found.values()) == {3} and {0, 1, 3} <= set(found)
    assert {f"shards/{number:06d}.tar" for number in found} <= set(store.sizes())

    again = start("--output", ADDRESS, "--shard", "0/2")
    _, errors = again.communicate(timeout=500)
    assert again.returncode == 0, errors[-3000:]
    assert committed(store) == {0: 3, 1: 3, 2: 3, 3: 3}

    whole = start("--output", str(tmp_path / "set"))
    _, errors = whole.communicate(timeout=500)
    assert whole.returncode == 0, errors[-3000:]
    assert hashes(read_all_rows(store)) == hashes(read_rows(tmp_path / "set").values())


def test_merged_set_is_read_from_the_store(environment):
    from pipeline.dataset import open_dataset, read_pair

    merge = [sys.executable, "pipeline/merge.py", "--data", ADDRESS, "--n", str(N)]
    done = subprocess.run(merge, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout == f"{ADDRESS}: {N} rows in metadata.jsonl\n"
    samples = open_dataset(ADDRESS, labelled=True)
    assert len(samples) == N
    image, label = read_pair(samples[-1])
    assert image.shape[:2] == label.shape
