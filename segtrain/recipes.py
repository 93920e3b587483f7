"""Reads mmsegmentation recipes, and builds from them what a training or a scoring needs.

From a recipe we use `model`, `train_pipeline`, `test_pipeline`, `train_dataloader.batch_size`,
`train_cfg.max_iters`, `optim_wrapper` and `param_scheduler` (LinearLR and PolyLR by iteration),
with mmsegmentation's own meaning, and `sets` (`segtrain.sets`). The rest serves mmengine's stock
Runner.
"""

import json
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pipeline import models
from pipeline.errors import UserError
from segtrain import recipe_checks
from segtrain.sets import SOURCE, set_pipeline


def require_recipe(path: Path) -> None:
    """Raise `UserError` unless `path` is a recipe file that parses; nothing is executed."""
    if path == Path() or not path.is_file():
        name = "no recipe given" if path == Path() else f"{path}: no such recipe"
        raise UserError(f"{name}; name one of configs/segtrain/*.py")
    if path.suffix != ".py":
        raise UserError(f"{path}: a recipe is an mmsegmentation config file ending in .py")
    try:
        compile(path.read_bytes(), str(path), "exec")
    except (SyntaxError, ValueError, RecursionError, MemoryError, OSError) as error:
        raise UserError(f"{path}: not a readable recipe ({error}); correct the file") from None


def load_recipe(path: Path, options: Sequence[str] = ()) -> Any:
    """Read a recipe with its `_base_` files, change it by `options`, and check its values."""
    with recipe_checks.named_faults(str(path)):
        from mmengine.config import Config

        import segtrain.registry  # noqa: F401

        recipe = Config.fromfile(path)
        recipe_checks.require_sections(recipe)
    change(recipe, options)
    with recipe_checks.named_faults(str(path)):
        recipe_checks.check_recipe(recipe)
    return recipe


def change(recipe: Any, options: Sequence[str]) -> None:
    """Apply settings `key=value` to `recipe` in place, with the meaning of mmengine's own.

    Raises `UserError` for a key whose parents the recipe lacks, or that nothing reads.
    """
    from mmengine.config import DictAction

    for option in options:
        key, _, value = option.partition("=")
        recipe_checks.require_used(option, key)
        place = recipe
        for part in key.split(".")[:-1]:
            place = _inside(place, part)
            if place is None:
                raise UserError(f"--cfg-options {option}: the recipe has no {part}")
        if any(value.count(a) != value.count(b) for a, b in ("[]", "()")):
            raise UserError(f"--cfg-options {option}: a bracket is not closed; close it")
        with recipe_checks.named_faults(f"--cfg-options {option}", "see the recipe"):
            recipe.merge_from_dict({key: DictAction._parse_iterable(value)})


def _inside(place: Any, part: str) -> Any:
    if isinstance(place, list | tuple):
        return place[int(part)] if part.isdigit() and int(part) < len(place) else None
    return place.get(part) if hasattr(place, "get") else None


