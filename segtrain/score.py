"""Score trained segmentation networks on labelled target folders: per-class IoU and mIoU.

    accelerate launch segtrain/score.py --checkpoint runs/mine/segtrain/source \\
        --targets runs/mine/targets/acdc runs/mine/targets/dark_zurich \\
        --output runs/mine/scores.json

On several CPU processes: torchrun --nproc-per-node 2 -- segtrain/score.py ... A small version for
the CPU: --limit 10. The table goes to the screen and, as markdown, beside the JSON file.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if sys.path and sys.path[0] == str(Path(__file__).resolve().parent):  # see CONTRIBUTING.md
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from pipeline import files, labels, models  # noqa: E402
from pipeline.config import parse, require_positive, show  # noqa: E402
from pipeline.dataset import Sample, check_dataset, open_dataset  # noqa: E402
from pipeline.errors import UserError, guard  # noqa: E402
from segtrain.pictures import name_predictions  # noqa: E402
from segtrain.recipes import require_scene, require_trained  # noqa: E402


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
    limit: int | None = None
    """Use the first N pictures of each target only."""


def check(config: Config) -> list[list[Sample]]:
    """Find bad input before torch or weights load. Returns the samples of each target."""
    if not config.checkpoint and not config.predictions:
        raise UserError("--checkpoint: give at least one output folder of segtrain/train.py")
    if config.predictions and (config.checkpoint or config.scene or len(config.targets) != 1):
        raise UserError("--predictions: goes with one target, without --checkpoint and --scene")
    if not config.targets:
        raise UserError("--targets: give at least one labelled dataset folder")
    if config.limit is not None:
        require_positive(config, "limit")
    if config.output.is_dir():
        raise UserError(f"{config.output}: is a folder; --output names a JSON file")
    for folder in config.checkpoint:
        require_trained(folder)
    if config.scene:
        require_scene(config.scene)
        if len(config.checkpoint) > 1:
            raise UserError("--scene: goes with the checkpoint it was learned through; name one")
    if config.base:
        models.find_base(config.base)
    targets = [open_dataset(folder, labelled=True)[: config.limit] for folder in config.targets]
    for samples in targets:
        check_dataset(samples)
        for path in written(config, samples).values():
            if not path.is_file():
                raise UserError(f"{path}: no such prediction; --limit scores the first pictures")
    files.require_writable(config.output.parent)
    return targets


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
    results: list[dict[str, Any]] = []

    def predictor(folder: Path) -> scoring.Predict:
        if config.predictions:
            paths = written(config, targets[0])
            return lambda path, _: labels.read_label(paths[path])
        segmenter = Segmenter.from_pretrained(
            folder, scene=config.scene, base=config.base, device=accelerator.device
        )
        return lambda _, image: segmenter(image)

    folders = config.checkpoint or (config.predictions,)
    for folder, name in zip(folders, scoring.unique_names(folders), strict=True):
        predict = predictor(folder)
        scores = {
            target: scoring.score_target(predict, samples, accelerator, target)
            for target, samples in zip(target_names, targets, strict=True)
        }
        mean = scoring.mean_miou(scores)
        results.append(
            {"name": name, "checkpoint": str(folder), "targets": scores, "mean_miou": mean}
        )
    document = {"targets": target_names, "limit": config.limit, "checkpoints": results}
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
