"""What is scored on: labelled dataset folders with their samples and protocols."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pipeline.dataset import Sample, check_dataset, open_dataset
from pipeline.errors import UserError
from pipeline.origins import TARGET_ROLE, origin_of
from segtrain.protocol import Protocol, protocol_of

SELECTION_FLAG = "--select-on-target"


@dataclass(frozen=True)
class Target:
    """A labelled folder under the name that tables give it."""

    name: str
    folder: Path
    samples: list[Sample]

    @cached_property
    def protocol(self) -> Protocol:
        """How the field tests on this dataset."""
        return protocol_of(self.folder)

    def entry(self) -> dict[str, Any]:
        """Return what a score file says of it: its origin in the catalogue, and its classes."""
        found = origin_of(self.folder)
        keys = ("dataset", "split", "role") if found.dataset else ()
        origin = {key: getattr(found, key) for key in keys}
        return {**origin, "images": len(self.samples), "classes": list(self.protocol.class_names)}


def open_targets(folders: Sequence[Path], limit: int | None) -> list[Target]:
    """Open labelled folders and check their first `limit` samples."""
    names = unique_names(folders)
    targets = [
        Target(name, folder, open_dataset(folder, labelled=True)[:limit])
        for name, folder in zip(names, folders, strict=True)
    ]
    for target in targets:
        check_dataset(target.samples)
    return targets


def unique_names(folders: Sequence[Path]) -> list[str]:
    """Name folders by their last part, or by the whole path where that is not unique."""
    names = [folder.resolve().name for folder in folders]
    return [
        name if names.count(name) == 1 else str(folder)
        for name, folder in zip(names, folders, strict=True)
    ]


def require_blind(selection: Target, targets: Sequence[Target], allowed: bool) -> bool:
    """Tell whether a selection uses a target, and raise `UserError` unless that is `allowed`.

    It does if an image of it is one of a target, by path or content, or if its role is that of a
    target.
    """
    own = _marks(selection)
    shared = next((target for target in targets if own & _marks(target)), None)
    is_target = shared is not None or origin_of(selection.folder).role == TARGET_ROLE
    if is_target and not allowed:
        why = f"holds images of the target {shared.name}" if shared else "is a target's dataset"
        raise UserError(
            f"--select-on {selection.folder}: {why}, and a network chosen on it is not blind to "
            f"targets; choose on a development set, or give {SELECTION_FLAG}, which marks every "
            "table"
        )
    return is_target


def _marks(target: Target) -> set[str]:
    """Return what tells the images of a folder: where they are, and what they hold."""
    paths = {str(sample.image.resolve()) for sample in target.samples}
    return paths | {str(s.row["image_sha256"]) for s in target.samples if s.row.get("image_sha256")}
