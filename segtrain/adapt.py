"""Adapt a network to a target by learning its scene prompt from unlabelled images.

    accelerate launch segtrain/adapt.py --checkpoint runs/mine/segtrain/ptdiffseg \\
        --target runs/mine/targets/dark_zurich --output runs/mine/segtrain/at_night

The test-time domain adaptation of PTDiffSeg (Gong et al., BMVC 2024). Only the scene tokens are
trained; everything else is frozen. The result has a few kilobytes; pass it as `--scene`, together
with the same checkpoint, to segtrain/predict.py and segtrain/score.py. `--mode offline` adapts on
the whole target. `--mode online` predicts each image, writes the prediction, and then trains on the
image once. A stop signal saves the current state; the same command continues a stopped run.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

if sys.path and sys.path[0] == str(Path(__file__).resolve().parent):  # see CONTRIBUTING.md
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from pipeline import files
from pipeline.config import parse, show, to_mapping
from pipeline.dataset import find_images
from pipeline.errors import UserError, guard
from pipeline.identity import file_digest, run_identity
from pipeline.output_folders import RUN, check_output, require_writable
from pipeline.setting_checks import require_between, require_positive
from segtrain.checkpoints import (
    SCENE_FILE,
    WEIGHTS_FILE,
    diffusion_base,
    require_trained,
)
from segtrain.prediction_names import name_predictions
from segtrain.protocol import protocol_of, require_images, require_size


@dataclass(frozen=True)
class Config:
    """Settings of one adaptation."""

    RENAMED: ClassVar = {
        "checkpoint_every": "checkpoint_interval",
        "log_every": "log_interval",
    }

    checkpoint: Path = Path("runs/mine/segtrain/ptdiffseg")
    """Output folder of segtrain/train.py, of a recipe with a diffusion backbone."""
    target: Path = Path("runs/mine/targets/dark_zurich")
    """Dataset folder or folder of images; labels are never read."""
    output: Path = Path("runs/mine/segtrain/adapted")
    """Folder to write to."""
    mode: Literal["offline", "online"] = "offline"
    """Learn from the target as a whole, or image by image after predicting it."""
    steps: int = 200
    """Updates; online makes one per image instead."""
    batch_size: int = 2
    """Images per process and update; online takes one."""
    learning_rate: float = 0.1
    """Learning rate of Adam, constant."""
    ema_decay: float = 0.9
    """Decay of the moving average of the tokens, which is saved."""
    confidence: float = 0.3
    """Smallest confidence of a pseudo-label, predicted with the averaged tokens; the loss weights
    all classes of an image equally."""
    scene: int = 0
    """Number of the recipe's scene prompt to start from."""
    base: str = ""
    """Folder of the base model, if it has moved since the training."""
    size_px: tuple[int, int] | None = None
    """Height and width that images are scaled into; the aspect ratio is kept. None: the protocol of
    a prepared target, otherwise the recipe."""
    limit: int | None = None
    """Use only the first N images."""
    checkpoint_interval: int = 50
    """Updates between checkpoints."""
    log_interval: int = 10
    """Updates between log lines."""
    seed: int = 0
    """Seed of the order of the images."""


def check(config: Config) -> list[Path]:
    """Find bad input before torch or weights load. Returns the images."""
    check_output(config.output, RUN, inputs={"--target": config.target})
    saved = require_trained(config.checkpoint)
    if not saved["diffusion"]:
        raise UserError(
            f"{config.checkpoint}: has no scene prompt; give a network with a diffusion backbone"
        )
    scenes = saved["recipe"]["model"]["backbone"].get("text", {}).get("scenes", [""])
    require_size(config.size_px, "--size-px")
    if not 0 <= config.scene < len(scenes):
        raise UserError(f"--scene {config.scene}: the recipe has scenes 0 to {len(scenes) - 1}")
    require_positive(config, "learning_rate", "checkpoint_interval", "log_interval")
    require_between(config, 1, 10**7, "steps")
    require_between(config, 1, 1024, "batch_size")
    for name in ("ema_decay", "confidence"):
        if not 0 <= getattr(config, name) < 1:
            raise UserError(f"--{name.replace('_', '-')}: must be at least 0 and below 1")
    if config.limit is not None:
        require_positive(config, "limit")
    require_writable(config.output)
    paths = find_images(config.target)[: config.limit]
    if config.mode == "online":
        name_predictions(config.target, paths)
    require_images(paths, saved["recipe"], size_of(config, saved["recipe"]))
    return paths


