"""What a model folder holds, found out from its files before anything is loaded.

Configs are read strictly and must name the stock class that is expected. Of weights only the
header is read: names, types and shapes of all tensors. Nothing here imports torch.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline import model_values
from pipeline.errors import UserError
from pipeline.reading import read_json, shortened
from pipeline.weight_files import find_weights, read_headers

CLASSES = {
    "unet": "UNet2DConditionModel",
    "vae": "AutoencoderKL",
    "controlnet": "ControlNetModel",
    "segmentation_head": "SegmentationHead",
    "text_encoder": "CLIPTextModel",
    "text_encoder_2": "CLIPTextModelWithProjection",
    "tokenizer": "CLIPTokenizer",
    "tokenizer_2": "CLIPTokenizer",
}
NETWORKS = ("unet", "vae", "controlnet", "segmentation_head", "text_encoder", "text_encoder_2")
REQUIRED = ("unet", "vae", "text_encoder", "tokenizer", "scheduler")
PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")
DEFAULTS: dict[str, dict[str, Any]] = {  # of the stock classes, for configs of older versions
    "unet": {"block_out_channels": [320, 640, 1280, 1280], "in_channels": 4,
             "cross_attention_dim": 1280, "layers_per_block": 2},
    "controlnet": {"block_out_channels": [320, 640, 1280, 1280], "in_channels": 4,
                   "cross_attention_dim": 1280, "layers_per_block": 2, "conditioning_channels": 3,
                   "conditioning_embedding_out_channels": [16, 32, 96, 256]},
    "segmentation_head": {"block_out_channels": [320, 640, 1280, 1280], "in_channels": 4,
                          "cross_attention_dim": 1280, "layers_per_block": 2,
                          "tap_channels": [1280], "hidden_channels": 32},
    "vae": {"block_out_channels": [64], "latent_channels": 4},
    "text_encoder": {"hidden_size": 512, "num_hidden_layers": 12},
    "text_encoder_2": {"hidden_size": 512, "num_hidden_layers": 12},
}  # fmt: skip
RUNS_CODE = (  # keys by which the libraries fetch or import more than stock classes
    "auto_map", "custom_pipelines", "quantization_config", "attn_implementation",
    "_attn_implementation", "use_kernels",
)  # fmt: skip
PER_LEVEL = ("cross_attention_dim", "layers_per_block")  # one number, or one per level
MOST_TIMESTEPS = 100_000
MOST_LAYERS, MOST_LEVELS, WIDEST = 256, 16, 1 << 17


def read_config(folder: Path, kind: str) -> dict[str, Any]:
    """Return the checked config of a network's folder, with the defaults of its class.

    Raises `UserError` unless the file names the stock class of `kind` and holds sane sizes.
    """
    path = folder / "config.json"
    config = read_json(path, dict)
    refuse_code(path, config)
    classes = config.get("_class_name", config.get("architectures"))
    found = classes[0] if isinstance(classes, list) and len(classes) == 1 else classes
    if found != CLASSES[kind] and not (found is None and kind.startswith("text_encoder")):
        what = "names no class" if found is None else f"is of a {shortened(found, 60)}"
        raise UserError(f"{path}: {what}, but {CLASSES[kind]} is needed; name another folder")
    config = {**DEFAULTS[kind], **config}
    for name, default in DEFAULTS[kind].items():
        _check_size(path, name, config[name], many=isinstance(default, list))
    for name, value in config.items():
        if "layers" in name and _largest(value) > MOST_LAYERS:
            raise UserError(f"{path}: {name} is beyond {MOST_LAYERS}; restore the file")
    model_values.check_network(path, config)
    return config


def refuse_code(path: Path, config: Mapping[str, Any]) -> None:
    """Raise `UserError` for a config that asks for anything but stock classes, at any depth."""
    for key, value in config.items():
        if key in RUNS_CODE and value is not None:
            raise UserError(
                f"{path}: {key} asks for more than stock classes, which is never loaded; remove it"
            )
        for part in value if isinstance(value, list) else [value]:
            if isinstance(part, dict):  # of a network within this one
                refuse_code(path, part)


def is_transformers(folder: Path) -> bool:
    """Tell whether a folder holds a network of transformers, whose config.json names its class."""
    path = folder / "config.json"
    config = read_json(path) if path.is_file() else None
    return isinstance(config, dict) and bool(config.get("architectures"))


def require_stock_classes(folder: str | Path) -> None:
    """Raise `UserError` if FOLDER/config.json asks for anything but stock classes."""
    path = Path(folder) / "config.json"
    if path.is_file():
        refuse_code(path, read_json(path, dict))


def _check_size(path: Path, name: str, value: Any, *, many: bool) -> None:
    if many and not (isinstance(value, list) and 0 < len(value) <= MOST_LEVELS):
        raise UserError(f"{path}: {name} must be a list of 1 to {MOST_LEVELS} numbers; restore it")
    values = value if isinstance(value, list) and (many or name in PER_LEVEL) else [value]
    for number in values:
        if type(number) is not int or not 0 < number <= WIDEST:
            shown = shortened(repr(number), 60)
            raise UserError(f"{path}: {name} must be 1 to {WIDEST}, got {shown}; restore the file")


def _largest(value: Any) -> float:
    if isinstance(value, list):
        return max(map(_largest, value), default=0)
    return value if isinstance(value, int | float) else 0


def check_part(folder: Path, kind: str) -> dict[str, Any]:
    """Check one part of a base, or a single network, by its files; return its config."""
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; the model is not complete, fetch it again")
    if kind == "scheduler":
        return _check_scheduler(folder / "scheduler_config.json")
    if kind.startswith("tokenizer"):
        return _check_tokenizer(folder)
    config = read_config(folder, kind)
    read_headers(find_weights(folder, kind))
    return config


def _check_scheduler(path: Path) -> dict[str, Any]:
    config = read_json(path, dict)
    target, steps = config.get("prediction_type", "epsilon"), config.get("num_train_timesteps", 1)
    if target not in PREDICTION_TYPES:
        shown = shortened(repr(target), 60)
        known = ", ".join(PREDICTION_TYPES)
        raise UserError(f"{path}: prediction_type {shown}: must be one of {known}")
    if type(steps) is not int or not 0 < steps <= MOST_TIMESTEPS:
        shown = shortened(repr(steps), 60)
        raise UserError(f"{path}: num_train_timesteps {shown}: must be 1 to {MOST_TIMESTEPS}")
    model_values.check_schedule(path, config, steps if "num_train_timesteps" in config else 1000)
    return config


def _check_tokenizer(folder: Path) -> dict[str, Any]:
    path = folder / "tokenizer_config.json"
    config = read_json(path, dict) if path.exists() else {}
    refuse_code(path, config)
    whole, parts = folder / "tokenizer.json", [folder / "vocab.json", folder / "merges.txt"]
    if whole.exists():
        read_json(whole, dict)
    elif not all(p.exists() for p in parts):
        raise UserError(f"{folder}: has neither tokenizer.json nor vocab.json and merges.txt")
    if parts[0].exists():
        read_json(parts[0], dict)
    return config


def check_index(folder: Path) -> list[str]:
    """Return the parts that `model_index.json` names and some stage loads.

    It may name stock classes alone; a safety checker, say, is not looked at.
    """
    path = folder / "model_index.json"
    index = read_json(path, dict)
    if not isinstance(index.get("_class_name"), str):
        raise UserError(f"{path}: names no pipeline class; give a Stable Diffusion folder")
    wanted = [*REQUIRED, *(p for p in ("text_encoder_2", "tokenizer_2") if _named(index, p))]
    if not _named(index, "text_encoder") and _named(index, "text_encoder_2"):
        wanted = [p for p in wanted if p not in ("text_encoder", "tokenizer")]  # SDXL's refiner
    for part in wanted:
        entry = index.get(part)
        known = isinstance(entry, list) and len(entry) == 2 and all(map(_is_text, entry))
        expected = CLASSES.get(part)
        right = known and (
            entry[0] == "diffusers" and entry[1].endswith("Scheduler")
            if expected is None
            else entry[1] in (expected, f"{expected}Fast")
        )
        if not right:
            expected = expected or "a scheduler of diffusers"
            found = shortened(entry[1] if known else repr(entry), 60)
            raise UserError(
                f"{path}: its {part} is {found}, expected {expected}; use a Stable Diffusion 1.x, "
                "2.x or XL base"
            )
    return wanted


def check_base(folder: Path) -> dict[str, dict[str, Any]]:
    """Check all parts of a base model's folder by their files; return their configs by part."""
    configs = {part: check_part(folder / part, part) for part in check_index(folder)}
    _check_together(folder, configs)
    return configs


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _named(index: Mapping[str, Any], part: str) -> bool:
    entry = index.get(part)
    return bool(entry[0]) if isinstance(entry, list) and entry else entry is not None


