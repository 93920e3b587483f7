"""What a run needs: settings, models, label maps and what is done, all checked before torch."""

import functools
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from generation import detectors
from generation import label_maps as maps
from generation.plan import PLAN_VERSION, PlanItem, Planner
from generation.regeneration import Regeneration
from generation.settings import Config, run_mapping
from generation.shards import parse_shard
from generation.sizes import check_vae_tiles
from generation.specs import SpecReader
from pipeline import models
from pipeline.config import digest
from pipeline.errors import UserError
from pipeline.head_files import find_head
from pipeline.hub import find_local
from pipeline.identity import run_identity
from pipeline.labels import CONTROL_CHANNELS
from pipeline.metadata_index import MetadataIndex
from pipeline.model_files import read_config
from pipeline.origins import kept_by_copies
from pipeline.output_folders import DATASET, check_output
from pipeline.size_grid import read_size_grid


@dataclass(frozen=True)
class Inputs:
    """Everything that is known and checked before torch is imported."""

    source: maps.LabelMapFolder
    label_maps: list[maps.LabelMap]
    images: dict[str, str]
    """Digest by label map of the source images, where they are used."""
    planner: Planner
    specs: SpecReader
    """Reads the label maps of plan items."""
    missing: list[int]
    """Indices of wanted samples that are not finished."""
    rows: MetadataIndex
    """What the output folder holds."""

    again: dict[int, PlanItem] | None = None
    """The rejected samples by index, if only these are generated (`--regenerate`)."""
    kept: dict[str, Any] = field(default_factory=dict)
    """What run.json keeps of the folder of the source images, where they are used."""

    @functools.cached_property
    def plan(self) -> list[PlanItem]:
        """What the samples will be; made when first needed, never for a finished folder."""
        if self.again is not None:
            return [self.again[index] for index in self.rows.wanted]
        return self.planner.make_plan(self.rows.n)

    def items(self, indices: Iterable[int]) -> list[PlanItem]:
        """Return what the samples of some indices will be."""
        known = self.plan if self.again is None else self.again
        return [known[index] for index in indices]


def check_models(config: Config) -> None:
    """Check all models by their files alone; a hub id that is not here is checked when fetched."""
    base = models.find_base(config.base)
    folder = models.find_folder(config.controlnet, "controlnet")
    channels = read_config(folder, "controlnet")["conditioning_channels"]
    if channels != CONTROL_CHANNELS:
        raise UserError(
            f"--controlnet {config.controlnet}: takes {channels} condition channels, but label "
            f"control has {CONTROL_CHANNELS}; give a semantic ControlNet written by "
            "finetune/controlnet.py"
        )
    models.check_fit(f"--controlnet {config.controlnet}", "controlnet", folder, base)
    find_correction_head(config)
    if config.unet:
        folder = models.find_folder(config.unet, "unet")
        models.check_fit(f"--unet {config.unet}", "unet", folder, base)
    if config.second_control.is_on:
        detectors.check_detector(config.second_control)
        folder = models.find_folder(config.second_control.controlnet, "controlnet")
        if read_config(folder, "controlnet")["conditioning_channels"] != 3:
            raise UserError(
                f"--second-control.controlnet {folder}: does not take 3 condition channels; give a "
                f"ControlNet trained on {config.second_control.kind} images"
            )
        models.check_fit(f"--second-control.controlnet {folder}", "controlnet", folder, base)
    home = find_local(base)
    if home is not None:
        grid = read_size_grid(home / "vae", home / "unet")
        config.sizes.check_grid(grid)
        check_vae_tiles(config.vae_tile_px, grid)


def find_correction_head(config: Config) -> Path | None:
    """Return the checked folder of the segmentation head, None without in-sampling correction."""
    correction = config.correction
    if not correction.is_on:
        return None
    setting = f"--correction.scale {correction.scale:g}"
    return find_head(setting, correction.head, config.controlnet, models.find_base(config.base))


def check_loadable(config: Config) -> None:
    """Find out whether all networks can be loaded, loading none; a hub id is fetched."""
    controls = [config.controlnet]
    if config.second_control.is_on:
        controls.append(config.second_control.controlnet)
    models.check_loadable(
        ("base", models.find_base(config.base)),
        *(("controlnet", models.find_folder(name, "controlnet")) for name in controls),
        ("unet", models.find_folder(config.unet, "unet") if config.unet else None),
        ("segmentation_head", find_correction_head(config)),
    )


