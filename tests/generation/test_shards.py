"""Static shards: every division gives the same set, in folders and in tar shards."""

import io
import json
import os
import signal
import sys
import tarfile

import fsspec
import numpy as np
import pytest

from generation import run, tar_output, worker
from generation.sampler import networks as loading
from generation.shards import parse_shard, position
from pipeline import files, merge, verify
from pipeline.dataset_writer import encode_sample
from pipeline.errors import EXIT_INCOMPLETE, UserError
from pipeline.metadata import read_rows
from pipeline.remote_files import open_store
from pipeline.tar_members import find_member
from pipeline.tar_set import Shard, TarSet, committed, read_all_rows, tar_names

N = 5
TIMES = ("seconds", "generated_at", "row_sha256", "image_file_name", "label_file_name")


@pytest.fixture
def call(monkeypatch, flags, networks):
    """A function that runs a program in this process, on networks loaded once."""
    monkeypatch.setattr(loading, "load_networks", lambda config, device: networks)

    def run_main(*arguments: object, program=run) -> int:
        options = flags if program is run else []
        monkeypatch.setattr(sys, "argv", ["program", *options, *map(str, arguments)])
        return program.main() or 0

    return run_main


@pytest.fixture
def address():
    """An empty place in a store that lives in the memory of this process."""
    yield "memory://bucket/set"
    system = fsspec.filesystem("memory")
    if system.exists("/bucket"):
        system.rm("/bucket", recursive=True)


def plain(rows) -> dict[str, dict]:
    """Return what rows say apart from times and places."""
    return {row["id"]: {k: v for k, v in row.items() if k not in TIMES} for row in rows}


@pytest.fixture(scope="module")
def whole(tmp_path_factory, flags) -> dict[str, dict]:
    """The rows of the set of N samples, made by one process."""
    folder = tmp_path_factory.mktemp("generated") / "set"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["run.py", *flags, "--n", str(N), "--output", str(folder)])
        assert not run.main()
    return plain(read_rows(folder).values())


def test_shard_is_index_and_count(monkeypatch):
    assert parse_shard("") == (0, 1) and parse_shard("2/3") == (2, 3)
    for wrong in ("3/3", "-1/3", "1", "1/0", "a/b", "1/2/3"):
        with pytest.raises(UserError, match=f"^--shard {wrong}: must be i/n"):
            parse_shard(wrong)
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert position("2/3") == (9, 12)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_every_number_of_folders_gives_the_same_set(call, whole, tmp_path, count):
    parts = [tmp_path / f"part-{index}" for index in range(count)]
    for index, part in enumerate(parts):
        assert call("--n", N, "--shard", f"{index}/{count}", "--output", part) == 0
        indices = {int(key) for key in read_rows(part)}
        assert indices == set(range(index, N, count))
        assert (part / f"metadata-{index:03d}.jsonl").is_file()  # so that folders can be copied
    joined = tmp_path / "set"
    assert call("--data", joined, "--parts", *parts, "--n", N, program=merge) == 0
    assert plain(read_rows(joined).values()) == whole
    assert call("--data", joined, "--n", N, program=verify) == 0


def test_shards_in_one_folder_meet_there(call, whole, tmp_path, capsys):
    folder = tmp_path / "set"
    assert call("--n", N, "--shard", "1/2", "--output", folder) == 0
    assert capsys.readouterr().out == f"{folder}: 2 samples\n"
    assert call("--n", N, "--shard", "1/2", "--output", folder) == 0
    assert "2 samples; nothing to do" in capsys.readouterr().out
    assert call("--n", N, "--output", folder) == 0
    assert plain(read_rows(folder).values()) == whole


def test_shard_without_a_sample_is_passed_over(call, whole, tmp_path):
    parts = [tmp_path / f"part-{index}" for index in range(2)]
    for index, part in enumerate(parts):
        assert call("--n", 1, "--shard", f"{index}/2", "--output", part) == 0
    assert call("--data", tmp_path / "set", "--parts", *parts, "--n", 1, program=merge) == 0
    assert list(read_rows(tmp_path / "set")) == ["00000000"]
    with pytest.raises(UserError, match="none: no such folder; check the path"):
        call("--data", tmp_path / "set", "--parts", tmp_path / "none", program=merge)


