"""Train a segmentation network on source images, alone or mixed with generated and other ones.

    accelerate launch segtrain/train.py configs/segtrain/segformer_pocket.py \\
        --source runs/mine/source --generated runs/mine/generated \\
        --generated-share 0.5 --output runs/mine/segtrain/generated

On several CPU processes: torchrun --nproc-per-node 2 -- segtrain/train.py ... The same command
continues a stopped run. A small version for the CPU: --steps 20 --batch-size 2.
"""

import re
import sys
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

if sys.path and sys.path[0] == str(Path(__file__).resolve().parent):  # see CONTRIBUTING.md
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import tyro

from pipeline import models, ranks
from pipeline.config import parse, show, to_mapping
from pipeline.errors import UserError, guard
from pipeline.origins import origin_of
from pipeline.output_files import check_output_file
from pipeline.output_folders import RUN, check_output, require_same, require_writable
from pipeline.setting_checks import require_between, require_positive
from segtrain.backbone_weights import load_backbone, read_shapes
from segtrain.identity import identify
from segtrain.mixing import LEAST_SHARE, MixedSamples, RareClassCrops
from segtrain.protocol import require_catalogued
from segtrain.recipe_checks import named_faults
from segtrain.recipes import diffusion_models, require_recipe
from segtrain.sets import GENERATED, SelfTraining, named_sets
from segtrain.training_data import (
    TrainingData,
    describe_sets,
    labelled_samples,
    open_training_data,
    require_all_sampled,
    unlabelled_samples,
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
    generated_limit: int | None = None
    """Use only the first N samples of the generated set; None uses all."""
    sets: tuple[str, ...] = ()
    """More labelled sets as NAME=FOLDER:SHARE; the recipe's `sets` has the scale of each name."""
    train_on_target: tuple[str, ...] = ()
    """Targets whose test data may be trained on: names in the catalogue, or names of folders of
    other targets."""
    rare_classes: RareClassCrops = field(default_factory=lambda: RareClassCrops(enabled=False))
    """Sample images and crops with rare classes more often, in all sets."""
    self_training: SelfTraining = field(default_factory=SelfTraining)
    """Also train on unlabelled images of a target (unsupervised domain adaptation)."""
    steps: int | None = None
    """Updates; None takes the recipe's."""
    batch_size: int | None = None
    """Samples per process and micro-batch; None takes the recipe's."""
    gradient_accumulation: int = 1
    """Micro-batches per update."""
    ema_decay: float = 0.0
    """Decay of the exponential moving average of the weights, which is saved in the end; 0 keeps no
    average and saves the trained weights."""
    seed: int = 0
    """Seed of initial weights, data order and augmentation."""
    base: str = ""
    """Base model of a diffusion backbone: pocket, a diffusers folder, or a hub id pinned as
    owner/name@<40-digit commit>; empty takes the recipe's."""
    cfg_options: tuple[str, ...] = ()
    """Recipe settings to change, for example model.ipkl=None train_pipeline.3.crop_size=512;
    the numbers count the entries of a list from 0."""
    init: Path | None = None
    """Safetensors file with initial weights of the backbone. None: those that the recipe names, or
    else random ones."""
    precision: Literal["fp32", "fp16", "bf16"] = "fp32"
    """Precision of forward and backward passes (autocast); the weights stay fp32."""
    workers: int = 0
    """Loader processes per training process; results do not depend on it."""
    checkpoint_interval: int = 400
    """Updates between checkpoints."""
    log_interval: int = 20
    """Updates between log lines."""
    show_batch: Path | None = None
    """Write the first batch, images and labels as the network receives them, to this PNG file, and
    stop before the training."""


def check(config: Config) -> TrainingData:
    """Find bad input before torch or weights load. Returns the data of the training."""
    require_recipe(config.recipe)
    check_ranges(config)
    if wrong := [option for option in config.cfg_options if not re.match(r"[\w.]+=", option)]:
        raise UserError(f"--cfg-options {wrong[0]}: must be key=value, the key with dots")
    if config.generated_limit is not None and config.generated is None:
        raise UserError("--generated-limit needs --generated DIR")
    if config.show_batch:
        check_output_file(config.show_batch, None, "sheet", setting="--show-batch")
    if config.base:
        models.find_base(config.base)
    if config.init:
        read_shapes(config.init)
    sets = named_sets(config.source, config.generated, config.generated_share, config.sets)
    given = {origin_of(one.folder).name for one in sets}
    others = [name for name in config.train_on_target if name not in given]
    require_catalogued(others, "--train-on-target")
    data = open_training_data(
        sets,
        config.self_training.target,
        generated_limit=config.generated_limit,
        targets_allowed=config.train_on_target,
    )
    check_output(config.output, RUN, inputs=data.folders())
    return data


def check_ranges(config: Config) -> None:
    """Raise `UserError` for a setting out of range."""
    require_positive(config, "checkpoint_interval", "log_interval")
    for name, most in (("steps", 10**9), ("batch_size", 2**16), ("generated_limit", 10**9)):
        if getattr(config, name) is not None:
            require_between(config, 1, most, name)
    require_between(config, 1, 2**16, "gradient_accumulation")
    require_between(config, 0, 1024, "workers")
    if not 0 <= config.ema_decay < 1:
        raise UserError(f"--ema-decay {config.ema_decay:g}: must be at least 0 and below 1")
    config.rare_classes.check()
    config.self_training.check()


def check_run(config: Config, recipe: Any, data: TrainingData) -> dict[str, Any] | None:
    """Return the run's identity on the first process, None on others, which wait for it later.

    Raises `UserError` for models that cannot be loaded, and if the folder holds another run.
    """
    require_writable(config.output)
    require_initial_weights(config, recipe)
    with named_faults(str(config.recipe)):
        models.check_loadable(*diffusion_models(recipe["model"]["backbone"]).items())
    if not ranks.is_main():
        return None
    identity = identify(to_mapping(config), recipe, data)
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


def require_boundary_sets(config: Config, recipe: Any, data: TrainingData) -> None:
    """Raise `UserError` if the boundary loss is for sets that the training does not have."""
    options = recipe["model"].get("boundary")
    wanted = options.get("sets", (GENERATED,)) if isinstance(options, dict) else ()
    if not isinstance(wanted, list | tuple) or not all(isinstance(w, str) for w in wanted):
        raise UserError(
            f"{config.recipe}: model.boundary.sets must be a list of names of sets; correct it"
        )
    names = [one.name for one in data.sets if one.share >= LEAST_SHARE]
    if wanted and not set(wanted) & set(names):
        raise UserError(
            f"{config.recipe}: model.boundary.sets {tuple(wanted)} names none of the training's "
            f"sets ({', '.join(names)}), so the boundary loss would be 0; add such a set, or give "
            "--cfg-options model.boundary=None"
        )


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


def make_plan(config: Config, recipe: Any) -> Any:
    """Return what the training loop needs to know of settings and recipe."""
    from segtrain.loop import Plan

    clip = recipe.optim_wrapper.get("clip_grad") or {}
    return Plan(
        folder=config.output,
        steps=recipe.train_cfg.max_iters,
        batch_size=recipe.train_dataloader.batch_size,
        seed=config.seed,
        workers=config.workers,
        checkpoint_interval=config.checkpoint_interval,
        log_interval=config.log_interval,
        gradient_accumulation=config.gradient_accumulation,
        clip_norm=clip.get("max_norm"),
    )


def build_samples(config: Config, recipe: Any, data: TrainingData) -> tuple[MixedSamples, Any]:
    """Build the samplers of labelled and unlabelled data (None without self-training)."""
    where = str(config.recipe)
    labelled = labelled_samples(recipe, data, config.rare_classes, where)
    return labelled, unlabelled_samples(recipe, data, where)


def run(config: Config, data: TrainingData) -> None:
    """Train as `config` says, from the newest checkpoint of its folder.

    Nothing is written before all that the recipe names has been built.
    """
    from pipeline import runs
    from segtrain import checkpoints, loop, recipes, saved_recipe
    from segtrain.batch_sheet import write_first_batch

    runs.require_precision("--precision", config.precision)
    recipe = recipes.load_recipe(config.recipe, config.cfg_options)
    recipes.override(recipe, steps=config.steps, batch_size=config.batch_size, base=config.base)
    require_boundary_sets(config, recipe, data)
    plan = make_plan(config, recipe)
    labelled, unlabelled = build_samples(config, recipe, data)
    if config.show_batch:
        network, _ = build_network(config, recipe)
        task = make_task(config, plan, network, (labelled, unlabelled))
        with named_faults(str(config.recipe), loop.FIRST_STEP_REMEDY):
            write_first_batch(config.show_batch, task)
        return
    identity = check_run(config, recipe, data)
    if runs.is_finished(config.output, plan.steps):
        print(f"{config.output}: already trained for {plan.steps} steps")
        return
    num_samples = plan.steps * plan.batch_size * plan.gradient_accumulation
    shares = {one.name: one.share for one in data.sets}
    require_all_sampled(labelled, shares, config.seed, num_samples * ranks.world_size())
    model, optimizer = build_network(config, recipe)
    if identity:
        saved_recipe.warn(recipes.as_json(recipe))
        runs.open_run(config.output, identity, is_main=True, settings=to_mapping(config))
    accelerator = runs.make_accelerator(config.output, precision=config.precision)
    accelerator.print(describe_sets(recipe, data))
    task = make_task(config, plan, to_device(model, accelerator), (labelled, unlabelled))
    factor = recipes.learning_rate_factor(recipe.param_scheduler)
    times = loop.train(accelerator, task.network, optimizer, task, plan, factor)
    if accelerator.is_main_process:
        counts = {name: len(found) for name, found in data.samples.items()}
        with task.average.in_place() if task.average else nullcontext():
            checkpoints.save_trained(config.output, recipe, task.network, {"samples": counts})
        runs.mark_finished(config.output, plan.steps, processes=accelerator.num_processes, **times)
    runs.end(accelerator)


def to_device(model: Any, accelerator: Any) -> Any:
    """Move the network to its device; the optimizer goes on with the same parameters."""
    import torch

    if accelerator.device.type == "cuda" and accelerator.num_processes > 1:
        model = torch.nn.SyncBatchNorm.convert_sync_batchnorm(model)
    return model.to(accelerator.device)


def make_task(config: Config, plan: Any, network: Any, samples: tuple[MixedSamples, Any]) -> Any:
    """Return the task of training `network` on labelled and unlabelled samples."""
    from segtrain.loop import Segmentation
    from segtrain.self_training import Teacher
    from segtrain.weight_average import WeightAverage

    labelled, unlabelled = samples
    return Segmentation(
        network,
        labelled,
        plan,
        sets=labelled.names,
        mixes_classes=labelled.class_mixing is not None,
        teacher=Teacher(network, config.self_training, unlabelled) if unlabelled else None,
        average=WeightAverage(network, config.ema_decay) if config.ema_decay else None,
    )


def main() -> int | None:
    """Run the command line."""
    config, call = parse(Config, __doc__)
    data = check(config)
    if call.dry_run:
        show(config)
        for one in data.sets:
            count = len(data.samples[one.name])
            print(f"would take {one.share:.0%} of the samples from {count} {one.name} images")
        return 0
    run(config, data)
    return 0


if __name__ == "__main__":
    guard(main)