def read_inputs(config: Config, regeneration: Regeneration | None = None) -> Inputs:
    """Check all settings and files; prepare the plan, with a `regeneration` of its samples."""
    # Settings and models
    config.check()
    config.sizes.check()
    if not config.output_address:
        check_output(
            config.output,
            DATASET,
            inputs={"--label-maps": config.label_maps_folder, "--regenerate": config.regenerate},
        )
    check_models(config)

    # Label maps and their source images
    source, cache = open_label_maps(config), config.label_maps_cache
    images, kept = {}, {}
    if config.needs_source_images:
        kept = kept_by_copies(config.label_maps_folder, whole=False)
        maps.check_source_images(source)
        images = maps.digest_images(source, cache)
    found = maps.scan(source, cache)
    maps.check_sizes(source, found, config.crop_px)

    # Plan
    counts = np.array([label_map.counts for label_map in found], dtype=np.int64)
    planner = Planner(counts, config.prompt, seed=config.seed, sampling=config.rare_classes)
    specs = spec_reader(config, source, found)
    again = None
    if regeneration:
        again = regeneration.items(found)
        specs = replace(specs, first_attempts=regeneration.attempts)

    # What the output folder has already
    rows = MetadataIndex(config.output, config.n, parse_shard(config.shard), again)
    rows.update()
    rows.retry_failed()
    return Inputs(source, found, images, planner, specs, rows.missing(), rows, again, kept)


def open_label_maps(config: Config) -> maps.LabelMapFolder:
    """List the label maps, with their source images where these are needed."""
    source = maps.open_folder(
        config.label_maps_folder,
        pattern=config.label_pattern,
        label_space=config.label_space,
        height_px=config.label_height_px,
    )
    if config.needs_source_images and len(source.images) < len(source.names):
        raise UserError(
            f"{config.label_maps_folder}: has label maps alone, but --strength, --second-control "
            "and --color-transfer source need their source images; give a dataset folder"
        )
    return source


def spec_reader(
    config: Config, source: maps.LabelMapFolder, found: list[maps.LabelMap]
) -> SpecReader:
    """Return what turns plan items of these label maps into samples for the sampler."""
    return SpecReader(
        folder=source,
        label_maps=found,
        grammar=config.prompt,
        seed=config.seed,
        crop_px=config.crop_px,
        min_rare_share=config.rare_classes.min_share,
        with_source=config.needs_source_images,
        metadata={
            "negative_prompt": config.negative_prompt if config.guidance_scale != 1 else "",
            "fusion": config.fusion,
        },
    )


def identify(config: Config, inputs: Inputs) -> dict[str, Any]:
    """Return what makes two runs the same run: settings and the contents of models and data."""
    settings = run_mapping(config)
    models_of: dict[str, str | Path | None] = {
        "base": models.find_base(config.base),
        "controlnet": models.find_folder(config.controlnet, "controlnet"),
        "unet": models.find_folder(config.unet, "unet") if config.unet else None,
        "correction.head": find_correction_head(config),
    }
    if config.second_control.is_on:
        models_of["second_control.controlnet"] = models.find_folder(
            config.second_control.controlnet, "controlnet"
        )
        settings["second_control"]["detector"] = detectors.detector_revision(config.second_control)
    del settings["second_control"]["controlnet"], settings["label_maps"]
    del settings["correction"]["head"]
    mapping = run_identity(settings, models=models_of)
    mapping["data"]["label_maps"] = maps.contents_digest(inputs.label_maps)
    mapping["plan"] = PLAN_VERSION
    if inputs.images:
        mapping["data"]["images"] = digest(sorted(inputs.images.items()))
    return mapping


def row_revisions(identity: dict[str, Any]) -> dict[str, str]:
    """Return one short revision per model of an identity, for the rows."""
    found = {
        name: value if isinstance(value, str) else digest(value)
        for name, value in identity["models"].items()
    }
    return {"unet": "the base's own", **found}


def row_provenance(identity: dict[str, Any]) -> dict[str, Any]:
    """Return what every row says of its run: digest of the identity, revisions of the models."""
    return {"digest": digest(identity), "revisions": row_revisions(identity)}
