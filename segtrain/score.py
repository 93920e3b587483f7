"""Score trained segmentation networks on labelled target folders: per-class IoU and mIoU.

    accelerate launch segtrain/score.py --checkpoint runs/mine/segtrain/source \\
        --targets runs/mine/targets/acdc runs/mine/targets/dark_zurich \\
        --output runs/mine/scores.json

A folder that pipeline/prepare.py wrote is tested as the field tests that set: at the scale of its
protocol and over its own classes. A class that is predicted but in no label counts as 0, as in
cityscapesscripts and mmsegmentation. The table goes to the screen and, as markdown, beside the
JSON file. On several CPU processes: torchrun --nproc-per-node 2 -- segtrain/score.py ... A small
version for the CPU: --limit 10.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if sys.path and sys.path[0] == str(Path(__file__).resolve().parent):  # see CONTRIBUTING.md
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from pipeline import files, labels, models
from pipeline.config import parse, require_positive, show
from pipeline.dataset import Sample, check_dataset, open_dataset
from pipeline.errors import UserError, guard
from pipeline.output_files import check_output_file
from pipeline.output_folders import require_writable
from segtrain.checkpoints import require_scene, require_trained
from segtrain.prediction_names import name_predictions, require_predictions_of
from segtrain.protocol import protocol_of, require_pictures, require_size


@dataclass(frozen=True)
class Config:
    """Settings of one scoring."""

    checkpoint: tuple[Path, ...] = ()
    """Output folders of segtrain/train.py."""
    predictions: Path | None = None
    """Folder of predicted train ids to score in place of a checkpoint: `ids` of
    segtrain/predict.py, or `predictions` of segtrain/adapt.py --mode online. Needs one target."""
    targets: tuple[Path, ...] = ()
    """Labelled dataset folders to score on."""
    output: Path = Path("scores.json")
    """JSON file to write; the table goes beside it as .md."""
    scene: Path | None = None
    """Output folder of segtrain/adapt.py, learned through the one checkpoint that is scored."""
    base: str = ""
    """Where the diffusion model of a diffusion backbone is, if it has moved since the training."""
    size_px: tuple[int, int] | None = None
    """Height and width that images are scaled into, their aspect kept. None: by the protocol of a
    prepared target, at the resolution that the recipe names, or by the recipe where there is
    none."""
    limit: int | None = None
    """Use the first N pictures of each target only."""


def check(config: Config) -> list[list[Sample]]:
    """Find bad input before torch or weights load. Returns the samples of each target."""
    check_output_file(config.output, is_scores, "score file")
    if not config.checkpoint and not config.predictions:
        raise UserError("--checkpoint: give at least one output folder of segtrain/train.py")
    if config.predictions and (config.checkpoint or config.scene or len(config.targets) != 1):
        raise UserError("--predictions: goes with one target, without --checkpoint and --scene")
    if not config.targets:
        raise UserError("--targets: give at least one labelled dataset folder")
    if config.limit is not None:
        require_positive(config, "limit")
    require_size(config.size_px, "--size-px")
    recipes = [require_trained(folder)["recipe"] for folder in config.checkpoint]
    if config.scene:
        require_scene(config.scene)
        if len(config.checkpoint) > 1:
            raise UserError("--scene: goes with the checkpoint it was learned through; name one")
    if config.base:
        models.find_base(config.base)
    targets = [open_dataset(folder, labelled=True)[: config.limit] for folder in config.targets]
    for folder, samples in zip(config.targets, targets, strict=True):
        check_dataset(samples)
        protocol = protocol_of(folder)
        for recipe in recipes:
            size_px = config.size_px or protocol.size_px(recipe)
            require_pictures(samples, recipe, size_px)
    if config.predictions:
        require_predictions_of(config.predictions, config.targets[0])
        for path in written(config, targets[0]).values():
            if not path.is_file():
                raise UserError(f"{path}: no such prediction; --limit scores the first pictures")
    require_writable(config.output.absolute().parent)
    return targets


def is_scores(path: Path) -> bool:
    """Tell whether a regular file is one that this program wrote."""
    try:
        return "checkpoints" in files.read_json(path, dict)
    except UserError:
        return False


def written(config: Config, samples: list[Sample]) -> dict[Path, Path]:
    """Return where the prediction of each picture is, with `--predictions`."""
    if not config.predictions:
        return {}
    names = name_predictions(config.targets[0], [sample.image for sample in samples])
    return {picture: config.predictions / name for name, picture in names.items()}


def run(config: Config, targets: list[list[Sample]]) -> None:
    """Score every checkpoint on every target and write the result."""
    from accelerate import Accelerator

    from pipeline import runs
    from segtrain import scoring
    from segtrain.segmenter import Segmenter

    accelerator = Accelerator(cpu=runs.only_cpu())
    target_names = scoring.unique_names(config.targets)
    protocols = [protocol_of(folder) for folder in config.targets]
    results: list[dict[str, Any]] = []

    def predictors(folder: Path) -> list[scoring.Predict]:
        """Return for each target how a picture becomes a prediction."""
        if config.predictions:
            paths = written(config, targets[0])
            return [lambda path, _: labels.read_label(paths[path])]
        segmenter = Segmenter.from_pretrained(
            folder, scene=config.scene, base=config.base, device=accelerator.device
        )
        sizes = [config.size_px or p.size_px(segmenter.recipe) for p in protocols]
        return [
            lambda path, image, size_px=size_px: segmenter(image, size_px=size_px, name=path)
            for size_px in sizes
        ]

    folders = config.checkpoint or (config.predictions,)
    for folder, name in zip(folders, scoring.unique_names(folders), strict=True):
        parts = zip(target_names, predictors(folder), targets, protocols, strict=True)
        scores = {
            target: scoring.score_target(predict, samples, accelerator, target, protocol)
            for target, predict, samples, protocol in parts
        }
        mean = scoring.mean_miou(scores)
        results.append(
            {"name": name, "checkpoint": str(folder), "targets": scores, "mean_miou": mean}
        )
    document = {"targets": target_names, "limit": config.limit, "checkpoints": results}
    if config.size_px:
        document["size_px"] = list(config.size_px)
    if config.scene:
        document["scene"] = str(config.scene)
    if accelerator.is_main_process:
        text = scoring.table(document)
        files.write_json(config.output, document)
        files.write_bytes(config.output.with_suffix(".md"), f"{text}\n".encode())
        print(text)
    accelerator.wait_for_everyone()


def main() -> int | None:
    """Run the command line."""
    config, call = parse(Config, __doc__)
    targets = check(config)
    if call.dry_run:
        show(config)
        for folder, samples in zip(config.targets, targets, strict=True):
            print(f"would score {len(samples)} pictures of {folder}")
        return 0
    run(config, targets)
    return 0


if __name__ == "__main__":
    guard(main)
