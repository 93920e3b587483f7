"""Reads weights of others: safetensors, or a pickle that is not executed."""

from pathlib import Path
from typing import Any

from pipeline.errors import UserError
from pipeline.reading import shortened

SHOWN = 3  # names in a message


def read_weights(path: Path) -> dict[str, Any]:
    """Return the tensors of a safetensors file, or of a pickle without executing it.

    Raises `UserError` for a damaged file, and for weights that are not finite.
    """
    found = _read(path)
    wrong = [name for name, tensor in found.items() if not _is_finite(tensor)]
    if wrong:
        more = f" and {len(wrong) - SHOWN} more" if len(wrong) > SHOWN else ""
        raise UserError(
            f"{path}: {', '.join(map(shortened, wrong[:SHOWN]))}{more}: not all numbers are "
            "finite, so the file is damaged or the training diverged; get the weights from their "
            "source again, or take an earlier checkpoint"
        )
    return found


def read_class_names(path: Path) -> list[str]:
    """Return the classes that a checkpoint of mmsegmentation names, in the order of its channels.

    They are as `plain_names` spells them; none where it names none, as in a file of safetensors.
    """
    from pipeline.torch_pickle import StateDict

    if path.suffix == ".safetensors":
        return []
    remarks = StateDict(path).remarks
    of_dataset = remarks.get("dataset_meta")
    names = of_dataset.get("classes") if isinstance(of_dataset, dict) else None
    names = names or remarks.get("CLASSES")  # of mmsegmentation 0.x
    return plain_names(names)


def plain_names(names: Any) -> list[str]:
    """Return names of classes in small letters with blanks for underscores; none without a list."""
    found = names if isinstance(names, list | tuple) else ()
    return [str(name).lower().replace("_", " ") for name in found]


def _is_finite(tensor: Any) -> bool:
    """Tell whether no number of a tensor is infinite or NaN."""
    if not tensor.is_floating_point() or tensor.sum().isfinite():  # a sum may overflow
        return True
    return bool(tensor.isfinite().all())


def _read(path: Path) -> dict[str, Any]:
    import torch
    from safetensors.torch import load_file

    from pipeline.torch_pickle import StateDict
    from pipeline.weight_files import read_header

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
