"""Compare the training of segmentation networks with mmengine's Runner, and scores with mmseg's.

    python benchmarks/segmentation_training.py         # about five minutes on one core

Recipe segformer_pocket, batch 8, one thread, no loader processes, in turn in one process. Counted
is the time from update to update: on all sides reading and decoding of the files, augmentation and
the update; not the start, checkpoints and validation.

- runner: `segtrain/train.py` against mmengine's Runner with the same recipe;
- loop: `segtrain/train.py` against a loop of torch around the same loss and the same samples;
- scores: areas and mIoU of label maps of 1024x2048, ours against mmsegmentation's IoUMetric.
"""

import itertools
import sys
import tempfile
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

if sys.path and sys.path[0] == str(Path(__file__).resolve().parent):  # see CONTRIBUTING.md
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from benchmarks import measure
from benchmarks.controlnet_training import Clock
from pipeline import labels
from pipeline.dataset_writer import DatasetWriter
from pipeline.errors import UserError, guard
from pipeline.iou import areas_of
from pipeline.pocket_city import render_sample
from segtrain import loop, recipes, train

RECIPE = Path(__file__).resolve().parent.parent / "configs" / "segtrain" / "segformer_pocket.py"


@contextmanager
def timed_losses(clock: Clock) -> Any:
    """Note the time of every call of the loss in `segtrain.loop`."""
    original = loop.training_loss

    def timed(*arguments: Any) -> torch.Tensor:
        clock.tick()
        return original(*arguments)

    loop.training_loss = timed
    try:
        yield
    finally:
        loop.training_loss = original


class Sides:
    """The data set and the settings that all sides train with."""

    def __init__(self, folder: Path, updates: int, batch_size: int, num_images: int) -> None:
        self.folder, self.updates, self.batch_size = folder, updates, batch_size
        self.source, self.numbers = folder / "source", itertools.count()
        writer = DatasetWriter(self.source, config={"n": num_images})
        for index in range(num_images):
            image, label, _ = render_sample(index, "source", (128, 256))
            writer.write(index, image, label, {})

    def config(self) -> train.Config:
        """Return the settings of a new run of our program."""
        return train.Config(
            recipe=RECIPE,
            source=self.source,
            output=self.folder / f"run{next(self.numbers)}",
            steps=self.updates,
            batch_size=self.batch_size,
            checkpoint_interval=10**6,
        )

    def by_program(self) -> float:
        """Return the seconds of an update of `segtrain/train.py`."""
        clock, config = Clock(), self.config()
        with timed_losses(clock):
            train.run(config, train.check(config))
        return clock.seconds

    def by_bare_loop(self) -> float:
        """Return the seconds of an update of the same loss in a loop of torch."""
        clock, config = Clock(), self.config()
        recipe = recipes.load_recipe(config.recipe)
        recipes.override(recipe, steps=self.updates, batch_size=self.batch_size, base="")
        plan = train.make_plan(config, recipe)
        draw, _ = train.build_samples(config, recipe, train.check(config))
        model, optimizer = train.build_network(config, recipe)
        model.train()
        with timed_losses(clock):
            for (samples,) in loop.batches(plan, draw, 0, 0, 1, plan.seed):
                loss = loop.training_loss(model, model, samples)
                loss.backward()
                if plan.clip_norm is not None:
                    torch.nn.utils.clip_grad_norm_(model.parameters(), plan.clip_norm)
                optimizer.step()
                optimizer.zero_grad()
        return clock.seconds

    def by_runner(self) -> float:
        """Return the seconds of an update of mmengine's Runner."""
        recipe = recipes.load_recipe(RECIPE)
        from mmengine.hooks import Hook
        from mmengine.runner import Runner

        clock = Clock()

        class Tick(Hook):
            def before_train_iter(self, *_: Any, **__: Any) -> None:
                clock.tick()

        number = next(self.numbers)
        recipe.train_dataloader.batch_size = self.batch_size
        recipe.train_dataloader.dataset.data_root = str(self.source)
        recipe.train_cfg.update(max_iters=self.updates, val_interval=10**6)
        for stage in ("val", "test"):
            for part in ("dataloader", "evaluator", "cfg"):
                recipe[f"{stage}_{part}"] = None
        recipe.default_hooks = {"checkpoint": None}
        recipe.work_dir, recipe.experiment_name = str(self.folder / f"runner{number}"), f"b{number}"
        recipe.log_level = "ERROR"
        runner = Runner.from_cfg(recipe)
        runner.register_hook(Tick(), priority="LOWEST")
        runner.train()
        return clock.seconds