def size_of(config: Config, recipe: dict[str, Any]) -> tuple[int, int] | None:
    """Return the height and width that images are scaled into, None for the recipe's way."""
    return config.size_px or protocol_of(config.target).size_px(recipe)


def stored_config(config: Config, paths: list[Path], world: int) -> dict[str, Any]:
    """Return what makes two adaptations the same one."""
    recipe = require_trained(config.checkpoint)["recipe"]
    settings = {**to_mapping(config), "size_px": size_of(config, recipe)}
    for name in ("output", "base", "checkpoint_interval", "log_interval", "checkpoint"):
        settings.pop(name)
    identity = run_identity(settings, data={"target": paths}, processes=world)
    return {**identity, "weights": file_digest(config.checkpoint / WEIGHTS_FILE)}


def run(config: Config, paths: list[Path]) -> None:
    """Learn the tokens as `config` says, from the newest checkpoint of its folder."""
    import torch
    from safetensors.torch import save_file

    from pipeline import runs
    from segtrain import loop
    from segtrain.adaptation import ScenePrompt
    from segtrain.segmenter import Segmenter

    online = config.mode == "online"
    accelerator = runs.make_accelerator(config.output)
    world = accelerator.num_processes
    if online and world > 1:
        raise UserError("--mode online: works image by image in one process; start one process")
    steps = len(paths) if online else config.steps
    stored = stored_config(config, paths, world)
    runs.open_run(config.output, stored, is_main=accelerator.is_main_process)
    if runs.is_finished(config.output, steps):
        accelerator.print(f"{config.output}: already adapted for {steps} steps")
        runs.end(accelerator)
        return
    segmenter = Segmenter.from_pretrained(
        config.checkpoint, base=config.base, device=accelerator.device
    )
    scene = ScenePrompt(segmenter, config.scene, config.confidence)
    task = make_task(config, segmenter, scene, paths, steps)
    plan = loop.Plan(
        folder=config.output,
        steps=steps,
        batch_size=task.batch_size,
        seed=config.seed,
        workers=0,
        checkpoint_interval=config.checkpoint_interval,
        log_interval=config.log_interval,
        description="adapt",
        remedy="lower --batch-size or --size-px if memory ends",
    )
    optimizer = torch.optim.Adam(scene.parameters(), lr=config.learning_rate)
    loop.train(accelerator, scene, optimizer, task, plan)
    if accelerator.is_main_process:
        with files.replacing(config.output / SCENE_FILE) as temporary:
            save_file({"tokens": scene.average.half().cpu()}, temporary)
        record = {"diffusion": diffusion_base(segmenter.recipe), "config": stored}
        files.write_json(config.output / "scene.json", record)
        runs.mark_finished(config.output, steps)
    runs.end(accelerator)


def make_task(config: Config, segmenter: Any, scene: Any, paths: list[Path], steps: int) -> Any:
    """Return the task of adapting the tokens of `scene`; online it writes a prediction a step."""
    from pipeline import seeding
    from segtrain.adaptation import Adaptation

    online = config.mode == "online"
    names = list(name_predictions(config.target, paths)) if online else []
    return Adaptation(
        segmenter,
        scene,
        paths,
        seeding.numpy_generator(config.seed, "order").permutation(len(paths)).tolist(),
        steps=steps,
        batch_size=1 if online else config.batch_size,
        ema_decay=config.ema_decay,
        size_px=size_of(config, segmenter.recipe),
        predictions=[config.output / "predictions" / name for name in names],
    )


def main() -> int | None:
    """Run the command line."""
    config, call = parse(Config, __doc__)
    paths = check(config)
    if call.dry_run:
        show(config)
        print(f"would adapt on {len(paths)} images of {config.target}")
        return 0
    run(config, paths)
    return 0


if __name__ == "__main__":
    guard(main)
