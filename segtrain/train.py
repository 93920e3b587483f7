"""Train a segmentation network on source pictures, alone or mixed with generated ones.

    accelerate launch segtrain/train.py configs/segtrain/segformer_pocket.py \\
        --source runs/mine/source --generated runs/mine/generated \\
        --generated-share 0.5 --output runs/mine/segtrain/generated

On several CPU processes: torchrun --nproc-per-node 2 -- segtrain/train.py ... The same command
continues a stopped run. A small version for the CPU: --iterations 20 --batch-size 2.
"""

import os
import re
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

if sys.path and sys.path[0] == str(Path(__file__).resolve().parent):  # see CONTRIBUTING.md
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import tyro  # noqa: E402

from pipeline import files, models  # noqa: E402
from pipeline.config import parse, require_positive, show, to_mapping  # noqa: E402
from pipeline.dataset import (  # noqa: E402
    Sample,
    check_dataset,
    check_images,
    find_pictures,
    open_dataset,
)
from pipeline.errors import UserError, guard  # noqa: E402
from pipeline.rare_classes import RareClassSampling, index_classes  # noqa: E402
from segtrain.mixing import MixedSamples, SelfTraining, check_share  # noqa: E402
from segtrain.recipes import require_recipe  # noqa: E402


@dataclass(frozen=True)
class Config:
    """Settings of one training."""

    recipe: tyro.conf.Positional[Path] = Path()
    """mmsegmentation config file, one of configs/segtrain."""
    output: Path = Path("runs/mine/segtrain/source")
    """Run folder: weights, recipe, metrics, checkpoints."""
    source: Path = Path("runs/mine/source")
    """Labelled dataset folder of the source."""
    generated: Path | None = None
    """Labelled dataset folder of generated pictures."""
    generated_share: float = 0.0
    """Probability that a drawn sample comes from the generated set, 0 to 1."""
    rare_classes: RareClassSampling = field(
        default_factory=lambda: RareClassSampling(enabled=False)
    )
    """Draw pictures and crops with rare classes more often, in both sets."""
    self_training: SelfTraining = field(default_factory=SelfTraining)
    """Learn from unlabelled pictures of a target as well (unsupervised domain adaptation)."""
    iterations: int | None = None
    """Updates; None takes the recipe's."""
    batch_size: int | None = None
    """Samples per process and update; None takes the recipe's."""
    seed: int = 0
    """Seed of initial weights, data order and augmentation."""
    base: str = ""
    """Diffusion base of a diffusion backbone; empty takes the recipe's."""
    cfg_options: tuple[str, ...] = ()
    """Recipe settings to change, for example model.knowledge=None train_cfg.max_iters=500."""
    backbone_weights: Path | None = None
    """Safetensors file with initial weights of the backbone; None starts from random ones."""
    precision: Literal["no", "bf16", "fp16"] = "no"
    """Mixed precision."""
    workers: int = 0
    """Loader processes per training process; results do not depend on it."""
    checkpoint_every: int = 400
    """Updates between checkpoints."""
    log_every: int = 20
    """Updates between log lines."""


def check(config: Config) -> dict[str, list[Sample]]:
    """Find bad input before torch or weights load. Returns the samples of each set."""
    require_recipe(config.recipe)
    check_share(config.generated_share, config.generated)
    require_positive(config, "checkpoint_every", "log_every")
    for name in ("iterations", "batch_size"):
        if getattr(config, name) is not None:
            require_positive(config, name)
    for name in ("ema_decay", "confidence"):
        if not 0 <= getattr(config.self_training, name) < 1:
            setting = f"--self-training.{name.replace('_', '-')}"
            raise UserError(f"{setting}: must be at least 0 and below 1")
    if config.workers < 0:
        raise UserError(f"--workers {config.workers}: must be 0 or more")
    if wrong := [option for option in config.cfg_options if not re.match(r"[\w.]+=", option)]:
        raise UserError(f"--cfg-options {wrong[0]}: must be key=value, the key with dots")
    if config.base:
        models.find_base(config.base)
    if config.self_training.target:
        check_images(find_pictures(config.self_training.target))
    if config.backbone_weights and not config.backbone_weights.is_file():
        raise UserError(f"{config.backbone_weights}: no such file; check --backbone-weights")
    sets = {"source": open_dataset(config.source, labelled=True)}
    if config.generated:
        sets["generated"] = open_dataset(config.generated, labelled=True)
    for samples in sets.values():
        check_dataset(samples)
    return sets