def label_pairs(count: int, size_px: tuple[int, int]) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return predicted and true label maps; nine in ten pixels agree, a few are void."""
    pairs = []
    for index in range(count):
        rng = np.random.default_rng(index)
        cells = rng.integers(0, labels.NUM_CLASSES, (size_px[0] // 16, size_px[1] // 16))
        truth = cells.repeat(16, 0).repeat(16, 1).astype(np.uint8)
        noise = rng.integers(0, labels.NUM_CLASSES, size_px, dtype=np.uint8)
        found = np.where(rng.random(size_px) < 0.1, noise, truth)
        truth[rng.random(size_px) < 0.05] = labels.VOID
        pairs.append((found, truth))
    return pairs


def our_miou(pairs: list[tuple[np.ndarray, np.ndarray]]) -> float:
    """Return the mIoU in per cent as `segtrain/score.py` counts it."""
    areas = sum(areas_of(found, truth, labels.NUM_CLASSES) for found, truth in pairs)
    both, predicted, labelled = np.asarray(areas)
    return float(100 * np.nanmean(both / (predicted + labelled - both)))


def their_miou(pairs: list[tuple[np.ndarray, np.ndarray]]) -> float:
    """Return the mIoU in per cent of mmsegmentation's metric."""
    from mmseg.evaluation import IoUMetric

    metric = IoUMetric(iou_metrics=["mIoU"])
    metric.dataset_meta = {"classes": labels.CLASS_NAMES}
    for found, truth in pairs:
        planes = [torch.from_numpy(each)[None].long() for each in (found, truth)]
        metric.process(
            {}, [{"pred_sem_seg": {"data": planes[0]}, "gt_sem_seg": {"data": planes[1]}}]
        )
    areas = [sum(parts) for parts in zip(*metric.results, strict=True)]
    iou = IoUMetric.total_area_to_metrics(*areas, metrics=["mIoU"])["IoU"]
    return float(100 * np.nanmean(iou))


def scores(results: measure.Results, pairs: list[tuple[np.ndarray, np.ndarray]]) -> None:
    """Compare the counting of scores."""
    if abs(our_miou(pairs) - their_miou(pairs)) > 1e-3:
        raise UserError("the scores disagree; the times would compare different work")
    calls = {"theirs": lambda: their_miou(pairs), "ours": lambda: our_miou(pairs)}
    seconds = measure.in_turn(calls, results.repeats)
    results.add("scores, mmsegmentation's IoUMetric / ours",
                measure.ratio(seconds, "theirs", "ours"), "", ">= 1.2")  # fmt: skip
    results.details["scores"] = seconds


def main() -> None:
    arguments = measure.parser(__doc__).parse_args()
    torch.set_num_threads(1)
    results = measure.Results(
        "segmentation_training", "Training and scores of segmentation networks", arguments
    )
    updates, batch_size, num_images = (4, 2, 4) if arguments.quick else (16, 8, 32)
    with tempfile.TemporaryDirectory() as name:
        sides = Sides(Path(name), updates, batch_size, num_images)
        calls: dict[str, Callable[[], object]] = {
            "runner": sides.by_runner,
            "program": sides.by_program,
            "bare loop": sides.by_bare_loop,
        }
        seconds = measure.in_turn(calls, results.repeats, warm_up=not arguments.quick)
    results.add("updates per second, ours / mmengine's Runner",
                measure.ratio(seconds, "runner", "program"), "", ">= 1.0")  # fmt: skip
    results.add("time of an update, our loop / bare loop of torch",
                measure.ratio(seconds, "program", "bare loop"), "", "<= 1.03")  # fmt: skip
    results.details["seconds_per_update"] = seconds
    count, size_px = (1, (64, 128)) if arguments.quick else (4, (1024, 2048))
    scores(results, label_pairs(count, size_px))
    results.write()


if __name__ == "__main__":
    guard(main)