def test_merge_names_what_is_missing_and_refuses_other_runs(call, tmp_path, capsys):
    first, other, joined = tmp_path / "first", tmp_path / "other", tmp_path / "set"
    assert call("--n", N, "--shard", "0/2", "--output", first) == 0
    assert call("--n", 2, "--shard", "1/2", "--seed", 9, "--output", other) == 0
    with pytest.raises(UserError, match="of another run than .*first .seed: 9 -> 0|seed: 0 -> 9"):
        call("--data", joined, "--parts", first, other, program=merge)
    assert call("--data", joined, "--parts", first, "--n", N, program=merge) == EXIT_INCOMPLETE
    assert "2 of 5 samples are missing (00000001, 00000003)" in capsys.readouterr().err


@pytest.mark.parametrize("count", [1, 2, 3])
def test_every_number_of_workers_gives_the_same_tar_shards(call, whole, address, count):
    for index in reversed(range(count)):
        shard = ("--shard", f"{index}/{count}", "--shard-samples", 2)
        assert call("--n", N, *shard, "--output", address) == 0
    store = open_store(address)
    assert committed(store) == {0: 2, 1: 2, 2: 1}
    assert plain(read_all_rows(store)) == whole
    for row in read_all_rows(store):
        for kind in ("image", "label"):
            member = find_member(row[f"{kind}_file_name"])
            data = store.read(member.shard, member.start, member.num_bytes)
            assert files.sha256(data) == row[f"{kind}_sha256"] == whole[row["id"]][f"{kind}_sha256"]
    with tarfile.open(fileobj=io.BytesIO(store.read("shards/000001.tar"))) as archive:
        names = [f"0000000{i}.{end}" for i in (2, 3) for end in ("label.png", "image.png", "json")]
        assert archive.getnames() == names
        fields = json.loads(archive.extractfile("00000003.json").read())
    assert fields == {k: v for k, v in whole["00000003"].items() if k not in ("id", "status")}
    assert call("--data", address, "--n", N + 1, program=merge) == EXIT_INCOMPLETE
    lines = store.read("metadata.jsonl").splitlines()
    assert [json.loads(line)["id"] for line in lines] == sorted(whole)


def test_tar_shards_have_the_same_bytes_after_a_stop_and_a_larger_n(
    call, whole, address, monkeypatch, capsys
):
    """A stopped worker commits what it has; the same command completes it from there."""
    make = worker.SampleMaker.make

    def make_and_stop(self, items):
        os.kill(os.getpid(), signal.SIGTERM)
        return make(self, items)

    options = ("--shard-samples", 4, "--output", address)
    monkeypatch.setattr(worker.SampleMaker, "make", make_and_stop)
    assert call("--n", N, *options) == 128 + signal.SIGTERM
    store = open_store(address)
    assert committed(store) == {0: 1}
    monkeypatch.setattr(worker.SampleMaker, "make", make)
    assert call("--n", 3, *options) == 0
    assert committed(store) == {0: 3} and len(store.sizes()) == 4  # old rows are gone
    assert call("--n", N, *options) == 0
    assert plain(read_all_rows(store)) == whole
    (name,) = tar_names(row for row in read_all_rows(store) if row["id"] < "00000004")
    continued = store.read(name)
    assert call("--n", N, "--shard-samples", 4, "--output", "memory://bucket/again") == 0
    assert continued == open_store("memory://bucket/again").read("shards/000000.tar")
    capsys.readouterr()
    assert call("--n", N, *options) == 0
    assert "complete; nothing to do" in capsys.readouterr().out


def test_tar_without_rows_counts_nothing(call, whole, address):
    """What a worker leaves that is killed between the tar file and its rows."""
    options = ("--n", N, "--shard-samples", 3, "--output", address)
    assert call(*options) == 0
    store = open_store(address)
    store.system.rm_file(store.path("rows/000001-00002.jsonl"))
    store.system.pipe_file(store.path("shards/000001.tar"), b"half of it")
    assert committed(store) == {0: 3}
    assert call("--data", address, "--n", N, program=merge) == EXIT_INCOMPLETE
    assert call(*options) == 0
    assert plain(read_all_rows(store)) == whole


def test_failed_samples_are_tried_again(call, whole, address, monkeypatch, capsys):
    options = ("--n", N, "--shard-samples", 3, "--output", address)
    with monkeypatch.context() as patch:
        patch.setattr(tar_output, "encode_sample", fail_sample(tar_output.encode_sample, 1))
        assert call(*options) == EXIT_INCOMPLETE
    assert "1 samples could not be generated" in capsys.readouterr().err
    assert committed(open_store(address)) == {0: 2, 1: 2}
    assert call(*options) == 0
    assert plain(read_all_rows(open_store(address))) == whole


