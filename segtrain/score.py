"""Score segmentation networks on labelled target folders.

    accelerate launch segtrain/score.py --checkpoint runs/mine/segtrain/source \\
        --targets runs/mine/targets/acdc runs/mine/targets/dark_zurich \\
        --output runs/mine/scores.json

Per-class IoU, mIoU with its confidence interval, Boundary IoU, small objects and calibration, for
each target and each condition in it. A folder that pipeline/prepare.py wrote is scored by the
published protocol of its dataset: at its scale and over its classes. A class that is predicted but
in no label counts as 0, as in cityscapesscripts and mmsegmentation. The tables are printed and
written beside the JSON file. So are the counts of each image, from which segtrain/compare.py
computes paired tests. The same command continues a stopped scoring. A second one with the same
OUTPUT is refused while the first is at work. On several CPU processes: torchrun --nproc-per-node 2
-- segtrain/score.py ... A small version for the CPU: --limit 10.
"""

import sys
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

if sys.path and sys.path[0] == str(Path(__file__).resolve().parent):  # see CONTRIBUTING.md
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from pipeline import __version__, files, label_spaces, models
from pipeline.claims import sole_writer
from pipeline.config import parse, show
from pipeline.errors import UserError, guard
from pipeline.identity import file_digest
from pipeline.output_entries import require_kind
from pipeline.output_files import check_output_file, check_tables
from pipeline.output_folders import require_writable
from pipeline.reading import read_json
from pipeline.setting_checks import require_between, require_each_once, require_positive
from segtrain.checkpoints import require_scene
from segtrain.evaluation.parts import Part, merge, remove_parts, row_keys
from segtrain.evaluation.predictions import locate, space_of
from segtrain.evaluation.rows import figures_of, read_rows, rows_file
from segtrain.evaluation.score_tables import score_tables
from segtrain.evaluation.segmenters import (
    Predict,
    describe,
    describe_predictions,
    identify,
    load,
    of_predictions,
    read_recipe,
    require_sizes,
)
from segtrain.evaluation.selection import best_network, development_score
from segtrain.evaluation.streaming import (
    score_images,
    worst_samples,
)
from segtrain.evaluation.summary import collect, network_score
from segtrain.evaluation.targets import (
    Target,
    open_targets,
    require_blind,
    unique_names,
)
from segtrain.prediction_names import require_predictions_of
from segtrain.protocol import require_size

TABLES = {".md": "| mIoU % (classes)", ".rows.jsonl": '{"boundary": '}
"""Their suffixes and how they begin."""


@dataclass(frozen=True)
class Config:
    """Settings of one scoring."""

    checkpoint: tuple[Path, ...] = ()
    """Networks: output folders of segtrain/train.py, or folders of transformers whose class names
    are those of Cityscapes."""
    predictions: Path | None = None
    """Folder of predicted label maps to score in place of a checkpoint: `ids` of
    segtrain/predict.py, `predictions` of segtrain/adapt.py --mode online, or any folder with PNG
    files that are called like Cityscapes frames. Needs one target."""
    prediction_space: str = ""
    """Label space of the predictions, a name in datasets/labelspaces. Empty: train ids, or
    Cityscapes label ids if all files end in _labelIds.png."""
    targets: tuple[Path, ...] = ()
    """Labelled dataset folders to score on."""
    select_on: Path | None = None
    """Labelled development set: only the network with the best mIoU on it is scored. None scores
    all networks."""
    select_on_target: bool = False
    """Allow a target as --select-on; every table with its scores is then marked."""
    output: Path = Path("scores.json")
    """JSON file to write. Its tables go beside it as .md, the counts of each image as
    .rows.jsonl."""
    figures: bool = False
    """Also plot the confusion matrix and the worst images of each target, into OUTPUT.figures."""
    worst: int = 8
    """Number of worst images in a figure."""
    scene: Path | None = None
    """Output folder of segtrain/adapt.py, learned through the one checkpoint that is scored."""
    base: str = ""
    """Folder of the base model of a diffusion backbone, if it has moved since the training."""
    size_px: tuple[int, int] | None = None
    """Height and width that images are scaled into; the aspect ratio is kept. None: the protocol of
    a prepared target at the resolution that the recipe names, otherwise the recipe."""
    limit: int | None = None
    """Use the first N images of each target only."""


@dataclass(frozen=True)
class Plan:
    """What a scoring reads, checked."""

    targets: list[Target]
    development: Target | None = None
    """of --select-on"""
    is_target: bool = False
    """the development set is a target"""
    predicted: dict[Path, Path] = field(default_factory=dict)
    """file of each image, with --predictions"""

    @property
    def all(self) -> list[Target]:
        """Targets, then the development set."""
        return [*self.targets, *([self.development] if self.development else [])]