def _check_together(folder: Path, configs: Mapping[str, Mapping[str, Any]]) -> None:
    """Raise `UserError` unless U-Net, autoencoder and text encoders of a base fit one another."""
    unet, vae = configs["unet"], configs["vae"]
    width = sum(configs[p]["hidden_size"] for p in configs if p.startswith("text_encoder"))
    pairs = (
        ("in_channels", unet["in_channels"], vae["latent_channels"], "channels of the autoencoder"),
        ("cross_attention_dim", _even(unet["cross_attention_dim"]), width, "text width"),
    )
    for name, own, other, what in pairs:
        if own != other:
            raise UserError(
                f"{folder / 'unet' / 'config.json'}: {name} is {own} but the {what} is {other}; "
                "these parts are of different models"
            )


def _even(value: Any) -> Any:
    """Return a number for a list that holds one number alone."""
    return value[0] if isinstance(value, list) and len(set(map(str, value))) == 1 else value


def check_fit(
    setting: str, config: Mapping[str, Any], base: str, unet: Mapping[str, Any], vae: Any = None
) -> None:
    """Raise `UserError` unless a U-Net or ControlNet fits the U-Net (and autoencoder) of `base`.

    `setting` is what the user gave, `--unet FOLDER` say.
    """
    fields = {
        "latent channels": "in_channels",
        "text width": "cross_attention_dim",
        "widths": "block_out_channels",
        "layers": "layers_per_block",
        "added text": "addition_embed_type",
        "width of added text": "projection_class_embeddings_input_dim",
    }
    found = [(what, _even(config.get(k)), _even(unet.get(k))) for what, k in fields.items()]
    if vae is not None and "conditioning_embedding_out_channels" in config:
        pixels = [
            2 ** (len(levels) - 1)
            for levels in (config["conditioning_embedding_out_channels"], vae["block_out_channels"])
        ]
        found.insert(0, ("latent pixel", *pixels))
    wrong = [f"{what} {own} against {other}" for what, own, other in found if own != other]
    if wrong:
        raise UserError(
            f"{setting}: does not fit --base {base} ({', '.join(wrong[:3])}); use the base it was "
            "trained on"
        )
