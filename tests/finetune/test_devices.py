"""What needs a GPU is refused without one, before any image is read."""

import importlib.util

import pytest

from finetune import start, unet
from pipeline.errors import UserError


@pytest.mark.parametrize(
    ("has_cuda", "kept_on_cpu", "reason"),
    [(False, "false", "this machine has none"), (True, "true", "ACCELERATE_USE_CPU keeps")],
)
def test_the_eight_bit_optimizer_needs_cuda(
    has_cuda, kept_on_cpu, reason, call, tiny_dataset, tmp_path, monkeypatch
):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda n: n == "bitsandbytes" or find(n))
    monkeypatch.setattr("torch.cuda.is_available", lambda: has_cuda)
    monkeypatch.setenv("ACCELERATE_USE_CPU", kept_on_cpu)
    monkeypatch.setattr(start, "check_dataset", lambda samples: pytest.fail("images are read"))
    wanted = rf"^--training.optimizer adamw_8bit: needs a CUDA GPU, and {reason}.*; use adamw$"
    with pytest.raises(UserError, match=wanted):
        call(
            unet, "--data", tiny_dataset(n=1), "--output", tmp_path / "run",
            "--training.optimizer", "adamw_8bit",
        )  # fmt: skip
    assert not (tmp_path / "run").exists()
