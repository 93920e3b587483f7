"""What the fine-tuning tests share: programs called in this process, and small settings."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file

SMALL = (
    "--crop.size-px", "32", "64", "--crop.scales", "0.5", "1.0", "--training.batch-size", "2",
    "--training.log-interval", "1", "--training.gradient-accumulation", "1", "--previews", "0",
    "--training.learning-rate", "1e-3",
)  # fmt: skip


@pytest.fixture
def call(monkeypatch, tiny_base) -> Callable[..., None]:
    """A function that runs `main` of a program in this process on the tiny base."""

    def run_main(module, *arguments: object) -> None:
        argv = ["program", "--base", tiny_base, *SMALL, *arguments]
        monkeypatch.setattr(sys, "argv", [str(a) for a in argv])
        assert not module.main()

    return run_main


@pytest.fixture(scope="session")
def same_weights() -> Callable[[Path, Path], bool]:
    """A function that compares two model folders bit for bit."""

    def same(a: Path, b: Path) -> bool:
        x, y = (load_file(f / "diffusion_pytorch_model.safetensors") for f in (a, b))
        return x.keys() == y.keys() and all(bool((x[k] == y[k]).all()) for k in x)

    return same
