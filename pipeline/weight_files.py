"""Files of weights: found by name, and what their headers say; no tensor is read.

Nothing here imports torch.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline import model_values
from pipeline.errors import UserError
from pipeline.reading import read_json, refuse_pointer, shortened

VARIANTS = (None, "fp16")  # of weights, in the order of preference
INDEX_BYTES = 64 << 20


@dataclass(frozen=True)
class Weights:
    """The weights of one part: its files, and the variant that diffusers is asked for."""

    paths: tuple[Path, ...]
    variant: str | None = None


def weight_names(kind: str, variant: str | None) -> tuple[str, tuple[str, str]]:
    """Return the name of a network's weights in one file, and the two of an index of shards."""
    stem = "model" if kind.startswith("text_encoder") else "diffusion_pytorch_model"
    mark = f".{variant}" if variant else ""
    single = f"{stem}{mark}.safetensors"
    return single, (f"{stem}.safetensors.index{mark}.json", f"{single}.index.json")


def find_weights(folder: Path, kind: str) -> Weights:
    """Return the safetensors files of a network: the plain ones, or else the fp16 variant.

    Raises `UserError` for weights that are absent, only pickled, pointers, or not whole files.
    """
    plain = folder / weight_names(kind, None)[0]
    for variant in VARIANTS:
        name, indices = weight_names(kind, variant)
        single = folder / name
        if single.exists() or single.is_symlink():
            refuse_pointer(single)
            return Weights((single,), variant)
        for index in (folder / name for name in indices):
            if index.exists():
                return Weights(_shards(index), variant)
    pickles = sorted(
        p.name for p in folder.iterdir() if p.suffix in (".bin", ".pt", ".pth", ".ckpt")
    )
    if pickles:
        raise UserError(
            f"{plain}: is missing, only the pickle {pickles[0]} is there, which may run code; "
            "convert it with pipeline/convert_weights.py"
        )
    raise UserError(f"{plain}: no such file; fetch the weights of this folder")


def _shards(index: Path) -> tuple[Path, ...]:
    weight_map = read_json(index, dict, limit=INDEX_BYTES).get("weight_map")
    names = list(weight_map.values()) if isinstance(weight_map, dict) else []
    if not names or not all(isinstance(n, str) and n and Path(n).name == n for n in names):
        raise UserError(f"{index}: weight_map must give plain file names; restore the file")
    return tuple(index.with_name(name) for name in sorted(set(names)))


def read_header(path: Path) -> dict[str, tuple[int, ...]]:
    """Return the shape of every tensor of a safetensors file; its data are not read.

    Raises `UserError` for what is no whole safetensors file: absent, empty, cut, a pointer, with a
    header that does not fit its size.
    """
    from safetensors import SafetensorError, safe_open

    refuse_pointer(path)
    if not path.is_file():
        what = "is a folder or a device" if path.exists() else "no such file"
        raise UserError(f"{path}: {what}; fetch the weights again")
    try:
        with safe_open(path, framework="np") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            shapes = {name: tuple(part.get_shape()) for name, part in slices.items()}
            types = {name: part.get_dtype() for name, part in slices.items()}
    except (SafetensorError, OSError, ValueError) as error:
        reason = shortened(error, 120)
        raise UserError(
            f"{path}: is cut, empty or no safetensors file ({reason}); fetch the weights again"
        ) from None
    if not shapes:
        raise UserError(f"{path}: holds no tensor; fetch the weights again")
    model_values.check_types(path, types)
    return shapes


def read_headers(weights: Weights) -> dict[str, tuple[int, ...]]:
    """Return the shape of every tensor in all files of `weights`."""
    shapes: dict[str, tuple[int, ...]] = {}
    for path in weights.paths:
        shapes |= read_header(path)
    return shapes


def compare_tensors(
    expected: Mapping[str, Sequence[int]], found: Mapping[str, Sequence[int]]
) -> list[str]:
    """Return a phrase per tensor that the weights lack or hold in another shape."""
    wrong = []
    for name, shape in expected.items():
        if name not in found:
            wrong.append(f"{name} is missing")
        elif tuple(found[name]) != tuple(shape):
            wrong.append(f"{name} is {list(found[name])}, expected {list(shape)}")
    return wrong
