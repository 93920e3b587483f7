"""Train a segmentation network on source images, alone or mixed with generated and other ones.

    accelerate launch segtrain/train.py configs/segtrain/segformer_pocket.py \\
        --source runs/mine/source --generated runs/mine/generated \\
        --generated-share 0.5 --output runs/mine/segtrain/generated

On several CPU processes: torchrun --nproc-per-node 2 -- segtrain/train.py ... The same command
continues a stopped run. A small version for the CPU: --steps 20 --batch-size 2.
"""

import os
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

if sys.path and sys.path[0] == str(Path(__file__).resolve().parent):  # see CONTRIBUTING.md
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import tyro

from pipeline import models
from pipeline.config import (
    parse,
    require_between,
    require_positive,
    show,
    to_mapping,
)
from pipeline.dataset import (
    Sample,
    check_dataset,
    check_images,
    find_images,
    open_dataset,
)
from pipeline.errors import UserError, guard
from pipeline.identity import file_digest, run_identity
from pipeline.output_folders import RUN, check_output, require_same, require_writable
from pipeline.rare_classes import RareClassSampling, index_classes
from segtrain.backbone_weights import load_backbone, read_shapes
from segtrain.class_mixing import read_class_mixing
from segtrain.mixing import MixedSamples, SelfTraining, seeded_globals
from segtrain.recipe_checks import check_sample, named_faults
from segtrain.recipes import diffusion_models, require_recipe
from segtrain.sets import (
    TARGET,
    NamedSet,
    declared_scale,
    named_sets,
    set_pipeline,
)


@dataclass(frozen=True)
class Config:
    """Settings of one training."""

    RENAMED: ClassVar = {
        "iterations": "steps",
        "backbone_weights": "init",
        "checkpoint_every": "checkpoint_interval",
        "log_every": "log_interval",
    }

    recipe: tyro.conf.Positional[Path] = Path()
    """mmsegmentation config file, one of configs/segtrain."""
    output: Path = Path("runs/mine/segtrain/source")
    """Run folder: weights, recipe, metrics, checkpoints."""
    source: Path = Path("runs/mine/source")
    """Labelled dataset folder of the source."""
    generated: Path | None = None
    """Labelled dataset folder of generated images."""
    generated_share: float = 0.0
    """Probability that a training sample comes from the generated set, 0 to 1."""
    sets: tuple[str, ...] = ()
    """More labelled sets as NAME=FOLDER:SHARE; the recipe's `sets` has the scale of each name."""
    rare_classes: RareClassSampling = field(
        default_factory=lambda: RareClassSampling(enabled=False)
    )
    """Draw images and crops with rare classes more often, in all sets."""
    self_training: SelfTraining = field(default_factory=SelfTraining)
    """Also train on unlabelled images of a target (unsupervised domain adaptation)."""
    steps: int | None = None
    """Updates; None takes the recipe's."""
    batch_size: int | None = None
    """Samples per process and update; None takes the recipe's."""
    seed: int = 0
    """Seed of initial weights, data order and augmentation."""
    base: str = ""
    """Diffusion base of a diffusion backbone; empty takes the recipe's."""
    cfg_options: tuple[str, ...] = ()
    """Recipe settings to change, for example model.ipkl=None train_pipeline.3.crop_size=512;
    the numbers count the entries of a list from 0."""
    init: Path | None = None
    """Safetensors file with initial weights of the backbone; None starts from random ones."""
    precision: Literal["fp32", "fp16", "bf16"] = "fp32"
    """Precision of forward and backward passes (autocast); the weights stay fp32."""
    workers: int = 0
    """Loader processes per training process; results do not depend on it."""
    checkpoint_interval: int = 400
    """Updates between checkpoints."""
    log_interval: int = 20
    """Updates between log lines."""


def check(config: Config) -> dict[str, list[Sample]]:
    """Find bad input before torch or weights load. Returns the samples of each set."""
    require_recipe(config.recipe)
    parts = sets_of(config)
    check_output(config.output, RUN, inputs=inputs_of(config, parts))
    require_positive(config, "checkpoint_interval", "log_interval")
    for name, most in (("steps", 10**9), ("batch_size", 2**16)):
        if getattr(config, name) is not None:
            require_between(config, 1, most, name)
    for name in ("ema_decay", "confidence"):
        if not 0 <= getattr(config.self_training, name) < 1:
            setting = f"--self-training.{name.replace('_', '-')}"
            raise UserError(f"{setting}: must be at least 0 and below 1")
    if config.self_training.start < 0:
        raise UserError(f"--self-training.start {config.self_training.start}: must be 0 or more")
    require_between(config, 0, 1024, "workers")
    config.rare_classes.check()
    if wrong := [option for option in config.cfg_options if not re.match(r"[\w.]+=", option)]:
        raise UserError(f"--cfg-options {wrong[0]}: must be key=value, the key with dots")
    if config.base:
        models.find_base(config.base)
    if config.self_training.target:
        check_images(find_images(config.self_training.target))
    if config.init:
        read_shapes(config.init)
    sets = {one.name: open_dataset(one.folder, labelled=True) for one in parts}
    for samples in sets.values():
        check_dataset(samples)
    return sets


