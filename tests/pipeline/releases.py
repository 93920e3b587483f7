"""What tests of releases share: a data set, the programs as functions, contents compared."""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline import download, release
from pipeline.dataset import open_dataset, read_pair

ALL = ("webdataset", "parquet", "coco_panoptic", "fiftyone")
NUM_SAMPLES = 12


@pytest.fixture(scope="module")
def data(tiny_dataset: Callable[..., Path]) -> Path:
    """Twelve labelled samples of three conditions."""
    return tiny_dataset(NUM_SAMPLES, 24, 40, conditions=("fog", "rain", "night"))


@pytest.fixture
def pack(monkeypatch: pytest.MonkeyPatch, data: Path, tmp_path: Path) -> Callable[..., Path]:
    """A function that releases a folder in this process, five samples to a shard."""

    def call(*flags: object, data: object = data, output: object = tmp_path / "set") -> Any:
        argv = [data, "--output", output, "--shard-samples", 5, "--workers", 1, *flags]
        argv += ["--work", tmp_path / "work"]
        monkeypatch.setattr(sys, "argv", ["release.py", *map(str, argv)])
        assert release.main() is None
        return output

    return call


@pytest.fixture
def fetch(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Path]:
    """A function that downloads a release in this process."""

    def call(address: object, *flags: object, output: Path = tmp_path / "back") -> Path:
        argv = ["--release", address, "--output", output, *flags]
        monkeypatch.setattr(sys, "argv", ["download.py", *map(str, argv)])
        assert download.main() == 0
        return output

    return call


def content(folder: Path) -> dict[str, bytes]:
    """Return the bytes of every file below a folder, but for the proof that readers leave."""
    paths = (p for p in folder.rglob("*") if p.is_file() and p.name != "checked.json")
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(paths)}


def assert_same_samples(release_folder: Path | str, data: Path) -> None:
    """Check that a release gives the samples of the folder that it was made of."""
    found, wanted = (open_dataset(f, labelled=True) for f in (release_folder, data))
    assert [s.id for s in found] == [s.id for s in wanted]
    for one, other in zip(found, wanted, strict=True):
        for a, b in zip(read_pair(one), read_pair(other), strict=True):
            assert np.array_equal(a, b)
        for key in ("condition", "prompt", "image_sha256", "label_sha256", "class_pixels"):
            assert one.row[key] == other.row[key]


def stop_at(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """Let the process be interrupted at the n-th file that takes its name."""
    replace, calls = os.replace, []

    def stopping(source: Path, target: Path) -> None:
        calls.append(target)
        if len(calls) == number:
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(os, "replace", stopping)
