"""Checks of recipes: each fault is one line, before any weights are loaded.

A recipe is Python and may name any part of mmsegmentation, so what its code or its parts raise
cannot be listed. `named_faults` turns all of it into a `UserError`; the checks here find what would
otherwise run and be wrong.
"""

import contextlib
import math
import re
from collections.abc import Iterator, Sequence
from typing import Any

from pipeline.errors import UserError
from pipeline.labels import NUM_CLASSES
from pipeline.setting_checks import LARGEST

SECTIONS = {
    "model": dict, "train_pipeline": list, "test_pipeline": list, "train_dataloader": dict,
    "train_cfg": dict, "optim_wrapper": dict, "param_scheduler": list,
}  # fmt: skip
USED = (  # what a training by segtrain/train.py reads; the rest serves mmengine's Runner
    "model", "sets", "train_pipeline", "test_pipeline", "test_resolution", "optim_wrapper",
    "param_scheduler", "class_mixing", "train_cfg.max_iters", "train_dataloader.batch_size",
)  # fmt: skip
OPTIM_WRAPPER = ("type", "optimizer", "paramwise_cfg", "clip_grad")
SCHEDULERS = {
    "LinearLR": ("type", "by_epoch", "begin", "end", "start_factor", "end_factor"),
    "PolyLR": ("type", "by_epoch", "begin", "end", "power", "eta_min"),
}
RENAMED = {
    "model.knowledge": "model.ipkl",
    "model.randomization": "model.prompt_randomization",
    "model.ipkl.paths": "model.ipkl.max_classes",
    "model.backbone.faithful": "model.backbone.as_released",
    **{
        f"model.backbone.{name}": f"model.backbone.{group}.{name}"
        for group, names in {
            "features": ("taps", "trajectory", "aggregation", "out_channels", "pyramid"),
            "text": ("categories", "scenes", "class_names", "templates", "adapter"),
            "training": ("rank", "checkpointing", "random_weights"),
        }.items()
        for name in names
    },
}
"""Settings of diffusion networks by their former names."""
MAX_REASON = 300


