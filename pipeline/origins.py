"""What a dataset folder is: its dataset in the catalogue, its split and its role.

A program that writes test data of a target states the role in `run.json`, beside the settings. For
folders that state none, the role is that of their dataset in the catalogue. A program that copies
images of a dataset folder writes `kept_by_copies` of that folder into the `run.json` of its output.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline import label_spaces
from pipeline.addresses import address_of
from pipeline.catalogue import specs
from pipeline.errors import UserError
from pipeline.reading import shortened
from pipeline.run_records import NAME, read_run

TARGET_ROLE = "target"
"""Role of a dataset that networks are scored on."""


@dataclass(frozen=True)
class Origin:
    """What the `run.json` of a folder says; empty where it says nothing."""

    name: str
    """the dataset, or the name of the folder"""
    dataset: str = ""
    """name in the catalogue"""
    split: str = ""
    role: str = ""

    @property
    def is_test_data(self) -> bool:
        """Tell whether networks are scored on it; splits named train are no test data."""
        return self.role == TARGET_ROLE and self.split != "train"


def origin_of(folder: Path) -> Origin:
    """Return the origin of a folder.

    Only names in our own catalogue are looked up, as the folder may come from strangers. Raises
    `UserError` for a role that is no text: test data must not pass for a training set.
    """
    run = read_run(folder)
    config = run.get("config")
    config = config if isinstance(config, dict) else {}
    dataset, split, role = config.get("dataset"), config.get("split"), run.get("role")
    if dataset not in specs.known_datasets():
        dataset = ""
    if role is None:
        role = specs.load_spec(dataset).role if dataset else ""
    if not isinstance(role, str):
        raise UserError(
            f"{address_of(folder) or folder}/{NAME}: role is {shortened(role, 40)}, which is no "
            f'text; correct it, "{TARGET_ROLE}" is the role of test data'
        )
    name = dataset or Path(os.path.realpath(folder)).name  # `resolve` raises for a loop of links
    return Origin(name, dataset, split if isinstance(split, str) else "", role)


def sizes_of(folder: Path) -> dict[str, Any]:
    """Return the heights and widths at which the field tests a folder's dataset, as in `run.json`.

    For folders that were prepared before these were stored they are those of the catalogue. The
    values are not checked.
    """
    run = read_run(folder)
    sizes, config = run.get("protocol"), run.get("config")
    if not sizes and isinstance(config, dict) and config.get("dataset") in specs.known_datasets():
        return dict(specs.protocol_record(specs.load_spec(config["dataset"])))
    sizes = sizes if isinstance(sizes, dict) else {}
    return {name: sizes[name] for name in specs.SIZE_NAMES if name in sizes}


def kept_by_copies(folder: Path, *, whole: bool = True) -> dict[str, Any]:
    """Return what a copy of a folder, or of a part of it, says in `run.json` beside its settings.

    It is what networks are scored by: the role of test data, sizes and own classes. What the
    folder does not say is left out. Sizes are of `whole` images, so crops have none.
    """
    found: dict[str, Any] = {}
    if origin_of(folder).is_test_data:
        found["role"] = TARGET_ROLE
    if whole and (sizes := sizes_of(folder)):
        found["protocol"] = sizes
    if merged := label_spaces.classes_of_folder(folder):
        found["classes"] = merged.record()
    return found


def refuse_test_data(
    folder: Path, setting: str = "", *, allowed: Sequence[str] = (), flag: str = ""
) -> None:
    """Raise `UserError` for a training set that is test data of a target.

    `setting` names the folder in the message. `allowed` are names of origins that may be trained
    on, `flag` is the setting that allows them.
    """
    origin = origin_of(folder)
    if not origin.is_test_data or origin.name in allowed:
        return
    described = f"the split {origin.split} of {origin.dataset}, " if origin.dataset else ""
    way_out = f", or give {flag} {origin.name}" if flag else ""
    raise UserError(
        f"{setting} {folder}".strip() + f": is {described}a target that networks are scored on; "
        f"train on another set{way_out}"
    )