def override(recipe: Any, *, steps: int | None, batch_size: int | None, base: str) -> None:
    """Apply the command line's settings to `recipe` in place.

    A schedule that ended at the recipe's `max_iters` ends at the new one. Where that leaves no
    room, before the end of a warm-up, all of them shrink alike.
    """
    if steps:
        schedulers, planned = recipe.param_scheduler, recipe.train_cfg.max_iters
        to_the_end = [scheduler["end"] == planned for scheduler in schedulers]
        for scheduler, whole in zip(schedulers, to_the_end, strict=True):
            if whole:
                scheduler["end"] = steps
        if any(scheduler.get("begin", 0) >= scheduler["end"] for scheduler in schedulers):
            for scheduler, whole in zip(schedulers, to_the_end, strict=True):
                if not whole:
                    scheduler["end"] = max(1, scheduler["end"] * steps // planned)
                begin = scheduler.get("begin", 0) * steps // planned
                scheduler["begin"] = min(begin, scheduler["end"] - 1)
        recipe.train_cfg.max_iters = steps
    if batch_size:
        recipe.train_dataloader.batch_size = batch_size
    if base:
        if "base" not in recipe.model.backbone:
            raise UserError(
                f"--base {base}: this recipe's backbone is not a diffusion model; drop it"
            )
        recipe.model.backbone.base = base


def diffusion_models(backbone: dict[str, Any]) -> dict[str, str]:
    """Return the folders or pinned ids of the frozen models of a backbone, by its option."""
    found = {"base": models.find_base(backbone["base"])} if backbone.get("base") else {}
    return found | (
        {"unet": str(models.find_folder(backbone["unet"], "unet"))} if backbone.get("unet") else {}
    )


def build_model(recipe: Any) -> Any:
    """Build the recipe's segmentor with initial weights sampled from torch's global stream."""
    from mmengine.config import ConfigDict
    from mmengine.logging import MMLogger
    from mmengine.registry import init_default_scope
    from mmseg.registry import MODELS

    init_default_scope("mmseg")
    if not MMLogger.check_instance_created("segtrain"):
        MMLogger.get_instance("segtrain", log_level="WARNING")  # or it lists every tensor
    with warnings.catch_warnings():
        # mmsegmentation recommends a mean over labelled pixels, which depends on the micro-batches
        warnings.filterwarnings("ignore", message="Default ``avg_non_ignore``")
        model = MODELS.build(ConfigDict(recipe["model"]))
    model.init_weights()
    return model


def build_dataset(
    recipe: Any, folder: Path, name: str = SOURCE, num_samples: int | None = None
) -> Any:
    """Build the dataset of `folder` with the training transforms of the named set.

    `num_samples`: only so many samples, the first ones; None for all.
    """
    from mmengine.registry import init_default_scope
    from mmseg.registry import DATASETS

    init_default_scope("mmseg")
    pipeline = set_pipeline(recipe, name)
    return DATASETS.build(
        {
            "type": "StreetforgeDataset",
            "data_root": str(folder),
            "pipeline": pipeline,
            "indices": num_samples,
        }
    )


def build_optimizer(recipe: Any, model: Any) -> Any:
    """Build the recipe's optimizer with its `paramwise_cfg`."""
    from mmengine.optim import DefaultOptimWrapperConstructor
    from mmengine.registry import OPTIMIZERS

    kind = recipe["optim_wrapper"]["optimizer"]["type"]
    if isinstance(kind, str) and OPTIMIZERS.get(kind) is None:
        raise UserError(f"optim_wrapper.optimizer.type {kind}: is not known; AdamW is, and SGD")
    wrapper = {"type": "OptimWrapper", "optimizer": recipe["optim_wrapper"]["optimizer"]}
    constructor = DefaultOptimWrapperConstructor(
        wrapper, recipe["optim_wrapper"].get("paramwise_cfg")
    )
    return constructor(model).optimizer


def learning_rate_factor(schedulers: Sequence[dict[str, Any]]) -> Callable[[int], float]:
    """Return the factor on the initial learning rates as a function of the iteration.

    LinearLR rises from `start_factor` to 1 over begin..end; PolyLR falls as
    (1 - (t - begin) / (end - begin)) ** power; outside its range a scheduler is constant.
    """

    def factor(step: int) -> float:
        value = 1.0
        for scheduler in schedulers:
            begin, end = scheduler.get("begin", 0), scheduler["end"]
            done = min(max((step - begin) / (end - begin), 0.0), 1.0)
            if scheduler["type"] == "PolyLR":
                value *= (1 - done) ** scheduler.get("power", 1.0)
            elif step < end:
                start = scheduler.get("start_factor", 1 / 3)
                value *= start + (1 - start) * done
        return value

    return factor


def as_json(recipe: Any) -> dict[str, Any]:
    """Return a recipe as plain JSON values."""
    return json.loads(json.dumps(recipe.to_dict(), default=str))


def with_tuples(steps: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return transforms of a saved recipe with tuples for the lists of JSON.

    mmcv takes no list for a size.
    """
    return [{k: tuple(v) if isinstance(v, list) else v for k, v in s.items()} for s in steps]
