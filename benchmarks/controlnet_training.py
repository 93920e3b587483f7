"""Compare ControlNet training with diffusers' example script, and our loop with a bare one.

    python benchmarks/controlnet_training.py           # about six minutes on one core

The pocket model, batch 12, crops of 64x128, float32, in turn in one process. Each image has the
caption of its own classes. Counted is the time from update to update: reading and decoding of files
where a side reads them, encoding and the update, but not the start, checkpoints and final weights.

- script: `benchmarks/plain_controlnet.py`, the algorithm of diffusers' script, which reads files
  and encodes images and texts in every update;
- uncached: `finetune/controlnet.py` doing the same; each text is new, so that none is remembered;
- cached: `finetune/controlnet.py` with cached crops, whose texts are encoded once. The cost of
  caching is stated apart, and the uses of a crop after which it is paid for;
- loop: `finetune.loop.train` (logs, checks, random numbers per update) against a loop of torch
  around the same loss, both with cached crops.
"""

import itertools
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from PIL import Image

if sys.path and sys.path[0] == str(Path(__file__).resolve().parent):  # see CONTRIBUTING.md
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from benchmarks import measure
from benchmarks.plain_controlnet import Script
from finetune.captions import Captions
from finetune.crops import TrainingItem
from finetune.data import Batches, crop_batches
from finetune.diffusion import FrozenBase
from finetune.loop import make_optimizer, train
from finetune.settings import Training
from finetune.start import Run
from finetune.tasks.controlnet import ControlNetTask, load_controlnet, load_frozen_unet
from pipeline import labels, models
from pipeline.captions import CaptionSettings
from pipeline.errors import guard
from pipeline.images import read_image
from pipeline.pocket_city import render_sample
from pipeline.runs import make_accelerator

CAPTION = CaptionSettings("a city street scene with {classes}", class_separator=", ")
CROP_PX = (64, 128)
WARM_UP = 2  # updates


class Clock:
    """The times at which updates begin."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def tick(self) -> None:
        """Note the time."""
        self.times.append(time.perf_counter())

    @property
    def seconds(self) -> float:
        """The mean seconds of an update after the warm-up."""
        counted = self.times[WARM_UP:]
        return (counted[-1] - counted[0]) / (len(counted) - 1)


class TimedTask(ControlNetTask):
    """The task of the program, with the time of each call."""

    clock: Clock

    def loss(self, *arguments: Any, **options: Any) -> Any:
        """Note the time, then return the loss."""
        self.clock.tick()
        return super().loss(*arguments, **options)

    def save(self, weights: Any, folder: Path) -> None:
        """Write nothing."""


class Sides:
    """What all sides train with: data, frozen parts and settings."""

    def __init__(self, folder: Path, updates: int, batch_size: int, num_images: int) -> None:
        self.base, self.folder = str(models.find_base("pocket")), folder
        self.accelerator = make_accelerator(folder / "accelerator")
        self.settings = Training(
            steps=updates, batch_size=batch_size, checkpoint_interval=10**6, log_interval=10
        )
        self.frozen = FrozenBase(self.base, self.accelerator.device)
        self.unet = load_frozen_unet(self.base, None)
        self.pairs, self.captions = [], list[str]()
        caption_of = Captions(self.base, CAPTION)
        for index in range(num_images):
            image, label, *_ = render_sample(index, "source", CROP_PX)
            assert label is not None
            paths = folder / f"{index}.png", folder / f"{index}_label.png"
            for path, array in zip(paths, (image, label), strict=True):
                Image.fromarray(array).save(path)
            self.pairs.append(paths)
            self.captions.append(caption_of(label, np.random.default_rng(index)))
        self.numbers, self.texts = itertools.count(), itertools.count()

    def run(self) -> Run:
        """Return a new run."""
        folder = self.folder / f"run{next(self.numbers)}"
        return Run(make_accelerator(folder), folder, 0, self.settings)

    def item(self, rng: np.random.Generator) -> TrainingItem:
        """Return a random crop, read from its files."""
        index = int(rng.integers(len(self.pairs)))
        image, label = self.pairs[index]
        return TrainingItem(read_image(image), labels.read_label(label), self.captions[index])

    def new_text(self, caption: str) -> str:
        """Return a caption that no cache of texts knows."""
        return f"{caption}, view {next(self.texts)}"

    def batches(self, run: Run, *, cached: bool = True) -> Batches:
        """Return batches of cached crops, or of crops that are read and encoded when needed."""

        def uncached(rng: np.random.Generator) -> TrainingItem:
            item = self.item(rng)
            return item._replace(caption=self.new_text(item.caption))

        if not cached:
            return crop_batches(run, self.frozen.vae, uncached, num_cached=0, on_device=False)
        return crop_batches(
            run, self.frozen.vae, self.item, num_cached=len(self.pairs), on_device=True
        )

    def task(self, batches: Batches, clock: Clock) -> TimedTask:
        """Return the task of the program with new weights."""
        controlnet = load_controlnet(self.base, None, self.unet, self.frozen.vae, 0)
        task = TimedTask(
            self.frozen, self.unet, controlnet, batches, init_weight=0.0, save_fp16=False,
            previews=None, load_base_unet=None,
        )  # fmt: skip
        task.clock = clock
        return task

    def by_program(self, *, cached: bool) -> float:
        """Return the seconds of an update of `finetune/controlnet.py`."""
        clock, run = Clock(), self.run()
        train(run, self.task(self.batches(run, cached=cached), clock))
        return clock.seconds

    def caching(self) -> float:
        """Return the seconds of caching a crop and its text."""
        run, start = self.run(), time.perf_counter()
        self.batches(run)
        self.frozen.text.encode([self.new_text(caption) for caption in self.captions])
        return (time.perf_counter() - start) / len(self.captions)

    def by_bare_loop(self) -> float:
        """Return the seconds of an update of the same loss in a loop of torch."""
        clock, run = Clock(), self.run()
        task = self.task(self.batches(run), clock)
        parameters = list(task.model.parameters())
        optimizer = make_optimizer(self.settings, parameters, run.accelerator.device)
        generator = torch.Generator().manual_seed(0)
        micro_batches: Iterator[Any] = task.batches(0)
        for step in range(self.settings.steps):
            loss = task.loss(task.model, next(micro_batches), generator, step=step).value
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, self.settings.clip_norm)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return clock.seconds

    def by_script(self) -> float:
        """Return the seconds of an update of diffusers' algorithm."""
        clock = Clock()
        script = Script(
            self.base, self.pairs, captions=self.captions, crop_px=CROP_PX,
            batch_size=self.settings.batch_size, accelerator=Accelerator(cpu=True),
            condition_channels=self.task(lambda first: iter(()), clock)
            .model.config.conditioning_embedding_out_channels,
        )  # fmt: skip
        batches = script.batches()
        for _ in range(self.settings.steps):
            clock.tick()
            script.update(next(batches))
        return clock.seconds