def check(config: Config) -> Plan:
    """Find bad input before torch or weights load."""
    check_output_file(config.output, is_scores, "score file")
    check_tables(config.output, TABLES, is_scores, "score file")
    if config.figures:
        require_kind(figures_of(config.output), folder=True)
    check_settings(config)
    if config.scene:
        require_scene(config.scene)
    if config.base:
        models.find_base(config.base)
    recipes = [read_recipe(folder) for folder in config.checkpoint]
    targets = open_targets(config.targets, config.limit)
    plan = Plan(targets)
    if config.select_on:
        (development,) = open_targets((config.select_on,), config.limit)
        is_target = require_blind(development, targets, config.select_on_target)
        plan = Plan(targets, development, is_target)
    for recipe in recipes:
        require_sizes(recipe, plan.all, config.size_px)
    if config.predictions:
        require_predictions_of(config.predictions, config.targets[0])
        predicted = locate(config.predictions, config.targets[0], targets[0].samples)
        plan = Plan(targets, predicted=predicted)
    require_writable(config.output.absolute().parent)
    return plan


def check_settings(config: Config) -> None:
    """Raise `UserError` for settings that do not go together or are out of range."""
    if not config.checkpoint and not config.predictions:
        raise UserError("--checkpoint: give at least one output folder of segtrain/train.py")
    if config.predictions and (config.checkpoint or config.scene or len(config.targets) != 1):
        raise UserError("--predictions: goes with one target, without --checkpoint and --scene")
    if not config.targets:
        raise UserError("--targets: give at least one labelled dataset folder")
    require_each_once("--checkpoint", config.checkpoint)
    require_each_once("--targets", config.targets)
    if config.scene and len(config.checkpoint) > 1:
        raise UserError("--scene: goes with the checkpoint it was learned through; name one")
    if config.select_on and len(config.checkpoint) < 2:
        raise UserError("--select-on: chooses among networks; give two or more by --checkpoint")
    if config.select_on_target and not config.select_on:
        raise UserError("--select-on-target: has no meaning without --select-on; leave it out")
    if config.prediction_space:
        if not config.predictions:
            raise UserError("--prediction-space: goes with --predictions; leave it out")
        label_spaces.label_space(config.prediction_space)
    if config.limit is not None:
        require_positive(config, "limit")
    require_between(config, 1, 100, "worst")
    require_size(config.size_px, "--size-px")


def is_scores(path: Path) -> bool:
    """Tell whether a regular file is one that this program wrote."""
    try:
        return "checkpoints" in read_json(path, dict)
    except UserError:
        return False


