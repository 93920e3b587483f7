"""Label spaces: how the ids or colours of a data set become train ids, and its own classes.

A label space is a YAML file, in datasets/labelspaces or anywhere.
"""

import functools
import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.errors import UserError
from pipeline.labels import NOT_AN_ID, NUM_CLASSES, VOID, shipped
from pipeline.run_records import read_run
from pipeline.yaml_files import load_yaml

LABEL_SPACES = shipped("labelspaces")


def label_space(name: str) -> np.ndarray:
    """Return the table of a label space: a name in datasets/labelspaces or the path of a YAML.

    Keys `train_ids` (id: train id) and `void` (ids) give 256 entries for `read_label`, keys
    `train_colors` (train id: colour, or a list of colours) and `void_colors` give one entry per
    24-bit colour. The key `classes` is for `merged_classes`.
    """
    path = space_file(name)
    return _load_space(path, path.stat().st_mtime_ns if path.is_file() else 0)


def space_file(name: str) -> Path:
    """Return the YAML of a label space given by name or path."""
    path = Path(name)
    if path.suffix not in (".yaml", ".yml"):
        path = LABEL_SPACES / f"{name}.yaml"
        if "/" in name or not path.is_file():
            known = ", ".join(sorted(p.stem for p in LABEL_SPACES.glob("*.yaml")))
            raise UserError(
                f"--label-space {name}: not known; use one of {known}, or the path of a YAML"
            )
    return path


def space_content(name: str) -> dict[str, Any]:
    """Return what a label space says, as JSON values, for the record of what it converted."""
    space = load_yaml(space_file(name))
    label_space(name)  # its faults
    return {
        key: {str(k): v for k, v in value.items()} if isinstance(value, dict) else value
        for key, value in space.items()
    }


@functools.lru_cache(maxsize=4)
def _load_space(path: Path, _changed_ns: int) -> np.ndarray:
    space = load_yaml(path)
    keys = set(space) - {"classes"} if isinstance(space, dict) else set()
    if keys == {"train_ids", "void"}:
        size, pairs = 256, _id_pairs(space, path)
    elif keys == {"train_colors", "void_colors"}:
        size, pairs = 1 << 24, _color_pairs(space, path)
    else:
        raise UserError(
            f"{path}: a label space has exactly the keys train_ids and void, or train_colors and "
            "void_colors, and may have classes"
        )
    table = np.full(size, NOT_AN_ID, dtype=np.uint8)
    for source, target in pairs:
        whole = type(source) is int and type(target) is int and 0 <= source < size  # no booleans
        if not whole or not (0 <= target < NUM_CLASSES or target == VOID):
            raise UserError(
                f"{path}: {source}: {target} does not map an id or colour to 0..18 or 255"
            )
        if table[source] not in (NOT_AN_ID, target):
            shown = source if size == 256 else [source & 255, source >> 8 & 255, source >> 16]
            raise UserError(f"{path}: {shown} is mapped twice, to {table[source]} and {target}")
        table[source] = target
    if not (table < NUM_CLASSES).any():
        raise UserError(f"{path}: maps nothing to a class; fill in its train ids")
    table.setflags(write=False)  # it is shared by everybody who asks for this space
    return table


def _id_pairs(space: dict[str, Any], path: Path) -> list[tuple[Any, Any]]:
    """Return (id, train id) of all ids that a label space names."""
    ids, void = space["train_ids"], space["void"]
    if not isinstance(ids, dict) or not isinstance(void, list):
        raise UserError(f"{path}: train_ids is a mapping of ids to train ids, void a list of ids")
    return [*ids.items(), *((i, VOID) for i in void)]