def main() -> None:
    arguments = measure.parser(__doc__).parse_args()
    torch.set_num_threads(1)
    results = measure.Results("controlnet_training", "ControlNet training", arguments)
    updates, batch_size, num_images = (4, 2, 4) if arguments.quick else (16, 12, 64)
    with tempfile.TemporaryDirectory() as name:
        sides = Sides(Path(name), updates, batch_size, num_images)
        calls: dict[str, Callable[[], object]] = {
            "script": sides.by_script,
            "uncached": partial(sides.by_program, cached=False),
            "cached": partial(sides.by_program, cached=True),
            "bare loop": sides.by_bare_loop,
            "caching": sides.caching,
        }
        seconds = measure.in_turn(calls, results.repeats, warm_up=not arguments.quick)
    results.add("samples per second, ours uncached / diffusers' script",
                measure.ratio(seconds, "script", "uncached"))  # fmt: skip
    results.add("samples per second, ours with cached crops and texts / diffusers' script",
                measure.ratio(seconds, "script", "cached"), "", ">= 1.3")  # fmt: skip
    results.add("caching of a crop and its text", measure.Spread.of(seconds["caching"]), "s")
    uses = [
        batch_size * cost / (slow - fast)
        for cost, slow, fast in zip(
            seconds["caching"], seconds["uncached"], seconds["cached"], strict=True
        )
    ]
    results.add("uses of a crop that pay for caching it", measure.Spread.of(uses))
    results.add("time of an update, our loop / bare loop of torch, cached",
                measure.ratio(seconds, "cached", "bare loop"), "", "<= 1.03")  # fmt: skip
    for kind in ("uncached", "cached"):
        rate = [batch_size / value for value in seconds[kind]]
        results.add(f"samples per second, ours {kind}", measure.Spread.of(rate), "1/s")
    results.details["seconds_per_update"] = seconds
    results.write()


if __name__ == "__main__":
    guard(main)