class Scoring:
    """One run: networks one after another, each on all targets, rows first and scores last."""

    def __init__(self, config: Config, plan: Plan) -> None:
        from pipeline import runs

        self.config, self.plan = config, plan
        self.accelerator = runs.start_accelerator()
        self.is_main = self.accelerator.is_main_process
        self.entries: list[dict[str, Any]] = []
        self.keys: dict[tuple[str, str], dict[str, str]] = {}
        """of the rows, by network and target"""
        folders = config.checkpoint or (config.predictions or Path(),)
        adapted = f" with {config.scene.resolve().name}" if config.scene else ""
        names = [f"{name}{adapted}" for name in unique_names(folders)]
        self.networks = dict(zip(names, folders, strict=True))

    def run(self) -> None:
        """Score and write the result, unless another scoring writes to the same file."""
        from pipeline import runs

        with sole_writer(self.config.output, beside=True) if self.is_main else nullcontext():
            self.accelerator.wait_for_everyone()  # no process opens rows before it is certain
            self.score_all()
        runs.end(self.accelerator)

    def score_all(self) -> None:
        """Write the rows of all networks, and the scores last."""
        chosen: dict[str, Any] = {}
        with Part(self.config.output, self.accelerator.process_index) as part:
            if self.plan.development:
                name, chosen = self.select(self.plan.development, part)
                self.networks = {name: self.networks[name]}
            for name, folder in self.networks.items():
                self.score_network(name, folder, part)
                if chosen:
                    self.entries[-1]["selection"] = chosen
        self.accelerator.wait_for_everyone()
        if self.is_main:
            keys = [key for found in self.keys.values() for key in found.values()]
            merge(self.config.output, keys)
            self.write()
            remove_parts(self.config.output)

    def load(self, folder: Path, targets: list[Target]) -> list[Predict]:
        """Return how the images of each target become predictions."""
        if self.config.predictions:
            paths = self.plan.predicted
            space = space_of(list(paths.values()), self.config.prediction_space)
            return [of_predictions(paths, space)]
        device, size_px = self.accelerator.device, self.config.size_px
        options = {"scene": self.config.scene, "base": self.config.base}
        return load(folder, targets, size_px, device, **options)

    def find_keys(self, name: str, folder: Path, target: Target) -> dict[str, str]:
        """Return the keys of a target's rows under a network."""
        import torch

        config, predicted = self.config, self.plan.predicted
        space = config.prediction_space  # a file of the user's own may change
        content = label_spaces.space_content(space) if space else {}
        of_network: dict[str, Any] = {
            "name": name,
            "settings": [config.size_px, content, self.accelerator.device.type],
            "versions": [__version__, torch.__version__],
            **({} if config.predictions else identify(folder, config.scene)),
        }
        return row_keys(of_network, target, predicted)

    def select(self, development: Target, part: Part) -> tuple[str, dict[str, Any]]:
        """Return the network with the best mIoU on the development set, and how it was found."""
        scores: dict[str, float | None] = {}
        for name, folder in self.networks.items():
            (predict,) = self.load(folder, [development])
            keys = self.find_keys(name, folder, development)
            scores[name] = development_score(
                predict, development, name, self.accelerator, part, keys
            )
        best = best_network(scores, f"--select-on {self.config.select_on}")
        self.accelerator.print(f"{best} is the best of {len(scores)} on {development.name}")
        return best, {
            "rule": "best",
            "on": development.name,
            "candidates": scores,
            "is_target": self.plan.is_target,
        }

    def score_network(self, name: str, folder: Path, part: Part) -> None:
        """Write the rows of a network on all targets."""
        targets = self.plan.targets
        predictions, scene = self.config.predictions, self.config.scene
        entry = describe_predictions(folder) if predictions else describe(folder, scene)
        self.entries.append({"name": name, **entry})
        worst = self.config.worst if self.config.figures else 0
        for predict, target in zip(self.load(folder, targets), targets, strict=True):
            keys = self.keys[name, target.name] = self.find_keys(name, folder, target)
            _, poorest = score_images(predict, target, name, self.accelerator, part, keys, worst)
            if worst:
                self.plot_worst(name, target, predict, poorest)

    def plot_worst(
        self, name: str, target: Target, predict: Predict, poorest: list[tuple[float, str]]
    ) -> None:
        """Predict the worst images of all processes again and plot them."""
        from accelerate.utils import gather_object

        from segtrain.evaluation import figures

        poorest = gather_object(poorest)
        if self.is_main:
            samples = worst_samples(target, poorest, self.config.worst)
            path = figures.path_of(self.config.output, name, target.name, "worst")
            figures.plot_worst(path, samples, predict)

    def write(self) -> None:
        """Compute the scores from the rows, write them and print their tables."""
        output, targets = self.config.output, self.plan.targets
        classes = {target.name: target.protocol.class_names for target in targets}
        sizes = {name: len(names) for name, names in classes.items()}
        found = collect(read_rows(rows_file(output), sizes))
        results = [{**e, **network_score(found[e["name"]], classes)} for e in self.entries]
        document: dict[str, Any] = {
            "targets": [target.name for target in targets],
            "sets": {target.name: target.entry() for target in targets},
            "limit": self.config.limit,
            "rows_sha256": file_digest(rows_file(output)),
            "checkpoints": results,
        }
        if self.config.size_px:
            document["size_px"] = list(self.config.size_px)
        if self.config.scene:
            document["scene"] = str(self.config.scene)
        if self.config.figures:
            from segtrain.evaluation import figures

            figures.plot_confusions(output, found, classes)
        text = score_tables(document)
        files.write_json(output, document)
        files.write_bytes(output.with_suffix(".md"), f"{text}\n".encode())
        print(text)


def run(config: Config, plan: Plan) -> None:
    """Score every checkpoint on every target and write the result."""
    Scoring(config, plan).run()


def main() -> int | None:
    """Run the command line."""
    config, call = parse(Config, __doc__)
    plan = check(config)
    if call.dry_run:
        show(config)
        if plan.development:
            print(f"would choose among {len(config.checkpoint)} networks on {config.select_on}")
        for target in plan.targets:
            print(f"would score {len(target.samples)} images of {target.folder}")
        return 0
    run(config, plan)
    return 0


if __name__ == "__main__":
    guard(main)
