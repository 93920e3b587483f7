"""`--precision auto`: measured once per output folder, recorded, followed by all workers."""

import errno
import itertools
import json
import os
import sys
import threading
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from generation import precision, run
from generation.sampler import precision as measuring
from generation.sampler.denoiser import Denoiser
from generation.sampler.networks import load_networks
from generation.sampler.sampler import Sampler
from generation.samples import SampleSpec
from generation.street_pipeline import StreetPipeline
from pipeline.errors import UserError


def choose(name: str):
    """Return a measurement that finds `name` faster."""
    return lambda *_: {"precision": name, "seconds": {}}


def refuse(*_: Any) -> dict:
    raise AssertionError("measured again")


@pytest.fixture
def generate(flags, tmp_path: Path, monkeypatch):
    """A function that generates n samples with --precision."""

    def call(n: int, name: str = "auto") -> dict:
        options = [*flags, "--n", str(n), "--precision", name, "--output", str(tmp_path / "out")]
        monkeypatch.setattr(sys, "argv", ["run.py", *options])
        assert not run.main()
        return json.loads((tmp_path / "out" / "run.json").read_text())["config"]

    return call


def test_the_first_start_measures_and_all_others_follow(generate, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(measuring, "measure_precision", choose("bf16"))
    assert generate(1)["precision"] == "bf16"
    record = tmp_path / "out" / "precision.json"
    assert json.loads(record.read_text())["precision"] == "bf16"
    monkeypatch.setattr(measuring, "measure_precision", refuse)
    assert generate(2)["precision"] == "bf16"
    assert generate(2, "bf16")["precision"] == "bf16"  # the same run, named
    record.unlink()
    assert generate(3)["precision"] == "bf16"  # run.json states it, too
    with pytest.raises(UserError, match="precision: 'bf16' -> 'fp32'|precision: bf16 -> fp32"):
        generate(3, "fp32")


def test_of_several_first_processes_one_decides(tmp_path) -> None:
    def measure_late() -> dict:
        assert precision.settle(tmp_path, choose("fp32")) == "fp32"  # another was faster
        return {"precision": "bf16"}

    assert precision.settle(tmp_path, measure_late) == "fp32"
    assert precision.settle(tmp_path, refuse) == "fp32"
    assert [path.name for path in tmp_path.iterdir()] == ["precision.json"]


def refuse_links(*_: Any) -> None:
    raise OSError(errno.ENOTSUP, "no hard links here")


def test_one_decides_where_there_are_no_hard_links(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(os, "link", refuse_links)
    test_of_several_first_processes_one_decides(tmp_path)


def test_a_record_that_is_being_written_is_waited_for(tmp_path) -> None:
    record = tmp_path / "precision.json"
    record.touch()
    writer = threading.Timer(0.3, record.write_text, ['{"precision": "bf16"}'])
    writer.start()
    assert precision.settle(tmp_path, refuse) == "bf16"
    writer.join()


def test_a_damaged_record_is_named(tmp_path) -> None:
    (tmp_path / "precision.json").write_text('{"precision": "fp8"}')
    with pytest.raises(UserError, match="precision.json: states no precision .*delete it"):
        precision.settle(tmp_path, refuse)


@pytest.mark.parametrize(
    "change", [{"shard": "0/2"}, {"ray": "local"}, {"output": "s3://bucket/set"}]
)
def test_without_a_folder_in_common_the_precision_must_be_named(tiny_config, change) -> None:
    changed = {name: Path(v) if name == "output" else v for name, v in change.items()}
    with pytest.raises(UserError, match="--precision auto: .*bf16 or fp32"):
        replace(tiny_config, precision="auto", **changed).check()
    replace(tiny_config, precision="auto").check()
    with pytest.raises(UserError, match="precision 'auto': .*fp32 or bf16"):
        StreetPipeline(replace(tiny_config, precision="auto"))


@pytest.mark.parametrize(("fp32", "bf16", "chosen"), [(3, 2, "bf16"), (2, 3, "fp32"),
                                                      (2.1, 2, "fp32")])  # fmt: skip
def test_bf16_must_be_clearly_faster(tiny_config, fp32, bf16, chosen) -> None:
    """Real networks of both precisions, and a clock that says what a call took."""
    repeats = measuring.REPEATS
    steps = [0.0, fp32] * repeats + [0.0, bf16] * repeats  # start and end of one, then of the other
    clock = itertools.accumulate(steps).__next__
    found = measuring.measure_precision(tiny_config, clock=clock)
    assert found["precision"] == chosen
    assert found["seconds"] == pytest.approx({"fp32": fp32, "bf16": bf16})
    assert found["device"] == "cpu"


@pytest.mark.parametrize(
    "change",
    [
        {"tile_batch": 4},  # nine tiles in three calls of three
        {"tile_batch": 4, "image_batch": 2},  # calls of four, the last one padded
        {"tile_batch": 2, "guidance_scale": 1.0},
        {"fusion": "none", "base_pass_scale": 1.0, "tile_px": (32, 64), "stride_px": (32, 64)},
    ],
)
def test_calls_have_the_shape_of_the_run(tiny_config, change, make_label, monkeypatch) -> None:
    """That of the last call of a sampler with the same settings."""
    config = replace(tiny_config, guidance_interval=(0.0, 1.0), **change)
    shapes = []
    call = Denoiser.__call__

    def keep(denoiser, tiles, step, embeddings, rows, corners_px=()):
        parts = (tiles, *embeddings)
        shapes.append(([tuple(part.shape) for part in parts], len(rows)))
        return call(denoiser, tiles, step, embeddings, rows, corners_px)

    monkeypatch.setattr(Denoiser, "__call__", keep)
    measuring.measure_precision(config)
    measured = {str(shape) for shape in shapes}
    shapes.clear()
    sampler = Sampler(load_networks(config, torch.device("cpu")), config)
    specs = [SampleSpec(make_label(32, 64, i), "road", i) for i in range(config.image_batch)]
    sampler.generate_all(specs)
    assert measured == {str(shapes[-1])}


def test_networks_of_one_precision_are_loaded_at_a_time(tiny_config, monkeypatch) -> None:
    loaded = []

    def load(*arguments):
        assert all(reference() is None for reference in loaded)
        networks = load_networks(*arguments)
        loaded.append(weakref.ref(networks.denoiser.unet))
        return networks

    monkeypatch.setattr(measuring, "load_networks", load)
    measuring.measure_precision(tiny_config)
    assert len(loaded) == 2


def test_without_memory_for_fp32_bf16_is_chosen(tiny_config, monkeypatch) -> None:
    def load(config, device):
        if config.precision == "fp32":
            raise torch.OutOfMemoryError("CUDA out of memory")
        return load_networks(config, device)

    monkeypatch.setattr(measuring, "load_networks", load)
    found = measuring.measure_precision(tiny_config)
    assert found["precision"] == "bf16" and found["seconds"]["fp32"] is None
    assert found["seconds"]["bf16"] > 0