def test_killed_between_tar_and_rows_of_a_shard_with_a_failed_sample(
    call, whole, address, monkeypatch
):
    options = ("--n", N, "--shard-samples", 3, "--output", address)
    with monkeypatch.context() as patch:
        patch.setattr(tar_output, "encode_sample", fail_sample(tar_output.encode_sample, 1))
        assert call(*options) == EXIT_INCOMPLETE
    store = open_store(address)
    before = {name: store.read(name) for name in store.sizes()}
    assert call(*options) == 0
    store.system.rm_file(store.path("rows/000000-00003.jsonl"))
    for name, data in before.items():
        store.system.pipe_file(store.path(name), data)
    assert call(*options) == 0
    assert plain(read_all_rows(store)) == whole


def test_a_late_worker_with_a_part_of_a_shard_replaces_no_tar_file(call, whole, address):
    assert call("--n", N, "--shard-samples", 3, "--output", address) == 0
    store = open_store(address)
    late = TarSet(store, json.loads(store.read("run.json"))["config"], 3)
    image, label = np.zeros((8, 8, 3), np.uint8), np.zeros((8, 8), np.uint8)
    late.commit(Shard(0, range(3)), [encode_sample(1, image, label, {})])
    assert committed(store) == {0: 3, 1: 2}
    assert plain(read_all_rows(store)) == whole
    for row in read_all_rows(store):
        member = find_member(row["image_file_name"])
        data = store.read(member.shard, member.start, member.num_bytes)
        assert files.sha256(data) == row["image_sha256"]


def test_foreign_rows_are_one_line(call, address):
    options = ("--n", N, "--shard-samples", 3, "--output", address)
    assert call(*options) == 0
    store = open_store(address)
    store.system.rm_file(store.path("rows/000000-00003.jsonl"))
    row = b'{"id": "abc", "image_file_name": "shards/000000.tar/512-5/a.png"}\n'
    store.system.pipe_file(store.path("rows/000000-00001.jsonl"), row)
    with pytest.raises(UserError, match="000000-00001.jsonl: holds a broken row"):
        call(*options)


def fail_sample(encode, bad: int):
    """Return `encode` as if sample `bad` had come out unusable."""

    def encode_or_fail(index, image, label, row):
        if index == bad:
            return encode(index, None, label, row | {"error": "constant"})
        return encode(index, image, label, row)

    return encode_or_fail


def test_another_run_or_set_is_refused(call, address):
    assert call("--n", 1, "--output", address) == 0
    with pytest.raises(UserError, match=r"holds another run \(seed: 0 -> 1\); choose another"):
        call("--n", 1, "--seed", 1, "--output", address)
    with pytest.raises(UserError, match=r"holds another run \(shard_samples: 250 -> 9\)"):
        call("--n", 1, "--shard-samples", 9, "--output", address)
    open_store(address).system.pipe_file("/bucket/other/file.txt", b"x")
    with pytest.raises(UserError, match="holds file.txt and has no run.json; choose another"):
        call("--n", 1, "--output", "memory://bucket/other")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--shard", "4/4"), "--shard 4/4: must be i/n with i from 0 to n - 1"),
        (("--shard", "0/2", "--ray", "auto"), "--shard 0/2: with --ray auto the cluster divides"),
        (("--ray-workers", "2"), "--ray-workers: is for --ray"),
        (("--output", "file:///data/set"), "is on this machine; write /data/set"),
        (("--output", "nowhere://bucket/set"), "nowhere://bucket/set: .*use s3://"),
    ],
)
def test_settings_that_exclude_each_other(call, tmp_path, options, message):
    with pytest.raises(UserError, match=message) as caught:
        call("--n", 2, "--output", tmp_path / "set", *options)
    assert "\n" not in str(caught.value)


def test_dry_run_tells_of_the_shard(call, address, tmp_path, capsys):
    assert call("--n", N, "--shard", "1/2", "--output", tmp_path / "set", "--dry-run") == 0
    assert f"2 are missing in {tmp_path / 'set'}, in shard 1/2" in capsys.readouterr().out
    assert call("--n", N, "--output", address, "--dry-run") == 0
    assert f"5 are missing in {address}\n" in capsys.readouterr().out
    assert not open_store(address).sizes()