@contextlib.contextmanager
def named_faults(where: str, remedy: str = "correct the recipe") -> Iterator[None]:
    """Turn any fault inside the block into a `UserError` that begins with `where`."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{where}: {error}") from error
    except RecursionError as error:
        raise UserError(f"{where}: names itself in a circle, by its _base_; {remedy}") from error
    except (Exception, SystemExit) as error:  # raised by code of the recipe's own choosing
        raise UserError(f"{where}: {reason(error)}; {remedy}") from error


def reason(error: BaseException) -> str:
    """Return the last cause that an error of mmengine tells, in one line."""
    text = " ".join(str(error.args[0] if len(error.args) == 1 else error).split())
    text = re.split(r"\.py: ", text)[-1].split(" Please check whether")[0].rstrip(". ")
    if isinstance(error, AssertionError | KeyError | NameError | IndexError) or not text:
        text = f"{type(error).__name__} {text}".rstrip()
    return text if len(text) <= MAX_REASON else f"{text[:MAX_REASON]} ..."


def require_used(option: str, key: str) -> None:
    """Raise `UserError` for a setting whose change would have no effect on a training."""
    if not any(f"{key}.".startswith(f"{used}.") for used in USED):
        raise UserError(
            f"--cfg-options {option}: changing {key} has no effect here; what has: "
            f"{', '.join(USED)}"
        )


def require_sections(recipe: Any) -> None:
    """Raise `UserError` unless a recipe has all that a training needs."""
    if missing := [name for name in SECTIONS if name not in recipe]:
        raise UserError(f"lacks {', '.join(missing)}; see configs/segtrain")


def former_name(recipe: Any) -> str:
    """Return what to say of the first setting of a recipe under a former name, "" for none."""
    if recipe["model"].get("type") != "StreetforgeDiffusionSegmentor":
        return ""
    for old, new in RENAMED.items():
        value = recipe
        for key in old.split("."):
            value = value.get(key) if hasattr(value, "get") else None
            if value is None:
                break
        else:
            return f"{old} is called {new} now"
    return ""


def check_recipe(recipe: Any) -> None:
    """Raise `UserError` naming the key of a recipe with a value that cannot be right."""
    require_sections(recipe)
    for name, kind in SECTIONS.items():
        if not isinstance(recipe[name], kind):
            what = "a dict" if kind is dict else "a list"
            raise UserError(f"{name} must be {what}, not {recipe[name]!r:.80}; correct the recipe")
        _require_finite(recipe[name], name)
    if (resolution := recipe.get("test_resolution", "low")) not in ("low", "high"):
        raise UserError(f"test_resolution {resolution!r:.80}: must be low or high")
    sets = recipe.get("sets", {})
    if not isinstance(sets, dict):
        raise UserError(f"sets must be a dict, not {sets!r:.80}; see segtrain/sets.py")
    _require_finite(sets, "sets")
    _check_model(recipe["model"])
    if message := former_name(recipe):
        raise UserError(f"{message}; rename it")
    for name in ("train_pipeline", "test_pipeline"):
        _check_steps(recipe[name], name)
    for name, one in sets.items():
        if isinstance(one, dict) and "pipeline" in one:
            _check_steps(one["pipeline"], f"sets.{name}.pipeline")
    _require_count(recipe, "train_cfg", "max_iters")
    _require_count(recipe, "train_dataloader", "batch_size")
    _check_optimizer(recipe["optim_wrapper"])
    for number, scheduler in enumerate(recipe["param_scheduler"]):
        _check_scheduler(scheduler, f"param_scheduler.{number}")


def _require_finite(value: Any, where: str) -> None:
    if isinstance(value, dict):
        for key, inner in value.items():
            _require_finite(inner, f"{where}.{key}")
    elif isinstance(value, list | tuple):
        for number, inner in enumerate(value):
            _require_finite(inner, f"{where}.{number}")
    elif isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"{where} is {value}; give a finite number")


def _check_model(model: dict[str, Any]) -> None:
    _require_type(model, "model")
    _require_type(model.get("backbone"), "model.backbone")
    testing = model.get("test_cfg")
    if not isinstance(testing, dict) or testing.get("mode") not in ("whole", "slide"):
        raise UserError(
            f"model.test_cfg is {testing!r:.80}; must be a dict whose mode is whole or slide"
        )
    for name in ("decode_head", "auxiliary_head"):
        heads = model.get(name)
        if heads is None and name == "auxiliary_head":
            continue
        for head in heads if isinstance(heads, list | tuple) else [heads]:
            head = _require_type(head, f"model.{name}")
            if head.get("num_classes", NUM_CLASSES) != NUM_CLASSES:
                raise UserError(
                    f"model.{name}.num_classes is {head['num_classes']!r}; must be "
                    f"{NUM_CLASSES}, the classes of all labels here"
                )


def _require_type(part: Any, where: str) -> dict[str, Any]:
    """Return a part of a recipe, or raise `UserError` unless it is a dict with a type."""
    kind = part.get("type") if isinstance(part, dict) else None
    if not kind or not isinstance(kind, str | type):
        raise UserError(f"{where} must be a dict with a type, not {part!r:.80}; correct the recipe")
    return part


def _check_steps(steps: Sequence[Any], where: str) -> None:
    if not isinstance(steps, list | tuple) or not steps:
        raise UserError(
            f"{where} must be a list of transforms, not {steps!r:.80}; correct the recipe"
        )
    for number, step in enumerate(steps):
        _require_type(step, f"{where}.{number}")
        crop = step.get("crop_size", 1)
        sides = crop if isinstance(crop, list | tuple) else [crop]
        if not all(isinstance(side, int) and side > 0 for side in sides):
            raise UserError(
                f"{where}.{number}.crop_size is {crop!r}; must be (height, width) in "
                "whole pixels, 1 or more"
            )


def _require_count(recipe: Any, section: str, key: str) -> None:
    value = recipe[section].get(key)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise UserError(f"{section}.{key} is {value!r}; must be a whole number, 1 or more")


def _check_optimizer(wrapper: dict[str, Any]) -> None:
    if unknown := sorted(set(wrapper) - set(OPTIM_WRAPPER)):
        raise UserError(
            f"optim_wrapper.{unknown[0]} has no effect here; known: {', '.join(OPTIM_WRAPPER)}"
        )
    if wrapper.get("type", "OptimWrapper") != "OptimWrapper":
        raise UserError(
            f"optim_wrapper.type is {wrapper['type']!r}; must be OptimWrapper, for "
            "mixed precision use --precision"
        )
    optimizer = _require_type(wrapper.get("optimizer"), "optim_wrapper.optimizer")
    _require_above_zero(optimizer.get("lr"), "optim_wrapper.optimizer.lr")
    clip = wrapper.get("clip_grad")
    if clip is None:
        return
    if not isinstance(clip, dict):
        raise UserError(f"optim_wrapper.clip_grad must be a dict or None, not {clip!r:.80}")
    if set(clip) - {"max_norm"}:
        raise UserError(f"optim_wrapper.clip_grad {dict(clip)}: only max_norm has an effect here")
    _require_above_zero(clip.get("max_norm"), "optim_wrapper.clip_grad.max_norm")


def _require_above_zero(value: Any, where: str) -> None:
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value <= LARGEST:
        raise UserError(f"{where} is {value!r}; must be a number above 0, up to {LARGEST:.0e}")


def _check_scheduler(scheduler: Any, where: str) -> None:
    _require_type(scheduler, where)
    known = SCHEDULERS.get(scheduler["type"])
    if known is None or scheduler.get("by_epoch", True):
        raise UserError(
            f"{where} {scheduler['type']}: only {' and '.join(SCHEDULERS)} with "
            "by_epoch=False are supported"
        )
    if unknown := sorted(set(scheduler) - set(known)):
        raise UserError(f"{where}.{unknown[0]} is not known; known: {', '.join(known)}")
    begin, end = scheduler.get("begin", 0), scheduler.get("end")
    if not isinstance(begin, int) or not isinstance(end, int) or not 0 <= begin < end:
        raise UserError(
            f"{where}: begin {begin!r} and end {end!r} must be whole numbers, begin below end"
        )
    if scheduler.get("eta_min", 0) != 0 or scheduler.get("end_factor", 1) != 1:
        raise UserError(f"{where}: eta_min must be 0 and end_factor 1")
    for key, low, high in (("start_factor", 0, 1), ("power", 0, math.inf)):
        value = scheduler.get(key, 1)
        if not isinstance(value, int | float) or not low < value <= high:
            raise UserError(
                f"{where}.{key} is {value!r}; must be above {low}"
                + (f" and at most {high}" if high < math.inf else "")
            )


def check_sample(sample: Any) -> None:
    """Raise `UserError` unless transforms gave an image and a label of one size, packed."""
    label = getattr((sample or {}).get("data_samples"), "gt_sem_seg", None)
    if "inputs" not in (sample or {}) or label is None:
        raise UserError(
            "give no image with its label; begin with LoadImageFromFile and "
            "LoadAnnotations, end with PackSegInputs"
        )
    if sample["inputs"].shape[-2:] != label.data.shape[-2:]:
        raise UserError(
            f"give an image of {tuple(sample['inputs'].shape[-2:])} and a label of "
            f"{tuple(label.data.shape[-2:])} pixels; change both alike"
        )
