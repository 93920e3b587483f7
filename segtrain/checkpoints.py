"""The folder of a trained network: weights, recipe, and learned scene tokens.

The folder may come from strangers. Its recipe is judged by `segtrain.saved_recipe`; its numbers are
judged here, while the network is built: a few bytes of JSON could ask for one that fills any
memory. What does not fit is an error of one line.
"""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from pipeline import files, models
from pipeline.addresses import missing_folder
from pipeline.errors import UserError
from pipeline.identity import file_digest
from pipeline.reading import open_regular, read_json, refuse_pointer, shortened
from segtrain import saved_recipe
from segtrain.recipes import as_json, build_model

RECIPE_FILE = "recipe.json"
WEIGHTS_FILE = "model.safetensors"
SCENE_FILE = "scene.safetensors"
REMEDY = "restore the folder, or train again"
SHOWN_MISMATCHES = 3
BASE_TENSORS = 10_000  # of a diffusion model, which the file does not hold; SDXL has some 3,000
BASE_NUMBERS = 2**30  # in one tensor of it
BUILT_AND_DROPPED = 4  # mmsegmentation's linear head builds a convolution first that it replaces


def diffusion_base(recipe: Any) -> dict[str, str]:
    """Return name and revision of the frozen weights of a recipe, empty if it has none."""
    backbone = recipe["model"]["backbone"]
    if "base" not in backbone:
        return {}
    revision = models.revision(models.find_base(backbone["base"]))
    record = {"base": backbone["base"], "revision": revision}
    if backbone.get("unet"):
        record["unet_revision"] = models.revision(models.find_folder(backbone["unet"], "unet"))
    return record


def features(model: Any) -> dict[str, Any]:
    """Return timesteps and taps of a diffusion backbone; empty for other backbones."""
    extractor = getattr(model.backbone, "extractor", None)
    if extractor is None:
        return {}
    return {"timesteps": list(extractor.levels), "taps": list(extractor.taps)}


def save_trained(folder: Path, recipe: Any, model: Any, record: dict[str, Any]) -> None:
    """Write weights and recipe of a trained model; frozen weights are named, not stored."""
    from safetensors.torch import save_file

    state = {k: v.detach().cpu().contiguous() for k, v in model.state_dict().items()}
    with files.replacing(folder / WEIGHTS_FILE) as temporary:
        save_file(state, temporary)
    diffusion = {"diffusion": diffusion_base(recipe), "features": features(model)}
    saved = {"recipe": saved_recipe.portable(as_json(recipe)), **diffusion, **record}
    files.write_json(folder / RECIPE_FILE, saved)


def require_trained(folder: Path) -> dict[str, Any]:
    """Return the saved recipe of a finished training, or raise `UserError`.

    Recipe and head of the weights are checked; no weights are read, nothing is built.
    """
    if not folder.is_dir():
        raise missing_folder(folder, "give the --output of segtrain/train.py")
    if not (folder / "finished.json").is_file() or not (folder / WEIGHTS_FILE).is_file():
        raise UserError(f"{folder}: holds no finished training; run segtrain/train.py to its end")
    saved = read_json(folder / RECIPE_FILE, dict)
    saved_recipe.check(folder / RECIPE_FILE, saved)
    require_weights(folder / WEIGHTS_FILE)
    return saved


def require_scene(folder: Path) -> dict[str, Any]:
    """Return what segtrain/adapt.py wrote about its result, or raise `UserError`."""
    path = folder / "scene.json"
    if not (folder / SCENE_FILE).is_file() or not path.is_file():
        raise UserError(f"{folder}: holds no learned scene; run segtrain/adapt.py to its end")
    record = read_json(path, dict)
    if not isinstance(record.get("config"), dict):
        raise UserError(f"{path}: has no config; restore it, or run segtrain/adapt.py again")
    require_weights(folder / SCENE_FILE)
    return record


def load_scene(folder: Path, checkpoint: Path) -> Any:
    """Return the scene tokens SxD that segtrain/adapt.py learned through a trained network.

    Raises `UserError` if it was another one: tokens that help one network may harm the next.
    """
    require_trained(checkpoint)
    record = require_scene(folder)
    if record["config"].get("weights") != file_digest(checkpoint / WEIGHTS_FILE):
        raise UserError(
            f"{folder}: its scene was not learned through {checkpoint}; run segtrain/adapt.py on "
            "that checkpoint, into another folder"
        )
    tokens = load_weights(folder / SCENE_FILE).get("tokens")
    if tokens is None or tokens.dim() != 2 or not tokens.numel():
        raise UserError(
            f"{folder / SCENE_FILE}: holds no scene tokens; run segtrain/adapt.py again"
        )
    return tokens.float()


def load_trained(folder: Path, base: str = "") -> tuple[Any, dict[str, Any]]:
    """Rebuild a trained model in eval mode. Returns it with its recipe.

    `base`: where its diffusion model is now, empty for where it was in training.
    Raises `UserError` if the diffusion model it was trained on is not the one found here, or if
    its backbone, built again, reads other noise levels or taps. Nothing is built but parts on the
    lists of `segtrain.saved_recipe`.
    """
    saved = require_trained(folder)
    recipe = saved["recipe"]
    if base:
        if not saved["diffusion"]:
            raise UserError(
                f"--base {base}: the backbone of {folder} is not a diffusion model; drop it"
            )
        recipe["model"]["backbone"]["base"] = saved["diffusion"]["base"] = base
    _require_same(folder, "diffusion weights", saved["diffusion"], diffusion_base(recipe))

    import segtrain.registry  # noqa: F401

    def make() -> Any:
        model = build_model(recipe)
        if "features" in saved:  # the first versions did not record them
            _require_same(folder, "diffusion features", saved["features"], features(model))
        return model

    weights = load_weights(folder / WEIGHTS_FILE)
    frozen = bool(saved["diffusion"])
    model = build(folder / RECIPE_FILE, make, weights, frozen=frozen)
    return model.eval(), recipe


def _require_same(folder: Path, what: str, saved: Any, found: Any) -> None:
    if found != saved:
        raise UserError(
            f"{folder}: was trained on {what} {saved}, but found {found}; restore that base model, "
            "or train again"
        )


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
            f"{path}: is not a whole safetensors file ({shortened(error)}); {REMEDY}"
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
    numbers = BUILT_AND_DROPPED * max((tensor.numel() for tensor in weights.values()), default=0)
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
    names = sorted(k for k in wanted.keys() | found if wanted.get(k) != found.get(k))
    some = "; ".join(
        f"{shortened(name)}: the recipe's network has {wanted.get(name, 'none')}, the file "
        f"{found.get(name, 'none')}"
        for name in names[:SHOWN_MISMATCHES]
    )
    more = f"; {len(names) - SHOWN_MISMATCHES} more" if len(names) > SHOWN_MISMATCHES else ""
    raise UserError(f"{path}: does not fit the weights beside it ({some}{more}); {REMEDY}")
