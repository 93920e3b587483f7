"""Kills, crashes, full disks, several processes: nothing lost, twice, broken or left over."""

import errno
import importlib.util
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from generation import progress, worker
from generation import writer as writing
from generation.progress import Progress
from generation.samples import FinishedSample, SampleSpec
from generation.work_queue import WorkQueue
from generation.writer import WriterThread
from pipeline import files
from pipeline.claims import LEASE_S, Claims
from pipeline.dataset_writer import DatasetWriter
from pipeline.errors import UserError
from pipeline.metadata import read_rows
from pipeline.metadata_index import MetadataIndex
from pipeline.rows import sample_id

SCRIPT = Path(__file__).with_name("crash_trials.py")
spec = importlib.util.spec_from_file_location("crash_trials", SCRIPT)
trials = importlib.util.module_from_spec(spec)
spec.loader.exec_module(trials)


@pytest.fixture
def figures(run_program):
    """A function that runs crash_trials.py and returns its figures."""

    def run(*arguments: object, before: tuple[str, ...] = ()) -> dict:
        command = [*before, sys.executable, str(SCRIPT), *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=1200)
        assert done.returncode == 0, done.stderr[-2000:]
        return json.loads(done.stdout)

    return run


def test_killed_at_random_moments(figures):
    result = figures("kills", 20)
    assert result["landed"] == 20 and not result["faults"]


@pytest.mark.slow
def test_killed_two_hundred_times(figures):
    result = figures("kills", 200)
    assert result["landed"] == 200 and result["midway"] > 50 and not result["faults"]


def test_dying_at_each_call_that_changes_a_file(figures):
    result = figures("crash_points")
    assert result["points"] > 50 and result["last_code"] == trials.DONE and not result["faults"]


@pytest.mark.parametrize("name", ["ENOSPC", pytest.param("EIO", marks=pytest.mark.slow)])
def test_each_write_fails_for_good(figures, name):
    result = figures(name)
    assert result["points"] > 20 and result["codes"]["2"] > 15 and not result["faults"]


def test_each_write_fails_once_for_a_passing_reason(figures):
    result = figures("EIO", 1)
    done = result["codes"][str(trials.DONE)]
    assert done > 10 and not result["faults"]  # before the loop nothing is repeated


