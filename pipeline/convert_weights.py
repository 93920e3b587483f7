"""Turn the torch pickle of a third party into safetensors, without ever executing it.

    python pipeline/convert_weights.py --weights diffusion_pytorch_model.bin \\
        --config-file config.json --output models/dginstyle_controlnet

Stock classes load the output folder. If the config of a ControlNet lacks `conditioning_channels`,
as the one that DGInStyle released, the program adds it.
"""

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if sys.path and sys.path[0] == str(Path(__file__).resolve().parent):  # see CONTRIBUTING.md
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from pipeline import files
from pipeline.config import parse
from pipeline.errors import UserError, guard
from pipeline.output_folders import (
    MODEL,
    check_output,
    has_marker,
    require_same,
    require_writable,
    write_marker,
)
from pipeline.reading import read_json
from pipeline.torch_pickle import StateDict

CONDITION_ENTRY = "controlnet_cond_embedding.conv_in.weight"


@dataclass(frozen=True)
class Config:
    """Settings of a conversion."""

    weights: Path = Path("diffusion_pytorch_model.bin")
    """Zip file written by torch.save: a flat dict of tensors."""
    config_file: Path = Path("config.json")
    """The model's config.json."""
    output: Path = Path("converted")
    """Folder for config.json and the safetensors file."""


def contents(state: StateDict) -> Iterator[bytes]:
    """Yield a safetensors file of all tensors, one in memory at a time.

    It is the length of the header, the JSON header, and the raw data.
    """
    names = sorted(state.tensors, key=lambda n: (-state.tensors[n].item_bytes, n))
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in names:
        tensor = state.tensors[name]
        start, end = end, end + tensor.num_bytes
        header[name] = {"dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # so that the data stay aligned
    yield len(text).to_bytes(8, "little") + text
    for name in names:
        yield state.read(name).tobytes()


def write_safetensors(path: Path, state: StateDict) -> None:
    """Write all tensors to a safetensors file."""
    with files.replacing(path) as temporary, open(temporary, "wb") as handle:
        handle.writelines(contents(state))


def is_written(path: Path, state: StateDict) -> bool:
    """Tell whether a file holds all tensors already; raise `UserError` if it holds others."""
    if not path.exists():
        return False
    with open(path, "rb") as handle:
        same = all(handle.read(len(data)) == data for data in contents(state))
        if same and not handle.read(1):
            return True
    raise UserError(f"{path}: exists and holds other weights; choose another --output")


def main() -> int | None:
    """Convert one model."""
    config, call = parse(Config, __doc__)
    settings = read_json(config.config_file, dict, remedy="give the model's config.json")
    state = StateDict(config.weights)
    if not state.tensors:
        raise UserError(f"{config.weights}: holds no tensor; give the weights of a model")
    num_bytes = sum(tensor.num_bytes for tensor in state.tensors.values())
    if num_bytes > 4 * config.weights.stat().st_size:  # shared storages are written several times
        raise UserError(f"{config.weights}: its tensors overlap; ask its author for safetensors")
    entry = state.tensors.get(CONDITION_ENTRY)
    if entry and len(entry.shape) != 4:
        raise UserError(f"{config.weights}: {CONDITION_ENTRY} is not a kernel of a ControlNet")
    if entry and settings.setdefault("conditioning_channels", entry.shape[1]) != entry.shape[1]:
        raise UserError(
            f"{config.config_file}: conditioning_channels is not the {entry.shape[1]} of the "
            "weights; give the config that belongs to them"
        )
    target = config.output / f"{config.weights.stem.removeprefix('pytorch_')}.safetensors"
    print(f"{target}: {len(state.tensors)} tensors, {num_bytes / 1e6:.1f} MB")
    check_output(config.output, MODEL)
    require_same(config.output, MODEL, settings)
    if is_written(target, state) and has_marker(config.output, MODEL):
        print(f"{target}: exists already, nothing to do")
    elif not call.dry_run:
        require_writable(config.output)
        if not target.exists():  # a run that was killed wrote it whole
            write_safetensors(target, state)
        write_marker(config.output, MODEL, settings)  # last: with it the model is whole
    return 0


if __name__ == "__main__":
    guard(main)
