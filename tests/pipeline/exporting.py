"""What tests of pipeline/export.py share."""

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pipeline import export, labels
from pipeline.dataset import Sample, open_dataset
from pipeline.images import read_image

NUM_SAMPLES = 5


@pytest.fixture(scope="module")
def data(tiny_dataset: Callable[..., Path]) -> Path:
    """Five labelled samples."""
    return tiny_dataset(NUM_SAMPLES, 24, 40, conditions=("fog", "rain"))


@pytest.fixture
def samples(data: Path) -> list[Sample]:
    """The samples of `data`."""
    return open_dataset(data, labelled=True)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, data: Path, tmp_path: Path) -> Callable[..., Path]:
    """A function that exports `data` in this process and returns the output folder."""

    def call(kind: str, *flags: object, output: Path = tmp_path / "out", data: Path = data) -> Path:
        if kind == "parquet":
            pytest.importorskip("datasets")
        argv = ["--data", data, "--output", output, "--format", kind, "--workers", 1, *flags]
        monkeypatch.setattr(sys, "argv", ["export.py", *map(str, argv)])
        assert export.main() is None
        return output

    return call


def assert_same(sample: Sample, image: object, label: object) -> None:
    """Check pixels read elsewhere against the sample."""
    assert np.array_equal(np.asarray(image), read_image(sample.image))
    assert np.array_equal(np.asarray(label), labels.read_label(sample.label))