def test_full_disk_at_several_levels(figures):
    isolated = ("unshare", "-rm")
    try:
        subprocess.run([*isolated, "true"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("mounting a small disk is not permitted")
    result = figures("full_disks", 10, before=isolated)
    assert result["codes"] == {"2": 10} and not result["faults"]
    assert "MB are still needed; free some space" in result["line"][0]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_full_disk_is_one_line_with_path_and_bytes(number):
    with pytest.raises(UserError) as caught, files.storage_errors(Path("out"), lambda: 3_000_000):
        raise OSError(number, os.strerror(number), "out/a.png")
    assert str(caught.value).startswith("out/a.png: cannot be written")
    assert "3.0 MB" in str(caught.value) and "\n" not in str(caught.value)


def test_a_row_is_written_after_its_files_are_on_the_disk(tmp_path, monkeypatch):
    """Record the calls: every name in a row was synced, renamed, and its folder synced before."""
    events: list[tuple[str, str]] = []

    def record(name: str) -> None:
        original = getattr(os, name)

        def changed(*arguments):
            target = arguments[-1]
            if isinstance(arguments[0], int):
                target = os.readlink(f"/proc/self/fd/{arguments[0]}")
            events.append((name, str(target)))
            return original(*arguments)

        monkeypatch.setattr(os, name, changed)

    for name in ("write", "fsync", "replace"):
        record(name)
    trials.generate(tmp_path / "set", 4)
    monkeypatch.undo()
    rows = tmp_path / "set" / "metadata-000.jsonl"
    order = [i for i, event in enumerate(events) if event == ("write", str(rows))]
    assert order and all(("fsync", str(rows)) in events[i:] for i in order)
    seen = 0
    for row in read_rows(rows.parent).values():
        for kind in ("label", "image") if row["status"] == "ok" else ():
            path = rows.parent / row[f"{kind}_file_name"]
            renamed = events.index(("replace", str(path)))
            temporary = [f"{path}{files.TEMPORARY_MARK}" in e[1] for e in events[:renamed]]
            assert "fsync" in [e[0] for e, t in zip(events, temporary, strict=False) if t]
            synced = renamed + events[renamed:].index(("fsync", str(path.parent)))
            assert synced < max(order)
            seen += 1
    assert seen == 6


def test_stop_signal_drops_a_sample_that_takes_long(tmp_path):
    def stop() -> int:
        worker.GRACE_S = 0.3
        trials.DELAYS[4] = 60
        return trials.generate(tmp_path / "set", 8)

    child = trials.forked(stop)
    while not (tmp_path / "set/claims/00000004").exists() or len(read_rows(tmp_path / "set")) < 3:
        time.sleep(0.02)
    os.kill(child, signal.SIGTERM)
    assert trials.finish(child) == 128 + signal.SIGTERM
    assert not {4} & set(map(int, read_rows(tmp_path / "set")))  # it was not waited for
    assert not (tmp_path / "set" / "claims").exists()
    assert trials.generate(tmp_path / "set", 8) == trials.DONE
    assert not trials.faults(tmp_path / "set", 8)


def test_hung_process_does_not_block_the_others(tmp_path):
    folder = tmp_path / "set"
    hung = trials.forked(lambda: trials.generate(folder, 12, 0.05))
    while len(read_rows(folder) if folder.exists() else {}) < 2:
        time.sleep(0.01)
    os.kill(hung, signal.SIGSTOP)
    assert trials.finish(trials.forked(lambda: trials.generate(folder, 12))) in (0, trials.DONE)
    assert 12 - 6 <= len(read_rows(folder)) < 12  # all but what it held
    assert (folder / "claims" / "metadata-000").exists()  # is not taken from it
    status = json.loads((folder / "status.json").read_text())
    assert hung in [process["pid"] for process in status["processes"]]
    os.kill(hung, signal.SIGCONT)
    assert trials.finish(hung) in (0, trials.DONE)
    assert not trials.faults(folder, 12)


def test_claims_that_never_hold_do_no_harm(tmp_path):
    """Two processes make every sample, as after wrongly expired leases: the set is the same."""

    taking = Claims.take

    def take_always(self: Claims, name: str) -> bool:
        return taking(self, name) or name.isdecimal()

    def careless() -> int:
        Claims.take = take_always
        return trials.generate(tmp_path / "set", 8, 0.01)

    children = [trials.forked(careless) for _ in range(3)]
    assert {trials.finish(child) for child in children} <= {0, trials.DONE}
    found = trials.faults(tmp_path / "set", 8)
    assert set(found) <= {"duplicate"}


@pytest.mark.parametrize("_round", range(4))
def test_dead_claim_has_one_new_owner(tmp_path, _round):
    assert trials.finish(trials.forked(lambda: Claims(tmp_path).__enter__().take("1") - 1)) == 0
    moment = time.time() + 0.3

    def race() -> int:
        claims = Claims(tmp_path).__enter__()
        time.sleep(max(moment - time.time(), 0.0))
        won = claims.take_over("1")
        (tmp_path / f"tried-{os.getpid()}").touch()
        deadline = time.monotonic() + 60
        while len(list(tmp_path.glob("tried-*"))) < 4 and time.monotonic() < deadline:
            time.sleep(0.05)  # whoever died would be followed
        return int(won)

    children = [trials.forked(race) for _ in range(4)]
    assert sum(trials.finish(child) for child in children) == 1


def test_claim_of_another_machine_ends_with_its_lease(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(files, "host_id", lambda: "elsewhere")
        far = Claims(tmp_path).__enter__()
        assert far.take("00000001") and far.take_number("metadata") == 0
        far._ending.set()
    with Claims(tmp_path) as claims:
        assert not claims.take_over("00000001")
        old = time.time() - LEASE_S - 60
        os.utime(tmp_path / "claims" / "00000001", (old, old))
        assert claims.take_over("00000001")
        assert claims.take_number("metadata") == 1  # its death is not certain
        far.release("00000001")  # it wakes up
        assert (tmp_path / "claims" / "00000001").exists()
        for path in (tmp_path / "claims").glob("*"):
            if path != claims._own:
                os.utime(path, (1, 1))
        assert claims.end(complete=True)
    assert not (tmp_path / "claims").exists()


def test_metadata_files_are_used_again(tmp_path):
    for n in (2, 4, 6):
        code = trials.finish(trials.forked(lambda n=n: trials.generate(tmp_path / "set", n)))
        assert code == trials.DONE
    assert [p.name for p in (tmp_path / "set").glob("metadata*")] == ["metadata-000.jsonl"]


def test_writer_error_stops_the_loop_and_keeps_what_came_before(tmp_path, monkeypatch):
    writer, kept = DatasetWriter(tmp_path / "set", config={}), []
    monkeypatch.setattr(files, "PAUSES_S", ())
    with pytest.raises(OSError, match="full"), WriterThread(writer, kept.extend) as saver:
        saver.put(trials.draw(0))
        while not kept:
            time.sleep(0.01)

        def full(samples):
            raise OSError(errno.ENOSPC, "full")

        monkeypatch.setattr(writer, "write_all", full)
        for _ in range(100):
            saver.put(trials.draw(2))
            time.sleep(0.01)
    assert (
        [sample.spec.index for sample in kept]
        == [0]
        == [int(key) for key in read_rows(writer.folder)]
    )


def test_drawing_waits_when_too_much_is_unwritten(tmp_path, monkeypatch):
    writer, gate, at_work = DatasetWriter(tmp_path / "set", config={}), threading.Event(), []
    write_all = writer.write_all

    def slow(samples) -> None:
        at_work.append(len(samples))
        gate.wait()
        write_all(samples)

    monkeypatch.setattr(writer, "write_all", slow)
    many, put = 3 * writing.QUEUE, []
    with WriterThread(writer, lambda batch: None) as saver:

        def draw() -> None:
            for index in range(many):
                spec = SampleSpec(np.zeros((8, 8), np.uint8), "", 0, index=index)
                saver.put(FinishedSample(spec, np.zeros((8, 8, 3), np.uint8)))
                put.append(index)

        drawing = threading.Thread(target=draw)
        drawing.start()
        while not at_work or len(put) < at_work[0] + writing.QUEUE:
            time.sleep(0.01)  # until the queue is full and the writer holds the first of them
        drawing.join(0.2)
        assert drawing.is_alive() and len(put) == at_work[0] + writing.QUEUE < many
        gate.set()
        drawing.join()
    assert len(read_rows(writer.folder)) == many


def test_progress_counts_all_processes(tmp_path, capsys):
    first, second = (DatasetWriter(tmp_path, config={}, process_index=i) for i in (0, 1))
    rows = MetadataIndex(tmp_path, 4)
    with Claims(tmp_path) as claims:
        assert claims.take_number("metadata") == 0
        state = Progress(rows, claims, show=True)
        first.write_all([(0, None, None, {"error": "constant"})])
        for index, writer in ((1, first), (2, second), (9, second)):
            drawn = trials.draw(9)
            writer.write(index, drawn.image, drawn.spec.label, {})
        state.update(last=True)
    assert "2/4 samples (50.0 %), 1 failed" in capsys.readouterr().err
    status = json.loads((tmp_path / progress.STATUS_NAME).read_text())
    assert (status["ok"], status["failed"], status["missing"], status["n"]) == (2, 1, 2, 4)
    assert status["samples_per_s"] > 0
    assert status["processes"][0]["pid"] == os.getpid()
    assert status["processes"][0]["last_sample"] == 1


def test_claims_cost_little(tmp_path):
    with Claims(tmp_path) as claims:
        rows = MetadataIndex(tmp_path, 64)
        started = time.process_time()
        for (index,) in WorkQueue(rows, claims):
            rows.ok.add(index)
            claims.release(sample_id(index))
        assert time.process_time() - started < 0.1  # 8 ms on an idle machine
    assert len(rows.ok) == 64


def test_groups_are_full_while_enough_is_missing(tmp_path):
    with Claims(tmp_path) as claims:
        rows, seen = MetadataIndex(tmp_path, 8), []
        for group in WorkQueue(rows, claims, 3):
            rows.ok.update(group)
            seen.append(group)
    assert seen == [[0, 1, 2], [3, 4, 5], [6, 7]]


@pytest.mark.parametrize(
    "text",
    ["[1]", "null", "7", "[" * 100_000, '{"pid": "x"}', '{"pid": -1, "id": "00000000"}',
     '{"host_id": "HERE"}', '{"host_id": "HERE", "pid": true, "id": "00000000"}',
     '{"host_id": "HERE", "pid": 1e400}', '{"host_id": "HERE", "pid": 2147483646, "id": "../a"}'],
)  # fmt: skip
def test_a_claim_that_names_no_process_counts_as_of_an_unknown_one(tmp_path, text):
    (tmp_path / "claims").mkdir()
    path = tmp_path / "claims" / "metadata-001"
    path.write_text(text.replace("HERE", files.host_id()))
    with Claims(tmp_path) as claims:
        assert not claims.take_over("metadata-001")
        assert claims.living("metadata") == [("metadata-001", {})]
        old = time.time() - LEASE_S - 60
        os.utime(path, (old, old))
        assert claims.take_over("metadata-001")
