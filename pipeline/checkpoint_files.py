"""Checkpoint files are checked before any of their content reaches a network.

A checkpoint may be cut by a full disk or come from elsewhere. Plain ones are safetensors and JSON.
Sharded ones are written by torch's distributed checkpoints, whose index and some of whose values
are pickles: these are read here first by an unpickler that knows a few harmless classes alone.
"""

import io
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from pipeline.reading import read_bytes, read_json
from pipeline.weight_files import compare_tensors

DAMAGE = (
    OSError, SafetensorError, ValueError, KeyError, TypeError, AttributeError, IndexError,
    RuntimeError, EOFError, pickle.UnpicklingError,
)  # fmt: skip
HARMLESS = {
    "torch.distributed.checkpoint.metadata": {
        "Metadata", "TensorStorageMetadata", "TensorProperties", "BytesStorageMetadata",
        "ChunkStorageMetadata", "MetadataIndex", "StorageMeta", "_MEM_FORMAT_ENCODING",
    },
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo", "_StoragePrefix"},
    "torch": {"Size", "device"},
    "torch.serialization": {"_get_layout"},
    "collections": {"OrderedDict"},
    "pathlib": {"PosixPath", "PurePosixPath", "Path"},
}  # fmt: skip
LARGEST_INDEX = 512 << 20


def read_step(marker: Path) -> int:
    """Return the number of updates that a checkpoint's marker names, or raise `ValueError`."""
    step = read_json(marker, dict).get("step")
    if type(step) is not int or step < 1:
        raise ValueError(f"{marker.name} names no step")
    return step


def read_state(path: Path, module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Return the tensors of a safetensors file that fit `module`, or raise `ValueError`."""
    tensors = _read_tensors(path)
    expected = module.state_dict()
    wrong = compare_tensors(
        {k: v.shape for k, v in expected.items()}, {k: v.shape for k, v in tensors.items()}
    )
    wrong += [f"{name} is unknown" for name in tensors if name not in expected]
    if wrong:
        raise ValueError(f"{path.name} is of another network: {'; '.join(wrong[:3])}")
    return tensors


def _read_tensors(path: Path) -> dict[str, torch.Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path.name} is damaged or absent: {error}") from None


def read_optimizer(
    folder: Path, optimizer: torch.optim.Optimizer
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return (state dict of the optimizer, all scalars), or raise `ValueError` for another's."""
    scalars = read_json(folder / "optimizer.json", dict)
    tensors = _read_tensors(folder / "optimizer.safetensors")
    groups = scalars["param_groups"]
    sizes = [len(group["params"]) for group in optimizer.state_dict()["param_groups"]]
    if [len(group["params"]) for group in groups] != sizes:
        raise ValueError("optimizer.json is of another network")
    state: dict[int, dict[str, Any]] = {}
    for name, value in {**tensors, **scalars["state"]}.items():
        index, *inner, key = name.split(".")
        if not 0 <= int(index) < sum(sizes):
            raise ValueError(f"optimizer.safetensors holds {name} of another network")
        entry = state.setdefault(int(index), {})
        for part in inner:
            entry = entry.setdefault(part, {})
        entry[key] = value
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for index, values in state.items():
        average = values.get("exp_avg")
        if isinstance(average, torch.Tensor) and average.shape != parameters[index].shape:
            raise ValueError("optimizer.safetensors is of another network")
    return {"state": state, "param_groups": groups}, scalars


class _Harmless(pickle.Unpickler):
    """Builds the classes of torch's checkpoint index and data types, nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        known = name in HARMLESS.get(module, ())
        if known or (module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"{module}.{name} does not belong into a checkpoint")


def check_sharded(folder: Path) -> None:
    """Raise one of `DAMAGE` unless the pickles of a sharded checkpoint are data alone.

    Covers all that `accelerate`'s `load_state` unpickles without asking torch for weights only:
    the index of each part, and the values that are kept as bytes, those of the optimizer say.
    """
    indices = sorted(folder.glob("*/.metadata"))
    if not indices:
        raise ValueError("holds no index of shards")
    for index in indices:
        found = _Harmless(io.BytesIO(read_bytes(index, LARGEST_INDEX))).load()
        check_values(index.parent, found.state_dict_metadata, found.storage_data)


def check_values(folder: Path, kinds: Mapping[str, Any], entries: Mapping[Any, Any]) -> None:
    """Raise one of `DAMAGE` unless all values kept as bytes load as data alone."""
    for key, entry in entries.items():
        name = str(entry.relative_path)
        if Path(name).name != name or not (folder / name).is_file():
            raise ValueError(f"shard {name} is not in its folder")
        if type(kinds.get(key.fqn)).__name__ == "BytesStorageMetadata":
            with open(folder / name, "rb") as shard:
                shard.seek(entry.offset)
                value = shard.read(entry.length)
            torch.load(io.BytesIO(value), map_location="cpu", weights_only=True)