def inputs_of(config: Config, parts: list[NamedSet]) -> dict[str, list[Path]]:
    """Return the folders that a training reads, by the setting that names them."""
    folders: dict[str, list[Path]] = {}
    for one in parts:
        setting = f"--{one.name}" if one.name in ("source", "generated") else "--sets"
        folders.setdefault(setting, []).append(one.folder)
    if config.self_training.target:
        folders["--self-training.target"] = [Path(config.self_training.target)]
    return folders


def sets_of(config: Config) -> list[NamedSet]:
    """Return the labelled sets of a training, the source last."""
    return named_sets(config.source, config.generated, config.generated_share, config.sets)


def identify(config: Config, recipe: Any, sets: dict[str, list[Sample]]) -> dict[str, Any]:
    """Return what makes two runs the same run: settings, recipe, contents of models and data.

    Settings without effect on the result stay out, and paths, whose contents stand in their place.
    """
    from segtrain.recipes import as_json

    plain, target = as_json(recipe), config.self_training.target
    settings = to_mapping(config)
    kept_out = ("output", "workers", "checkpoint_interval", "log_interval", "recipe", "cfg_options")
    for name in (*kept_out, "source", "generated", "generated_share", "base"):
        settings.pop(name)
    settings["self_training"].pop("target")
    weights = config.init
    names = [*sets, TARGET] if target else list(sets)
    models_of = diffusion_models(plain["model"]["backbone"])
    settings |= {
        "sets": {one.name: one.share for one in sets_of(config)},
        "transforms": {name: set_pipeline(plain, name) for name in names},
        "steps": plain["train_cfg"]["max_iters"],
        "batch_size": plain["train_dataloader"]["batch_size"],
        "init": file_digest(weights) if weights else None,
        **{name: plain[name] for name in ("model", "optim_wrapper", "param_scheduler")},
    }
    if plain.get("class_mixing"):
        settings["class_mixing"] = plain["class_mixing"]
    for name in models_of:
        settings["model"]["backbone"].pop(name)
    settings["model_files"] = {
        name: file_digest(Path(text)) for name, text in named_files(plain["model"])
    }
    unlabelled = {TARGET: find_images(target)} if target else {}
    world = int(os.environ.get("WORLD_SIZE", "1"))
    return run_identity(settings, models=models_of, data={**sets, **unlabelled}, processes=world)


def named_files(value: Any, where: str = "model") -> Iterator[tuple[str, str]]:
    """Yield key and path of the files that a recipe's model names, initial weights above all."""
    if isinstance(value, dict | list):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from named_files(inner, f"{where}.{key}")
    elif isinstance(value, str) and len(value) < 1024 and "/" in value and os.path.isfile(value):
        yield where, value


def check_run(config: Config, recipe: Any, sets: dict[str, list[Sample]]) -> dict[str, Any] | None:
    """Return the run's identity on the first process, None on others, which wait for it later.

    Raises `UserError` for models that cannot be loaded, and if the folder holds another run.
    """
    require_writable(config.output)
    require_initial_weights(config, recipe)
    with named_faults(str(config.recipe)):
        models.check_loadable(*diffusion_models(recipe["model"]["backbone"]).items())
    if os.environ.get("RANK", "0") != "0":
        return None
    identity = identify(config, recipe, sets)
    require_same(config.output, RUN, identity)
    return identity


def require_initial_weights(config: Config, recipe: Any) -> None:
    """Raise `UserError` if features are to stay near those of weights that nobody gave."""
    model = recipe["model"]
    named = model["backbone"].get("pretrained") or model["backbone"].get("init_cfg")
    if model.get("feature_distance") is not None and not (config.init or named):
        raise UserError(
            f"{config.recipe}: feature_distance needs pretrained initial weights of the backbone; "
            "give --init FILE, or --cfg-options model.feature_distance=None"
        )


def build_samples(config: Config, recipe: Any, sets: dict[str, list[Sample]]) -> MixedSamples:
    """Build what draws the labelled samples."""
    from segtrain.recipes import build_dataset

    rare = {
        name: index_classes(samples, config.rare_classes)
        for name, samples in sets.items()
        if config.rare_classes.enabled
    }
    parts, datasets = sets_of(config), {}
    for one in parts:
        with named_faults(str(config.recipe)):
            datasets[one.name] = build_dataset(recipe, one.folder, one.name)
        with named_faults(f"{config.recipe}: transforms of {one.name}"), seeded_globals(0):
            check_sample(datasets[one.name].pipeline(datasets[one.name].get_data_info(0)))
    return MixedSamples(
        datasets,
        {one.name: one.share for one in parts},
        rare=rare,
        min_pixels=config.rare_classes.min_pixels,
        class_mixing=read_class_mixing(recipe),
    )


