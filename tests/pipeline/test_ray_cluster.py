"""Actors on a real Ray cluster of this machine: lost ones, ones that cannot start, their folder."""

import os
from pathlib import Path

import pytest

from pipeline.errors import UserError
from pipeline.ray_cluster import Actor, Cluster, Demand, Job
from pipeline.stopping import StopRequest

ray = pytest.importorskip("ray", reason="ray is not installed; pip install -e '.[ray]'")
LOCAL = Demand("local")


@pytest.fixture(scope="module", autouse=True)
def cluster():
    ray.init(address="local", num_cpus=2, log_to_driver=False, include_dashboard=False)
    yield
    ray.shutdown()


def run(actor: type[Actor], arguments: tuple, jobs: list[Job], method: str) -> dict[int, object]:
    """Return what the actors return for each job."""
    results: dict[int, object] = {}
    made = Cluster(LOCAL, actor, arguments)
    try:
        made.run(method, jobs, lambda job, result: results.update({job.key: result}), StopRequest())
    finally:
        made.close()
    return results


def squares() -> type[Actor]:
    """An actor that goes to the workers by value: they cannot import the tests."""

    class Squares(Actor):
        def __init__(self, deaths: Path, most: int) -> None:
            self.deaths, self.most = deaths, most

        def square(self, number: int) -> int:
            """Return the square; for 3, die as often as asked."""
            if number == 3 and len(list(self.deaths.iterdir())) < self.most:
                (self.deaths / str(os.getpid())).touch()
                os._exit(1)
            return number**2

        def folder(self) -> str:
            return os.getcwd()

    return Squares


def test_job_of_a_lost_actor_is_done_by_another(tmp_path, capfd):
    jobs = [Job(number, 1, (number,)) for number in range(8)]
    found = run(squares(), (tmp_path, 2), jobs, "square")
    assert found == {number: number**2 for number in range(8)}
    assert len(list(tmp_path.iterdir())) == 2, "two actors died"
    assert capfd.readouterr().err.count("an actor was lost; another one takes its samples") == 2


def test_job_that_kills_every_actor_is_named(tmp_path):
    with pytest.raises(UserError, match="--ray local: 5 actors were lost over the same samples"):
        run(squares(), (tmp_path, 100), [Job(3, 1, (3,))], "square")


def test_relative_paths_of_the_driver_hold(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run(squares(), (tmp_path, 0), [Job(0, 1, ())], "folder") == {0: str(tmp_path)}


def test_actor_that_cannot_start_ends_the_run():
    """As where a node lacks the models: Ray would not start it again."""

    class Failing(Actor):
        def __init__(self) -> None:
            raise FileNotFoundError("/models/base: no such folder")

    with pytest.raises(UserError, match="an actor cannot start .*/models/base: no such folder"):
        run(Failing, (), [Job(0, 1, ())], "ready")


def test_errors_of_the_user_come_back_as_such():
    class Picky(Actor):
        def make(self) -> None:
            raise UserError("image.png: is damaged")

    with pytest.raises(UserError, match=r"^image.png: is damaged$"):
        run(Picky, (), [Job(0, 1, ())], "make")
