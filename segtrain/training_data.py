"""The data of a training: labelled sets, and the unlabelled target of self-training.

`open_training_data` finds bad input without torch; the rest turns the data into samples.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

from pipeline.dataset import Sample, check_dataset, check_images, find_images, open_dataset
from pipeline.errors import UserError
from pipeline.labels import CLASS_NAMES
from pipeline.origins import refuse_test_data
from pipeline.rare_classes import index_classes
from pipeline.reading import read_json, shortened
from segtrain.class_mixing import read_class_mixing
from segtrain.mixing import LEAST_SHARE, MixedSamples, RareClassCrops, seeded_globals
from segtrain.recipe_checks import check_sample, named_faults
from segtrain.sets import (
    GENERATED,
    SOURCE,
    TARGET,
    NamedSet,
    declared_scale,
    set_pipeline,
)


@dataclass(frozen=True)
class TrainingData:
    """What a training reads: labelled sets, the source last, and unlabelled images."""

    sets: list[NamedSet]
    samples: dict[str, list[Sample]]
    """of each labelled set, by its name"""
    target: Path | None
    """folder of the unlabelled images"""
    unlabelled: list[Path]

    @property
    def names(self) -> list[str]:
        """The names of all sets, the unlabelled one included."""
        return [*self.samples, *([TARGET] if self.target else [])]

    def files(self) -> dict[str, list[Sample] | list[Path]]:
        """Return the samples and the unlabelled images, by the name of the set."""
        return {**self.samples, **({TARGET: self.unlabelled} if self.target else {})}

    def folders(self) -> dict[str, list[Path]]:
        """Return the folders that the training reads, by the setting that names them."""
        folders: dict[str, list[Path]] = {}
        for one in self.sets:
            setting = f"--{one.name}" if one.name in (SOURCE, GENERATED) else "--sets"
            folders.setdefault(setting, []).append(one.folder)
        if self.target:
            folders["--self-training.target"] = [self.target]
        return folders


def open_training_data(
    sets: list[NamedSet],
    target: Path | None,
    *,
    generated_limit: int | None = None,
    targets_allowed: Sequence[str] = (),
) -> TrainingData:
    """Open and check all folders of a training; no image is decoded.

    `generated_limit`: only so many samples of the generated set, the first ones.
    `targets_allowed`: targets, by the names of their origins, whose test data may be trained on.
    """
    for one in sets:
        refuse_test_data(one.folder, allowed=targets_allowed, flag="--train-on-target")
        require_class_names(one.folder)
    unlabelled = find_images(target) if target else []
    check_images(unlabelled)
    samples = {one.name: open_dataset(one.folder, labelled=True) for one in sets}
    if generated_limit is not None:
        found = samples[GENERATED]
        if len(found) < generated_limit:
            raise UserError(
                f"--generated-limit {generated_limit}: --generated has {len(found)} samples; "
                "generate more, or lower the limit"
            )
        samples[GENERATED] = found[:generated_limit]
    for found in samples.values():
        check_dataset(found)
    return TrainingData(sets, samples, target, unlabelled)


def require_class_names(folder: Path) -> None:
    """Raise `UserError` if the class list of a dataset folder is not ours; it may have none."""
    path = folder / "classes.json"
    if not path.is_file():
        return
    names = read_json(path, dict).get("names")
    if names is not None and names != list(CLASS_NAMES):
        found = names if isinstance(names, list) else []
        pairs = zip_longest(found, CLASS_NAMES, fillvalue="none")
        number, (name, ours) = next(
            (number, pair) for number, pair in enumerate(pairs) if pair[0] != pair[1]
        )
        raise UserError(
            f"{path}: class {number} is {shortened(name)}, but the train id {number} is {ours} in "
            "all labels here; convert the dataset by pipeline/prepare.py"
        )


def labelled_samples(
    recipe: Any, data: TrainingData, rare_classes: RareClassCrops, where: str
) -> MixedSamples:
    """Build the sampler of labelled data; check the transforms of each set.

    `where`: the recipe's file, for messages.
    """
    from segtrain.recipes import build_dataset

    rare = {}
    if rare_classes.enabled:
        rare = {name: index_classes(found, rare_classes) for name, found in data.samples.items()}
    datasets = {}
    for one in data.sets:
        with named_faults(where):
            dataset = build_dataset(recipe, one.folder, one.name, len(data.samples[one.name]))
        with named_faults(f"{where}: transforms of {one.name}"), seeded_globals(0):
            check_sample(dataset.pipeline(dataset.get_data_info(0)))
        datasets[one.name] = dataset
    return MixedSamples(
        datasets,
        {one.name: one.share for one in data.sets},
        rare=rare,
        min_crop_pixels=rare_classes.min_crop_ratio * rare_classes.min_pixels,
        class_mixing=read_class_mixing(recipe),
    )


def unlabelled_samples(recipe: Any, data: TrainingData, where: str) -> Any:
    """Build the sampler of unlabelled data for self-training; None without a target."""
    if not data.target:
        return None
    from segtrain.self_training import UnlabelledSamples

    with named_faults(where):
        return UnlabelledSamples(data.unlabelled, set_pipeline(recipe, TARGET))


def require_all_sampled(
    samples: MixedSamples, shares: Mapping[str, float], seed: int, n: int
) -> None:
    """Raise `UserError` if one of the sets is not sampled among the `n` samples of a training."""
    never = samples.never_sampled(seed, n) - {
        name for name, share in shares.items() if share < LEAST_SHARE
    }
    if never:
        name = sorted(never)[0]
        raise UserError(
            f"{name}: none of the training's {n} samples comes from this set, whose share is "
            f"{shares[name]:g}; raise its share or --steps, or drop the set"
        )


def describe_sets(recipe: Any, data: TrainingData) -> str:
    """Return one line for each labelled set: its share, its size, its scale."""
    lines = []
    for one in data.sets:
        scale = declared_scale(set_pipeline(recipe, one.name))
        factors = " to ".join(f"{factor:.3g}" for factor in sorted(set(scale))) if scale else "any"
        lines.append(
            f"{one.name}: {one.share:.0%} of the samples, from {len(data.samples[one.name])} "
            f"images; objects at {factors} times their size in the files"
        )
    return "\n".join(lines)
