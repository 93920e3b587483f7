"""Builds a trained network from its folder, with one-line errors for what does not fit.

The recipe has been judged by `segtrain.saved_recipe`; its numbers are judged here, while the
network is built: a few bytes of JSON could ask for one that fills any memory.
"""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from pipeline.errors import UserError
from pipeline.reading import open_regular, refuse_pointer, shortened

REMEDY = "restore the folder, or train again"
BASE_TENSORS = 10_000  # of a diffusion model, which the file does not hold; SDXL has some 3,000
BASE_NUMBERS = 2**30  # in one tensor of it


def require_weights(path: Path) -> None:
    """Raise `UserError` unless `path` is a whole safetensors file; no weights are read.

    Its header is checked against the length of the file, without torch.
    """
    from safetensors import SafetensorError, safe_open

    refuse_pointer(path)
    open_regular(path, REMEDY).close()
    try:
        with safe_open(str(path), framework="numpy"):
            pass
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(
            f"{path}: is no whole safetensors file ({shortened(error)}); {REMEDY}"
        ) from None


def load_weights(path: Path) -> dict[str, Any]:
    """Return the tensors of a safetensors file on the CPU, or raise `UserError`."""
    from safetensors.torch import load_file

    require_weights(path)
    return load_file(path)


@contextlib.contextmanager
def limited(numbers: int, tensors: int) -> Iterator[None]:
    """Let modules register at most so many tensors, of at most so many numbers each.

    Raises `ValueError` from within the constructor, before the tensor is filled.
    """
    from torch.nn.modules import module

    count = 0

    def judge(_module: Any, name: str, tensor: Any) -> None:
        nonlocal count
        count += 1
        if count > tensors or (tensor is not None and tensor.numel() > numbers):
            raise ValueError(f"with its {name} it is larger than the weights beside it")

    hooks = [
        module.register_module_parameter_registration_hook(judge),
        module.register_module_buffer_registration_hook(judge),
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def build(path: Path, make: Callable[[], Any], weights: dict[str, Any], *, frozen: bool) -> Any:
    """Return the network that `make` builds from the recipe at `path`, with `weights` in it.

    `frozen`: a diffusion model is part of it whose weights are not in the file. Raises `UserError`
    if the recipe asks for something that cannot be built, or that the weights do not fit.
    """
    numbers = max((tensor.numel() for tensor in weights.values()), default=0)
    tensors = 2 * len(weights) + 100  # some are registered that are not stored
    if frozen:
        numbers, tensors = max(numbers, BASE_NUMBERS), tensors + BASE_TENSORS
    try:
        with limited(numbers, tensors):
            model = make()
    except UserError:
        raise
    except Exception as error:  # whatever mmsegmentation's parts raise for options that are wrong
        reason = shortened(f"{type(error).__name__}: {error}".replace("\n", " "))
        raise UserError(f"{path}: its network cannot be built ({reason}); {REMEDY}") from None
    require_fit(path, model, weights)
    model.load_state_dict(weights)
    return model


def require_fit(path: Path, model: Any, weights: dict[str, Any]) -> None:
    """Raise `UserError` unless names and shapes of `weights` are those of `model`."""
    wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    if wanted == found:
        return
    name = sorted(k for k in wanted.keys() | found if wanted.get(k) != found.get(k))[0]
    raise UserError(
        f"{path}: does not fit the weights beside it ({shortened(name)}: the recipe's network has "
        f"{wanted.get(name, 'none')}, the file {found.get(name, 'none')}); {REMEDY}"
    )
