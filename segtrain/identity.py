"""What makes two trainings the same run: settings, recipe, contents of models and data."""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pipeline import ranks
from pipeline.identity import file_digest, run_identity
from segtrain.recipes import as_json, diffusion_models
from segtrain.sets import set_pipeline
from segtrain.training_data import TrainingData

WITHOUT_EFFECT = (
    "output", "workers", "checkpoint_interval", "log_interval", "show_batch", "train_on_target",
)  # fmt: skip
"""Settings that do not change the result."""
SEEN_ELSEWHERE = ("recipe", "cfg_options", "source", "generated", "generated_share", "base")
"""Settings whose effect is in the recipe, the shares, or the contents of data and models."""


def identify(config: Mapping[str, Any], recipe: Any, data: TrainingData) -> dict[str, Any]:
    """Return the identity of the run with the settings `config`, as the program stores it.

    Paths do not count; the contents of their files do.
    """
    plain = as_json(recipe)
    settings = {
        name: value
        for name, value in config.items()
        if name not in (*WITHOUT_EFFECT, *SEEN_ELSEWHERE)
    }
    settings["self_training"] = {
        name: value for name, value in config["self_training"].items() if name != "target"
    }
    settings |= {
        "sets": {one.name: one.share for one in data.sets},
        "transforms": {name: set_pipeline(plain, name) for name in data.names},
        "steps": plain["train_cfg"]["max_iters"],
        "batch_size": plain["train_dataloader"]["batch_size"],
        "init": file_digest(Path(config["init"])) if config["init"] else None,
        **{name: plain[name] for name in ("model", "optim_wrapper", "param_scheduler")},
    }
    if plain.get("class_mixing"):
        settings["class_mixing"] = plain["class_mixing"]
    models = diffusion_models(plain["model"]["backbone"])
    for name in models:
        settings["model"]["backbone"].pop(name)
    settings["model_files"] = {
        name: file_digest(Path(text)) for name, text in named_files(plain["model"])
    }
    world = ranks.world_size()
    return run_identity(settings, models=models, data=data.files(), processes=world)


def named_files(value: Any, where: str = "model") -> Iterator[tuple[str, str]]:
    """Yield key and path of the files that a recipe's model names, initial weights above all."""
    if isinstance(value, dict | list):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from named_files(inner, f"{where}.{key}")
    elif isinstance(value, str) and len(value) < 1024 and "/" in value and os.path.isfile(value):
        yield where, value
