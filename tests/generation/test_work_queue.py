"""Many workers share a list of missing samples: each is made once, and little is asked."""

from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest

from benchmarks.claims_model import meeting_operations, play
from benchmarks.scale_model import Inputs
from generation.work_queue import WorkQueue, start_share
from generation.worker import work_until_done
from pipeline import files, metadata_index
from pipeline.claims import Claims
from pipeline.dataset_writer import DatasetWriter, file_name
from pipeline.metadata_index import MetadataIndex
from pipeline.rows import sample_id
from tests.generation import crash_trials as trials


def test_workers_begin_at_places_that_are_spread_evenly() -> None:
    assert [start_share(k) for k in range(8)] == [
        0,
        1 / 2,
        1 / 4,
        3 / 4,
        1 / 8,
        5 / 8,
        3 / 8,
        7 / 8,
    ]


@pytest.mark.parametrize(
    ("workers", "images"), [(1, 50), (3, 40), (8, 400), (64, 2000), (200, 900)]
)
def test_each_sample_is_made_once(workers: int, images: int) -> None:
    found = play(workers, images, image_s=1.3)
    assert found["made"] == found["finished"] == images


@pytest.mark.parametrize("workers", [64, 128])
def test_workers_that_meet_ask_as_much_as_the_model_says(workers: int) -> None:
    """Reading the rows of all after each image would be 200 operations per pair and more."""
    images = 100 * workers
    found = play(workers, images, image_s=1.3)
    per_pair = meeting_operations(found, workers, images)
    assert per_pair == pytest.approx(Inputs().meeting_operations, rel=0.2)


@pytest.fixture
def many_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows are read again after a long time, as in a run of many workers."""
    monkeypatch.setattr(metadata_index, "FEW_FILES", 0)
    monkeypatch.setattr(metadata_index, "FILE_INTERVAL_S", 1e6)


def write(writer: DatasetWriter, index: int) -> None:
    sample = trials.draw(index if index != trials.SURPRISE else 7)
    writer.write(index, sample.image, sample.spec.label, {})


def test_a_finished_sample_is_seen_before_its_row_is_read(tmp_path, many_files) -> None:
    writer, rows = DatasetWriter(tmp_path, config={}), MetadataIndex(tmp_path, 6)
    write(writer, 0)
    rows.update()
    with Claims(tmp_path) as claims:
        queue = WorkQueue(rows, claims)
        for index in (1, 2, 4):  # by another process, which has given up its claims
            write(writer, index)
        rows.update(may_wait=True)
        assert rows.ok == {0}
        assert sorted(index for group in queue for index in group) == [3, 5]
        assert rows.ok == {0, 1, 2, 4} and claims.held == {sample_id(3), sample_id(5)}


def test_a_file_without_a_row_is_made_again_at_the_end(tmp_path, many_files) -> None:
    """Its process died between files and row."""
    writer, rows = DatasetWriter(tmp_path, config={}), MetadataIndex(tmp_path, 4)
    write(writer, 3)
    rows.update()
    left = tmp_path / file_name("image", 1)
    left.parent.mkdir(parents=True, exist_ok=True)
    left.write_bytes(b"cut")
    with Claims(tmp_path) as claims:
        made = [index for group in WorkQueue(rows, claims) for index in group]
    assert sorted(made) == [0, 1, 2] and made[-1] == 1


def claims_of(machine: str, folder: Path) -> Claims:
    """Return claims as of a process of another machine: those of one process end each other."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "host_id", lambda: machine)
        return Claims(folder)


def test_a_failed_sample_is_not_tried_again_before_its_row_is_read(tmp_path, many_files) -> None:
    """Its worker has ended, and has left a row and no file."""
    writer, rows = DatasetWriter(tmp_path, config={}), MetadataIndex(tmp_path, 4)
    write(writer, 0)
    rows.update()
    others = MetadataIndex(tmp_path, 4)
    others.update()

    def make(indices: list[int]) -> list[SimpleNamespace]:
        return [SimpleNamespace(result=partial(trials.draw, index)) for index in indices]

    with claims_of("a", tmp_path) as claims:
        queue = WorkQueue(rows, claims)
        with claims_of("b", tmp_path) as ended:
            assert not work_until_done(make, writer, others, ended, show_progress=False)
            assert not ended.end(complete=True)
        rows.update(may_wait=True)
        assert rows.ok == {0}
        assert not list(queue)
        assert rows.ok == {0, 2, 3} and rows.tried == {trials.SURPRISE}

        again = MetadataIndex(tmp_path, 4)  # a worker that starts now tries it again
        again.update()
        again.retry_failed()
        with claims_of("c", tmp_path) as late:
            assert list(WorkQueue(again, late)) == [[trials.SURPRISE]]
            late.keep(sample_id(trials.SURPRISE))
        assert claims.end(complete=True)
    assert not (tmp_path / "claims").exists()
