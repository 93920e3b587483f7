"""The real 8-bit AdamW: a run that was interrupted ends in the same bits."""

from pathlib import Path

import pytest
import torch

from pipeline import runs


def make():
    bitsandbytes = pytest.importorskip("bitsandbytes")
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(96, 96), torch.nn.Linear(96, 4))
    return model, bitsandbytes.optim.AdamW8bit(model.parameters(), lr=1e-2, weight_decay=0.01)


def train(model, optimizer, first: int, last: int) -> None:
    for step in range(first, last):
        data = torch.randn(8, 96, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        model(data).square().mean().backward()
        optimizer.step()


def test_checkpoints_of_the_8_bit_optimizer_are_exact(tmp_path: Path) -> None:
    straight, optimizer = make()
    train(straight, optimizer, 0, 6)
    kinds = {v.dtype for s in optimizer.state.values() for v in s.values() if torch.is_tensor(v)}
    assert torch.uint8 in kinds  # it did keep 8 bits
    stopped, optimizer = make()
    train(stopped, optimizer, 0, 3)
    runs.save_checkpoint(tmp_path, 3, {"model": stopped}, optimizer)
    resumed, optimizer = make()
    assert runs.load_checkpoint(tmp_path, {"model": resumed}, optimizer) == 3
    train(resumed, optimizer, 3, 6)
    pairs = zip(straight.state_dict().values(), resumed.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