def _color_pairs(space: dict[str, Any], path: Path) -> list[tuple[Any, Any]]:
    """Return (r + 256 g + 65536 b, train id) of all colours that a label space names."""
    classes, void = space["train_colors"], space["void_colors"]
    if not isinstance(classes, dict) or not isinstance(void, list):
        raise UserError(
            f"{path}: train_colors is a mapping of train ids to colours, void_colors a list of them"
        )
    colors = [(c, VOID) for c in void]
    for target, value in classes.items():
        several = isinstance(value, list) and value and isinstance(value[0], list)
        colors += [(color, target) for color in (value if several else [value])]
    for color, _ in colors:
        numbers = color if isinstance(color, list) and len(color) == 3 else [None]
        if not all(type(n) is int and 0 <= n < 256 for n in numbers):
            raise UserError(f"{path}: {color!r:.60}: a colour is a list of three numbers 0..255")
    return [(int.from_bytes(bytes(color), "little"), target) for color, target in colors]


@dataclass(frozen=True)
class MergedClasses:
    """The classes of a data set that has fewer than 19, to score networks of 19 classes in them.

    `merge` turns HxW train ids (predictions and labels alike) into indices of `names`; train ids
    of none of them become `other`, a class of no label, so that predicting it is wrong; void stays
    void.
    """

    names: tuple[str, ...]
    members: tuple[tuple[int, ...], ...]
    """train ids of each class"""

    @property
    def other(self) -> int:
        """The index of everything that is none of the classes."""
        return len(self.names)

    def record(self) -> list[tuple[str, tuple[int, ...]]]:
        """Return the classes in their order for a run.json; see `classes_of_folder`."""
        return [*zip(self.names, self.members, strict=True)]

    def merge(self, label: np.ndarray) -> np.ndarray:
        """Return HxW uint8 indices of `names`, `other` or 255 for HxW train ids."""
        table = np.full(256, self.other, dtype=np.uint8)
        table[VOID] = VOID
        for index, ids in enumerate(self.members):
            table[list(ids)] = index
        return table[label]


def merged_classes(name: str) -> MergedClasses | None:
    """Return the classes that a label space merges train ids to, None if it keeps all 19."""
    path = space_file(name)
    space = load_yaml(path)
    classes = space.get("classes") if isinstance(space, dict) else None
    if classes is None:
        return None
    merged = parse_merged(classes, f"{path}: classes")
    table = label_space(name)
    if left_out := {*table[table < NUM_CLASSES].tolist()} - {*itertools.chain(*merged.members)}:
        raise UserError(
            f"{path}: classes: train id {min(left_out)}, which labels are mapped to, stands in "
            "none of them, so it would never be scored; add it to one, or map those labels to void"
        )
    return merged


def classes_of_folder(folder: Path) -> MergedClasses | None:
    """Return the own classes of a prepared dataset folder, None if it is scored in all 19.

    They are those of the label space it was converted from, which `prepare` left in its run.json.
    """
    path, classes = folder / "run.json", read_run(folder).get("classes")
    if classes is None:
        return None
    try:
        return parse_merged(dict(classes), f"{path}: classes")
    except (TypeError, ValueError):
        raise UserError(f"{path}: classes is a list of [name, train ids]; prepare again") from None


def parse_merged(classes: Any, where: str) -> MergedClasses:
    """Check a mapping of class names to lists of train ids, no train id in two of them."""
    if not isinstance(classes, dict) or not classes:
        raise UserError(f"{where}: is a mapping of class names to lists of train ids")
    seen: set[int] = set()
    for class_name, ids in classes.items():
        sound = isinstance(ids, list) and all(type(i) is int and 0 <= i < NUM_CLASSES for i in ids)
        if not isinstance(class_name, str) or not sound or not ids:
            raise UserError(f"{where}.{class_name!r:.60}: is a list of train ids 0..18")
        if twice := sorted(seen & set(ids)):
            raise UserError(f"{where}.{class_name}: train id {twice[0]} stands in two classes")
        seen |= set(ids)
    return MergedClasses(tuple(classes), tuple(tuple(ids) for ids in classes.values()))
