"""Reads tensors of others: safetensors, or a pickle that is not executed."""

from pathlib import Path
from typing import Any


def read_weights(path: Path) -> dict[str, Any]:
    """Return the tensors of a safetensors file, or of a pickle without executing it.

    Raises `UserError` for a damaged file.
    """
    import torch
    from safetensors.torch import load_file

    from pipeline.model_files import read_header
    from pipeline.torch_pickle import StateDict

    if path.suffix == ".safetensors":
        read_header(path)
        return load_file(path)
    dtypes = {
        "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
        "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8,
        "U8": torch.uint8, "BOOL": torch.bool,
    }  # fmt: skip
    state = StateDict(path)
    found = {}
    for name, stored in state.tensors.items():
        found[name] = torch.empty(stored.shape, dtype=dtypes[stored.dtype])
        if found[name].numel():  # torch.frombuffer takes no empty buffer
            data = bytearray(state.read(name).tobytes())
            found[name] = torch.frombuffer(data, dtype=dtypes[stored.dtype]).reshape(stored.shape)
    return found
