"""What is refused with --ray before a cluster is asked: other workers, bad numbers."""

import dataclasses
import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from generation import ray_workers
from generation.settings import default_config
from pipeline.claims import Claims
from pipeline.errors import UserError
from pipeline.ray_cluster import Demand, check_demand


def claims_of_another(folder: Path) -> Claims:
    """Claims as those of a living process of another number."""
    claims = Claims(folder)
    claims._me["pid"] = os.getppid()
    return claims


def test_a_driver_refuses_a_folder_that_others_fill(tmp_path):
    config = dataclasses.replace(default_config("pocket"), output=tmp_path, ray="auto")
    with claims_of_another(tmp_path) as worker, Claims(tmp_path) as driver:
        worker.take_number("metadata")
        with pytest.raises(UserError, match="is filling it, and a run with --ray shares no"):
            ray_workers.fill_folder(config, SimpleNamespace(), SimpleNamespace(), driver)


def test_a_worker_refuses_the_folder_of_a_driver(tmp_path):
    with Claims(tmp_path) as worker, claims_of_another(tmp_path) as driver:
        ray_workers.require_no_driver(tmp_path, worker)
        driver.take_over(ray_workers.DRIVER)
        with pytest.raises(UserError, match="is filling it with --ray"):
            ray_workers.require_no_driver(tmp_path, worker)


@pytest.mark.parametrize(
    ("demand", "processes", "message"),
    [
        (Demand("", 2), "1", "--ray-workers: is for --ray"),
        (Demand("auto", -1), "1", "--ray-workers -1: must be between 0 and"),
        (Demand("auto"), "8", "--ray auto: the cluster divides the work; start one process, not 8"),
    ],
)
def test_bad_demands_are_refused(demand, processes, message, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", processes)
    with pytest.raises(UserError, match=message):
        check_demand(demand)


def test_a_job_that_an_actor_gets_twice_has_the_same_seeds():
    from generation.worker import SampleMaker

    given = []
    sampler = SimpleNamespace(
        start=lambda specs: specs,
        networks=SimpleNamespace(text=SimpleNamespace(truncates=lambda prompt: False)),
    )

    @dataclasses.dataclass(frozen=True)
    class Spec:
        prompt: str = ""
        metadata: dict = dataclasses.field(default_factory=dict)

    def read(item, attempt):
        given.append((item.index, attempt))
        return Spec()

    maker = SampleMaker(sampler, SimpleNamespace(read=read))
    items = [SimpleNamespace(index=3), SimpleNamespace(index=4)]
    maker.make(items)
    maker.make(items[:1])  # unusable, generated again
    maker.forget_attempts()
    maker.make(items)
    assert given == [(3, 0), (4, 0), (3, 1), (3, 0), (4, 0)]
