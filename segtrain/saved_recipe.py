"""What the `recipe.json` of a trained network may hold. The folder may come from strangers.

mmsegmentation builds whatever a `type` names: parts that its registries hold, but also any dotted
name, `os.system` say, and some parts load pickles or addresses that an option names. So a saved
recipe is judged before anything is built from it. Its parts come from the lists below, its
texts are names, and nothing in it leads to a file but the diffusion model that the network was
trained on, which holds safetensors and must have the recorded digest. A recipe given to
segtrain/train.py is a Python file of the user's own and may name anything. Nothing here imports
torch.
"""

import math
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline.errors import UserError
from pipeline.reading import shortened
from segtrain.recipe_checks import former_name

OURS = (
    "StreetforgeDiffusionBackbone",
    "StreetforgeDiffusionSegmentor",
    "StreetforgeDAFormerHead",
    "StreetforgeDeepLabV2Head",
    "StreetforgeEfficientNetBackbone",
    "StreetforgeFoundationBackbone",
    "StreetforgeHRDASegmentor",
    "StreetforgeLatentRegressionHead",
    "StreetforgeSegmentor",
    "StreetforgeMask2FormerHead",
)
PARTS = frozenset(
    (
        *OURS,
        # segmentors and preprocessing
        "EncoderDecoder", "CascadeEncoderDecoder", "SegDataPreProcessor",
        # backbones; left out are those that always load weights (VPD, TIMMBackbone, CLIP)
        "BEiT", "BiSeNetV1", "BiSeNetV2", "CGNet", "DDRNet", "ERFNet", "FastSCNN", "HRNet", "ICNet",
        "MAE", "MSCAN", "MixVisionTransformer", "MobileNetV2", "MobileNetV3", "PCPVT", "PIDNet",
        "ResNeSt", "ResNeXt", "ResNet", "ResNetV1c", "ResNetV1d", "STDCContextPathNet", "STDCNet",
        "SVT", "SwinTransformer", "UNet", "VisionTransformer",
        # necks
        "FPN", "Feature2Pyramid", "ICNeck", "JPU", "MLANeck", "MultiLevelNeck",
        # heads
        "ANNHead", "APCHead", "ASPPHead", "DAHead", "DDRHead", "DMHead", "DNLHead", "DPTHead",
        "DepthwiseSeparableASPPHead", "DepthwiseSeparableFCNHead", "EMAHead", "EncHead", "FCNHead",
        "FPNHead", "GCHead", "ISAHead", "LRASPPHead", "LightHamHead", "NLHead", "OCRHead",
        "PIDHead", "PSPHead", "PointHead", "SETRMLAHead", "SETRUPHead", "STDCHead", "SegformerHead",
        "SegmenterMaskTransformerHead", "UPerHead",
        # losses and which pixels they count
        "BoundaryLoss", "CrossEntropyLoss", "DiceLoss", "FocalLoss", "LovaszLoss",
        "OhemCrossEntropy", "TverskyLoss", "OHEMPixelSampler",
        # layers
        "BN", "BN1d", "BN2d", "GN", "IN", "IN2d", "LN", "SyncBN", "MMSyncBN",
        "ELU", "GELU", "HSigmoid", "HSwish", "LeakyReLU", "PReLU", "QuickGELU", "ReLU", "ReLU6",
        "SiLU", "Sigmoid", "Swish", "Tanh",
        "Conv", "Conv2d", "Conv2dAdaptivePadding", "ConvAWS", "ConvWS", "ContextBlock",
        "DeconvModule", "DropPath", "Dropout", "InterpConv", "NonLocal2d", "bilinear", "deconv",
        "nearest", "pixel_shuffle",
    )
)  # fmt: skip
TRAJECTORIES = ("clean", "noised", "inversion", "diff37", "diff5")  # of diffusion/trajectories.py
INITS = ("Caffe2Xavier", "Constant", "Kaiming", "Normal", "TruncNormal", "Uniform", "Xavier")
LOADERS = ("LoadImageFromFile", "LoadAnnotations")  # the one image reader stands for them
TRANSFORMS = (
    "StreetforgeResize", "Resize", "ResizeShortestEdge", "ResizeToMultiple", "Pad", "PackSegInputs",
)  # fmt: skip
TEXTS = ("scenes", "templates", "class_names", "base", "unet")  # free text
INITIAL = ("pretrained", "feature_distance")  # options about weights that a training began with
LARGEST_NUMBER = 2**17  # so that no loop is endless; the size of a network: segtrain/checkpoints
LONGEST_TEXT = 2000
MOST_OVERLAP = 32  # windows that see a pixel, along an edge
_allowed: set[str] = set()


