"""Initial weights of a backbone from a safetensors file, checked name by name."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.errors import UserError
from pipeline.weight_files import read_header

PREFIX = "backbone."
NAMED = 3  # mismatches named in a message


def read_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Return the shape of each tensor of a safetensors file, without torch and without its data.

    Raises `UserError` for a file of another format.
    """
    if path.is_file() and path.suffix != ".safetensors":
        raise UserError(
            f"{path}: is not a safetensors file; convert a pickle (.pth, .bin) by "
            "pipeline/convert_weights.py, --init of segtrain/train.py takes its result"
        )
    return read_header(path)


def load_backbone(backbone: Any, path: Path) -> None:
    """Load all weights of `backbone` from `path`; names may begin with `backbone.`.

    Raises `UserError` that names the first mismatches unless the file fits exactly.
    """
    from safetensors.torch import load_file

    prefix = shared_prefix(read_shapes(path))
    weights = {name.removeprefix(prefix): value for name, value in load_file(path).items()}
    part = getattr(backbone, "pretrained_part", backbone)  # without what is added to it
    wanted = part.state_dict()
    require_fit(
        {n: tuple(w.shape) for n, w in weights.items()},
        {n: tuple(w.shape) for n, w in wanted.items()},
        path,
    )
    part.load_state_dict(weights)


def shared_prefix(names: Mapping[str, Any]) -> str:
    """Return `backbone.` if all names begin with it."""
    return PREFIX if names and all(name.startswith(PREFIX) for name in names) else ""


def require_fit(
    found: Mapping[str, tuple[int, ...]], wanted: Mapping[str, tuple[int, ...]], path: Path
) -> None:
    """Raise `UserError` unless names and shapes agree."""
    missing = [name for name in wanted if name not in found]
    unexpected = [name for name in found if name not in wanted]
    shapes = [
        f"{name} {found[name]} for {wanted[name]}"
        for name in wanted
        if name in found and found[name] != wanted[name]
    ]
    if not (missing or unexpected or shapes):
        return
    fitting = len(wanted) - len(missing) - len(shapes)
    faults = (("missing", missing), ("unexpected", unexpected), ("of another shape", shapes))
    listed = "; ".join(f"{what}: {_listed(names)}" for what, names in faults if names)
    raise UserError(
        f"{path}: {fitting} of the backbone's {len(wanted)} weights fit; {listed}; give weights of "
        "the recipe's own architecture, under mmsegmentation's names"
    )


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return f"{', '.join(names[:NAMED])}{more}"
