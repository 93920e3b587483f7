"""xformers as it is: it attends where it has a kernel, and is refused in one line elsewhere."""

import pytest
import torch

from generation.sampler.attention import native_attention
from generation.sampler.networks import find_attention
from pipeline.errors import UserError


def test_real_xformers():
    pytest.importorskip("xformers.ops", reason="xformers is not installed; see make test-extras")
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match="--attention xformers: .*use --attention native"):
            find_attention("xformers", torch.device("cpu"), torch.float32)
        return
    attend = find_attention("xformers", torch.device("cuda"), torch.bfloat16)
    parts = torch.randn(3, 2, 64, 4, 40, device="cuda", dtype=torch.bfloat16)
    expected = native_attention(*parts)
    assert torch.allclose(attend(*parts).float(), expected.float(), atol=2e-2)