def allow(*names: str) -> None:
    """Let saved recipes name further parts that the caller has registered with mmsegmentation."""
    _allowed.update(names)


def portable(recipe: dict[str, Any]) -> dict[str, Any]:
    """Return a recipe as it is saved: nothing to import, no weights to start from or to stay near.

    The trained weights are beside it, so what the training began with is not needed again.
    """
    saved = {key: value for key, value in recipe.items() if key != "custom_imports"}
    saved["model"] = _without_initial_weights(saved["model"])
    return saved


def _without_initial_weights(value: Any) -> Any:
    if isinstance(value, list):
        return [_without_initial_weights(item) for item in value]
    if not isinstance(value, dict):
        return value
    kept = {k: _without_initial_weights(v) for k, v in value.items() if k not in INITIAL}
    if isinstance(init := kept.get("init_cfg"), dict) and init.get("type") == "Pretrained":
        del kept["init_cfg"]
    return kept


def check(path: Path, saved: dict[str, Any]) -> None:
    """Raise `UserError` unless everything in a `recipe.json` may be used as it stands."""
    try:
        recipe = _require(saved, "recipe", dict)
        model = _require(recipe, "model", dict)
        _require(model, "backbone", dict)
        _require(model, "decode_head", (dict, list))
        transforms = _require(recipe, "test_pipeline", list)
        _require(saved, "diffusion", dict)
        if message := former_name(recipe):
            raise ValueError(message)
        for where, key, value in _items(saved, ""):
            _check_everywhere(where, key, value)
        for where, key, value in _items(model, "model"):
            _check_in_model(where, key, value)
        _check_testing(_require(model, "test_cfg", dict))
        if recipe.get("test_resolution", "low") not in ("low", "high"):
            raise ValueError("test_resolution is neither low nor high")
        for index, transform in enumerate(transforms):
            _check_transform(f"test_pipeline[{index}]", transform)
        _check_diffusion(model["backbone"], saved["diffusion"])
    except ValueError as error:
        raise UserError(
            f"{path}: {error}; only parts that this program knows are built from a saved recipe, "
            "restore the file or train again"
        ) from None


def unknown_parts(recipe: dict[str, Any]) -> list[str]:
    """Return the parts of a recipe's network and test transforms that `check` would refuse."""
    items = _items({key: recipe.get(key) for key in ("model", "test_pipeline")}, "")
    named = {value for _, key, value in items if key == "type" and isinstance(value, str)}
    known = PARTS | _allowed | {*TRAJECTORIES, *INITS, *LOADERS, *TRANSFORMS, "Pretrained"}
    return sorted(named - known)


def warn(recipe: dict[str, Any]) -> None:
    """Say on stderr, before a training, which parts keep its network from being loaded later."""
    if unknown := unknown_parts(recipe):
        print(
            f"notice: {', '.join(unknown)}: our programs will not build the trained network from "
            "its folder; in Python, register these parts, name them to "
            "segtrain.saved_recipe.allow and use segtrain.segmenter.Segmenter",
            file=sys.stderr,
        )


def _require(mapping: dict[str, Any], key: str, kind: Any) -> Any:
    if not isinstance(mapping.get(key), kind):
        raise ValueError(f"has no {key}, or one of another type")
    return mapping[key]


def _items(value: Any, where: str, key: str = "") -> Iterator[tuple[str, str, Any]]:
    """Yield place, key and value of everything below a JSON value; list items keep their key."""
    if isinstance(value, dict):
        for name, item in value.items():
            place = f"{where}.{name}".lstrip(".")
            yield place, name, item
            yield from _items(item, place, name)
    elif isinstance(value, list):
        for index, item in enumerate(value):
            place = f"{where}[{index}]"
            yield place, key, item
            yield from _items(item, place, key)