def stored_config(config: Config, recipe: Any, sets: dict[str, list[Sample]], world: int) -> Any:
    """Return what makes two runs the same run; settings without effect on the result stay out."""
    from segtrain.recipes import as_json, diffusion_base

    mapping = to_mapping(config)
    for name in ("output", "workers", "checkpoint_every", "log_every", "iterations", "batch_size"):
        mapping.pop(name)
    counts = {name: len(samples) for name, samples in sets.items()}
    diffusion = diffusion_base(recipe)
    return {
        **mapping,
        "samples": counts,
        "processes": world,
        "diffusion": diffusion,
        "model": as_json(recipe)["model"],
        "iterations": recipe.train_cfg.max_iters,
        "batch_size": recipe.train_dataloader.batch_size,
        "train_pipeline": as_json(recipe)["train_pipeline"],
        "optim_wrapper": as_json(recipe)["optim_wrapper"],
        "param_scheduler": as_json(recipe)["param_scheduler"],
    }


def run(config: Config, sets: dict[str, list[Sample]]) -> None:
    """Train as `config` says, from the newest checkpoint of its folder."""
    import torch
    from safetensors.torch import load_file

    from pipeline import runs, seeding
    from segtrain import loop, recipes, saved_recipe
    from segtrain.self_training import Teacher, UnlabelledSamples

    recipe = recipes.load_recipe(config.recipe)
    recipes.change(recipe, config.cfg_options)
    recipes.override(
        recipe, iterations=config.iterations, batch_size=config.batch_size, base=config.base
    )
    if os.environ.get("RANK", "0") == "0":
        saved_recipe.warn(recipes.as_json(recipe))
    world = int(os.environ.get("WORLD_SIZE", "1"))
    stored = stored_config(config, recipe, sets, world)
    files.require_writable(config.output)
    runs.refuse_other_run(config.output, stored)
    accelerator = runs.make_accelerator(config.output, precision=config.precision)
    runs.open_run(config.output, stored, is_main=accelerator.is_main_process)
    iterations = recipe.train_cfg.max_iters
    if runs.is_finished(config.output, iterations):
        accelerator.print(f"{config.output}: already trained for {iterations} iterations")
        accelerator.end_training()
        return
    rare = {
        name: index_classes(samples, config.rare_classes)
        for name, samples in sets.items()
        if config.rare_classes.enabled
    }
    torch.manual_seed(seeding.seed_of(config.seed, "initial weights"))
    model = recipes.build_model(recipe)
    if config.backbone_weights:
        model.backbone.load_state_dict(load_file(config.backbone_weights))
    if accelerator.device.type == "cuda" and world > 1:
        model = torch.nn.SyncBatchNorm.convert_sync_batchnorm(model)
    model.to(accelerator.device)
    datasets = {name: recipes.build_dataset(recipe, getattr(config, name)) for name in sets}
    draw = MixedSamples(
        datasets["source"], datasets.get("generated"), config.generated_share,
        rare=rare, min_pixels=config.rare_classes.min_pixels,
    )  # fmt: skip
    clip = recipe.optim_wrapper.get("clip_grad") or {}
    plan = loop.Plan(
        folder=config.output,
        iterations=iterations,
        batch_size=recipe.train_dataloader.batch_size,
        seed=config.seed,
        workers=config.workers,
        checkpoint_every=config.checkpoint_every,
        log_every=config.log_every,
        clip_norm=clip.get("max_norm"),
    )
    optimizer = recipes.build_optimizer(recipe, model)
    teacher = None
    if config.self_training.target:
        pictures = find_pictures(config.self_training.target)
        unlabelled = UnlabelledSamples(pictures, recipe.train_pipeline)
        teacher = Teacher(model, config.self_training, unlabelled)
    factor = recipes.learning_rate_factor(recipe.param_scheduler)
    facts = loop.train(accelerator, model, optimizer, draw, factor, plan, teacher)
    if accelerator.is_main_process:
        recipes.save_trained(config.output, recipe, model, {"samples": stored["samples"]})
        runs.mark_finished(config.output, iterations, processes=world, **facts)
    accelerator.wait_for_everyone()
    accelerator.end_training()


def main() -> int | None:
    """Run the command line."""
    config, call = parse(Config, __doc__)
    sets = check(config)
    if call.dry_run:
        show(config)
        for name, samples in sets.items():
            share = config.generated_share if name == "generated" else 1 - config.generated_share
            print(f"would draw {share:.0%} of the samples from {len(samples)} {name} pictures")
        return 0
    run(config, sets)
    return 0


if __name__ == "__main__":
    guard(main)
