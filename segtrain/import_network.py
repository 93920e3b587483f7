"""Import a network that mmsegmentation trained: config and checkpoint to a folder of this project.

    python segtrain/import_network.py --config-file segformer_mit-b5.py \\
        --weights segformer_mit-b5.pth --output networks/segformer_b5

The folder can be scored, used for prediction and exported like an output of segtrain/train.py. The
config is a Python file that mmengine executes: give one that you trust. The checkpoint is read
without being executed, so it must contain tensors and plain values only; `publish_model.py` of
mmsegmentation writes such a file. The network must predict the 19 classes of Cityscapes in their
order, which is checked if the checkpoint, or else `metainfo` in the config, names the classes. It
must consist of supported modules.
Scores are at the resolution of a target's protocol that the config names by `test_resolution`.
Without that key it is high if the config scales test images into 2048 pixels or more, as configs of
Cityscapes do, and low otherwise; the program prints it.
"""

import itertools
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if sys.path and sys.path[0] == str(Path(__file__).resolve().parent):  # see CONTRIBUTING.md
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from pipeline import labels
from pipeline.config import parse, show
from pipeline.errors import UserError, guard
from pipeline.output_folders import require_new, require_writable
from pipeline.reading import shortened
from segtrain import saved_recipe
from segtrain.checkpoints import build, save_trained
from segtrain.protocol import RESIZING
from segtrain.recipe_checks import named_faults
from segtrain.recipes import require_recipe

HIGH_SIDE_PX = 2048  # long side of Cityscapes' frames
LOADERS = ("train_dataloader", "val_dataloader", "test_dataloader")
SCALES = ("scale", "max_size")  # options of resizing steps


@dataclass(frozen=True)
class Config:
    """Settings of one import."""

    config_file: Path = Path("config.py")
    """Config of mmsegmentation 1.x; its `model`, `test_pipeline`, `test_resolution` and the classes
    of its datasets are read."""
    weights: Path = Path("model.pth")
    """Its checkpoint, .pth or .safetensors."""
    output: Path = Path("imported")
    """New folder to write."""


def check(config: Config) -> None:
    """Find bad input before torch or weights load."""
    require_new(config.output)
    require_recipe(config.config_file)
    if not config.weights.is_file():
        raise UserError(f"--weights {config.weights}: no such file; give the checkpoint")


def read_recipe(path: Path) -> dict[str, Any]:
    """Return network and test transforms of a config as a saved recipe has them."""
    from mmengine.config import Config as StockConfig

    import segtrain.registry  # noqa: F401
    from segtrain.recipes import as_json

    with named_faults(str(path)):
        whole = as_json(StockConfig.fromfile(path))
        recipe = {key: whole[key] for key in ("model", "test_pipeline")}
        recipe["test_resolution"] = whole.get("test_resolution") or infer_resolution(recipe)
        if "data_preprocessor" not in recipe["model"]:
            raise UserError("model has no data_preprocessor, which prepares images; add it")
        recipe["model"].setdefault("test_cfg", {"mode": "whole"})
        heads = recipe["model"]["decode_head"]
        heads = heads if isinstance(heads, list) else [heads]
        number = heads[-1]["num_classes"]
    if number != labels.NUM_CLASSES:
        raise UserError(
            f"{path}: predicts {number} classes, and scores need the {labels.NUM_CLASSES} of "
            "Cityscapes; give a network that was trained on them"
        )
    return saved_recipe.portable(recipe)


def require_class_order(weights: Path, config_file: Path) -> None:
    """Raise `UserError` if other classes than the 19 are named, or in another order.

    The checkpoint knows them best. Where it names none, those of the config count.
    """
    from segtrain.stored_weights import read_class_names

    names, path, way_out = read_class_names(weights), weights, "its weights as .safetensors"
    if not names:
        names, path = read_config_classes(config_file), config_file
        way_out = "the config with the names of Cityscapes"
    pairs = enumerate(itertools.zip_longest(names, labels.CLASS_NAMES, fillvalue="nothing"))
    if names and (wrong := [(i, *pair) for i, pair in pairs if pair[0] != pair[1]]):
        index, found, wanted = wrong[0]
        raise UserError(
            f"{path}: predicts other classes than the {labels.NUM_CLASSES} of Cityscapes in their "
            f"order: class {index} is {shortened(found, 40)}, expected {wanted} ({len(wrong)} "
            "differ); give a network that was trained on them, or, if only the spelling differs, "
            f"{way_out}"
        )


def read_config_classes(path: Path) -> list[str]:
    """Return the classes that `metainfo` of a config's datasets names, none where it names none.

    Those of the training are what a network learned; other loaders count if it states none.
    """
    from mmengine.config import Config as StockConfig

    from segtrain.recipes import as_json
    from segtrain.stored_weights import plain_names

    with named_faults(str(path)):
        whole = as_json(StockConfig.fromfile(path))
    named = (names for loader in LOADERS for names in _stated_classes(whole.get(loader)))
    return plain_names(next(named, None))


def _stated_classes(value: Any) -> Iterator[list[Any]]:
    """Yield the lists of classes in a loader, whose dataset may lie in others that wrap it."""
    if isinstance(value, dict):
        meta = value.get("metainfo")
        if isinstance(meta, dict) and isinstance(meta.get("classes"), list):
            yield meta["classes"]
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    for item in items:
        yield from _stated_classes(item)


def infer_resolution(recipe: dict[str, Any]) -> str:
    """Return the resolution of protocols that the scale of a test pipeline belongs to.

    Their high resolution is that of Cityscapes' frames, 2048x1024.
    """
    resizing = [step for step in recipe["test_pipeline"] if step["type"] in RESIZING]
    sides = [side for step in resizing for key in SCALES for side in _numbers(step.get(key))]
    return "high" if max(sides, default=0) >= HIGH_SIDE_PX else "low"


def _numbers(value: Any) -> list[float]:
    values = value if isinstance(value, list) else [value]
    return [one for one in values if isinstance(one, int | float)]


def run(config: Config) -> None:
    """Build the network with its weights, so that what is written is known to fit, and write it."""
    from mmengine.config import Config as StockConfig

    from pipeline.runs import mark_finished
    from segtrain.recipes import build_model
    from segtrain.stored_weights import read_weights

    recipe = read_recipe(config.config_file)
    saved = {"recipe": recipe, "diffusion": {}, "features": {}}
    saved_recipe.check(config.config_file, saved)
    require_class_order(config.weights, config.config_file)
    weights = read_weights(config.weights)
    model = build(config.config_file, lambda: build_model(recipe), weights, frozen=False)
    require_writable(config.output)
    save_trained(config.output, StockConfig(recipe), model, {"imported": str(config.weights)})
    mark_finished(config.output, 0)
    print(
        f"{config.output}: {len(weights)} tensors, test_resolution {recipe['test_resolution']}; "
        "score it with segtrain/score.py"
    )


def main() -> int | None:
    """Run the command line."""
    config, call = parse(Config, __doc__)
    check(config)
    if call.dry_run:
        show(config)
        print(f"would write {config.output}")
        return 0
    run(config)
    return 0


if __name__ == "__main__":
    guard(main)
