"""The real 8-bit AdamW: a run that was interrupted ends in the same bits."""

import pytest
import torch


def test_checkpoints_of_the_8_bit_optimizer_are_exact(resume_exactly) -> None:
    bitsandbytes = pytest.importorskip("bitsandbytes")

    def make():
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(96, 96), torch.nn.Linear(96, 4))
        return model, bitsandbytes.optim.AdamW8bit(model.parameters(), lr=1e-2, weight_decay=0.01)

    optimizer = resume_exactly(make)
    kinds = {v.dtype for s in optimizer.state.values() for v in s.values() if torch.is_tensor(v)}
    assert torch.uint8 in kinds  # it did keep 8 bits