def describe_sets(config: Config, recipe: Any, sets: dict[str, list[Sample]]) -> str:
    """Return one line for each set: how often it is drawn, and at which scale."""
    lines = []
    for one in sets_of(config):
        scale = declared_scale(set_pipeline(recipe, one.name))
        told = " to ".join(f"{factor:.3g}" for factor in sorted(set(scale))) if scale else "any"
        lines.append(
            f"{one.name}: {one.share:.0%} of the samples, from {len(sets[one.name])} "
            f"images; objects at {told} times their size in the files"
        )
    return "\n".join(lines)


def build_network(config: Config, recipe: Any) -> tuple[Any, Any]:
    """Build the recipe's network, with the initial weights of the run, and its optimizer."""
    import torch

    from pipeline import seeding
    from segtrain.recipes import build_model, build_optimizer

    torch.manual_seed(seeding.seed_of(config.seed, "initial weights"))
    with named_faults(str(config.recipe)):
        model = build_model(recipe)
        optimizer = build_optimizer(recipe, model)
    if config.init:
        load_backbone(model.backbone, config.init)
        if hasattr(model, "keep_reference"):  # of segtrain.generalization
            model.keep_reference()
    return model, optimizer


def build_unlabelled(config: Config, recipe: Any) -> Any:
    """Build what draws the unlabelled samples of self-training; None without."""
    if not config.self_training.target:
        return None
    from segtrain.self_training import UnlabelledSamples

    with named_faults(str(config.recipe)):
        pipeline = set_pipeline(recipe, TARGET)
        return UnlabelledSamples(find_images(config.self_training.target), pipeline)


def run(config: Config, sets: dict[str, list[Sample]]) -> None:
    """Train as `config` says, from the newest checkpoint of its folder.

    Nothing is written before all that the recipe names has been built.
    """
    from pipeline import runs
    from segtrain import checkpoints, loop, recipes, saved_recipe

    recipe = recipes.load_recipe(config.recipe, config.cfg_options)
    recipes.override(recipe, steps=config.steps, batch_size=config.batch_size, base=config.base)
    steps = recipe.train_cfg.max_iters
    draw, unlabelled = build_samples(config, recipe, sets), build_unlabelled(config, recipe)
    identity = check_run(config, recipe, sets)
    if runs.is_finished(config.output, steps):
        print(f"{config.output}: already trained for {steps} steps")
        return
    model, optimizer = build_network(config, recipe)
    if identity:
        saved_recipe.warn(recipes.as_json(recipe))
        runs.open_run(config.output, identity, is_main=True, settings=to_mapping(config))
    accelerator = runs.make_accelerator(config.output, precision=config.precision)
    clip = recipe.optim_wrapper.get("clip_grad") or {}
    plan = loop.Plan(
        folder=config.output,
        steps=steps,
        batch_size=recipe.train_dataloader.batch_size,
        seed=config.seed,
        workers=config.workers,
        checkpoint_interval=config.checkpoint_interval,
        log_interval=config.log_interval,
        clip_norm=clip.get("max_norm"),
    )
    accelerator.print(describe_sets(config, recipe, sets))
    model, teacher = place(config, model, accelerator, unlabelled)
    factor = recipes.learning_rate_factor(recipe.param_scheduler)
    task = loop.Segmentation(model, draw, plan, teacher)
    facts = loop.train(accelerator, model, optimizer, task, plan, factor)
    if accelerator.is_main_process:
        counts = {name: len(samples) for name, samples in sets.items()}
        checkpoints.save_trained(config.output, recipe, model, {"samples": counts})
        runs.mark_finished(config.output, steps, processes=accelerator.num_processes, **facts)
    accelerator.wait_for_everyone()
    accelerator.end_training()


def place(config: Config, model: Any, accelerator: Any, unlabelled: Any) -> tuple[Any, Any]:
    """Move the network to its device, and make its teacher of self-training there, if any.

    The optimizer goes on with the same parameters.
    """
    import torch

    from segtrain.self_training import Teacher

    if accelerator.device.type == "cuda" and accelerator.num_processes > 1:
        model = torch.nn.SyncBatchNorm.convert_sync_batchnorm(model)
    model = model.to(accelerator.device)
    return model, Teacher(model, config.self_training, unlabelled) if unlabelled else None


def main() -> int | None:
    """Run the command line."""
    config, call = parse(Config, __doc__)
    sets = check(config)
    if call.dry_run:
        show(config)
        for one in sets_of(config):
            count = len(sets[one.name])
            print(f"would draw {one.share:.0%} of the samples from {count} {one.name} pictures")
        return 0
    run(config, sets)
    return 0


if __name__ == "__main__":
    guard(main)