def _check_everywhere(where: str, key: str, value: Any) -> None:
    if key.startswith("_"):
        raise ValueError(f"{shortened(where)} is an instruction to mmengine")
    if key == "custom_imports" and value not in (
        None,
        {"imports": ["segtrain.registry"], "allow_failed_imports": False},
        ["segtrain.registry"],
        False,
    ):
        raise ValueError(f"{shortened(where)} imports modules")
    if key == "type" and not (isinstance(value, str) and re.fullmatch(r"\w+", value)):
        raise ValueError(f"{shortened(where)} {shortened(value, 60)!r} is not a plain part name")


def _check_in_model(where: str, key: str, value: Any) -> None:
    place = shortened(where)
    if not re.fullmatch(r"\w+", key):
        raise ValueError(f"{place} is not a plain name of an option")
    if key == "type":
        _check_part(where, value)
    elif key == "pretrained" and value is not None:
        raise ValueError(f"{place} names weights to load")
    elif key == "class_weight" and isinstance(value, str):
        raise ValueError(f"{place} names a file")
    elif isinstance(value, str) and key not in TEXTS and not re.fullmatch(r"[\w.:-]*", value):
        raise ValueError(f"{place} {shortened(value, 60)!r} is not a plain name")
    elif isinstance(value, str) and len(value) > LONGEST_TEXT:
        raise ValueError(f"{place} has more than {LONGEST_TEXT} characters")
    elif isinstance(value, int | float) and not abs(value) <= LARGEST_NUMBER:
        raise ValueError(f"{place} {shortened(value, 60)} is beyond {LARGEST_NUMBER}")


def _check_part(where: str, name: str) -> None:
    if where == "model.backbone.features.trajectory.type":
        known: Any = TRAJECTORIES
    elif "init_cfg" in re.split(r"[.\[]", where):
        known = INITS
    else:
        known = PARTS | _allowed
    if name not in known:
        raise ValueError(f"{shortened(where)} {shortened(name, 60)!r} is not on the list of parts")


def _check_transform(where: str, transform: Any) -> None:
    """Raise `ValueError` unless a test transform is known, with options that are in reason."""
    if not isinstance(transform, dict) or "type" not in transform:
        raise ValueError(f"{where} is not a transform with a type")
    name = transform["type"]
    if name in LOADERS:  # never built
        return
    if name not in TRANSFORMS and name not in _allowed:
        raise ValueError(f"{where}.type {shortened(name, 60)!r} is not on the list of transforms")
    for place, _, value in _items(transform, where):
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if number and not (math.isfinite(value) and 0 <= value <= 16384):
            raise ValueError(f"{shortened(place)} {shortened(value, 60)} is not within 0..16384")
        if isinstance(value, str) and not re.fullmatch(r"\w*", value):
            raise ValueError(f"{shortened(place)} {shortened(value, 60)!r} is not a plain name")


def _check_testing(settings: dict[str, Any]) -> None:
    """Raise `ValueError` unless images are tested whole or by windows of sane size and number."""
    mode = settings.get("mode")
    if mode not in ("whole", "slide"):
        raise ValueError("model.test_cfg.mode is neither whole nor slide")
    if mode == "whole":
        return
    crop = _height_and_width(settings.get("crop_size"))
    stride = _height_and_width(settings.get("stride"))
    if any(not c / MOST_OVERLAP <= s <= c for c, s in zip(crop, stride, strict=True)):
        raise ValueError(
            f"model.test_cfg.stride is not within a {MOST_OVERLAP}th and the whole of crop_size"
        )


def _height_and_width(size: Any) -> list[int]:
    is_pair = isinstance(size, list) and len(size) == 2
    if is_pair and all(type(n) is int and 0 < n <= 16384 for n in size):
        return size
    raise ValueError("model.test_cfg.crop_size or stride is not height and width in pixels")


def _check_diffusion(backbone: dict[str, Any], recorded: dict[str, Any]) -> None:
    """Raise `ValueError` unless network and record name a diffusion model both or neither."""
    named = (backbone.get("base", ""), backbone.get("unet", ""), recorded.get("base", ""))
    if not all(isinstance(name, str) for name in named):
        raise ValueError("does not name its diffusion model as text")
    if ("base" in backbone) != bool(recorded.get("base")):
        raise ValueError("model.backbone and diffusion do not name the same diffusion model")
