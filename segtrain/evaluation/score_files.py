"""Networks of score files: what segtrain/score.py wrote, with the rows beside it, checked."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from pipeline.errors import UserError
from pipeline.identity import file_digest
from pipeline.reading import expecting, read_json, shortened
from segtrain.evaluation.rows import read_rows, rows_file
from segtrain.evaluation.summary import Images, collect

REMEDY = "score again with segtrain/score.py"
MOST_CLASSES = 253


@dataclass
class Network:
    """One network with the counts of all its images, by target."""

    name: str
    checkpoint: str
    weights: str
    selection: dict[str, Any]
    images: dict[str, Images] = field(default_factory=dict)


@dataclass
class Scores:
    """Networks of several files, and what is scored on."""

    networks: dict[str, Network] = field(default_factory=dict)
    classes: dict[str, list[str]] = field(default_factory=dict)
    """by target"""
    datasets: dict[str, str] = field(default_factory=dict)
    """dataset of the catalogue by target, the target's own name where it is of none"""
    catalogued: set[str] = field(default_factory=set)
    """targets that were prepared from a dataset of the catalogue, as published rows are"""
    marks: list[str] = field(default_factory=list)
    """what tables must say: scores on the first images only, say"""

    def common_targets(self, networks: Sequence[Network]) -> list[str]:
        """Return the targets that all networks were scored on, in the order of the files."""
        found = [t for t in self.classes if all(t in one.images for one in networks)]
        if not found:
            raise UserError(
                "the networks share no target; score them on the same ones, or name some by --arms"
            )
        return found


def score_files(paths: Sequence[Path]) -> list[Path]:
    """Return score files, those of each folder among `paths` in its place, sorted by name."""
    if not paths:
        raise UserError("no score file given; name one or more of segtrain/score.py")
    found: list[Path] = []
    for path in paths:
        inside = sorted(path.glob("*.json")) if path.is_dir() else [path]
        if not inside:
            raise UserError(f"{path}: contains no score file; {REMEDY}, with --output in it")
        found += inside
    return found


def read_scores(paths: Sequence[Path]) -> Scores:
    """Read score files; raises `UserError` for a damaged one, or for what contradicts another."""
    scores = Scores()
    for path in paths:
        document = read_json(path, dict, remedy=REMEDY)
        with expecting(path, REMEDY):
            _add(scores, path, document)
    return scores


def _add(scores: Scores, path: Path, document: Mapping[str, Any]) -> None:
    sizes = {}
    for target in document["targets"]:
        entry = document["sets"][target]
        classes = [str(name) for name in entry["classes"]]
        if not 0 < len(classes) <= MOST_CLASSES:
            raise ValueError(f"{len(classes)} classes of {target}")
        if scores.classes.setdefault(target, classes) != classes:
            raise UserError(f"{path}: {target} has other classes than in the files before it")
        scores.datasets[target] = dataset_of(target, entry)
        if entry.get("dataset"):
            scores.catalogued.add(target)
        sizes[target] = len(classes)
    if document.get("limit"):
        scores.marks.append(
            f"{path.name}: the first {int(document['limit'])} images of each target"
        )
    if not document["checkpoints"]:
        raise UserError(f"{path}: holds no network; {REMEDY}")
    require_own_rows(path, document)
    found = collect(read_rows(rows_file(path), sizes))
    for entry in document["checkpoints"]:
        _add_network(scores, path, entry, found.get(entry["name"], {}))


def require_own_rows(path: Path, document: Mapping[str, Any]) -> None:
    """Raise `UserError` if the rows beside a score file are not those it was computed from."""
    rows = rows_file(path)
    if not rows.is_file():
        raise UserError(f"{rows}: no such file, it belongs to {path.name}; {REMEDY}")
    if document["rows_sha256"] != file_digest(rows):
        raise UserError(f"{rows}: is not what {path.name} was computed from; {REMEDY}")


def _add_network(
    scores: Scores, path: Path, entry: Mapping[str, Any], images: dict[str, Images]
) -> None:
    """Add the targets of an entry to its network; another one of its name gets the file's path."""
    name, checkpoint = str(entry["name"]), str(entry["checkpoint"])
    weights, selection = str(entry.get("weights", "")), read_selection(entry)
    if not images:
        raise UserError(f"{rows_file(path)}: holds no row of {shortened(name)}; {REMEDY}")
    known = scores.networks.get(name)
    if known and (known.checkpoint, known.weights) != (checkpoint, weights):
        name = f"{path.with_suffix('')}/{name}"
    network = scores.networks.setdefault(name, Network(name, checkpoint, weights, selection))
    for target, one in images.items():
        if target in network.images:
            raise UserError(f"{path}: scores {name} on {target} again; leave out one of the files")
        network.images[target] = one
    if selection.get("is_target"):
        network.selection = selection


def read_selection(entry: Mapping[str, Any]) -> dict[str, Any]:
    """Return how the network of an entry was chosen; raises as a damaged entry does."""
    selection = dict(entry["selection"])
    if selection.get("rule") == "best":
        selection |= {"on": str(selection["on"]), "candidates": dict(selection["candidates"])}
    return selection


def dataset_of(target: str, entry: Mapping[str, Any]) -> str:
    """Return the dataset of a target in the catalogue, without the version (of Mapillary)."""
    return re.sub(r"_v[\d_]+$", "", str(entry.get("dataset") or target))


def arms_of(scores: Scores, patterns: Sequence[str]) -> dict[str, list[Network]]:
    """Group networks to arms: by NAME=PATTERN, or by their names without a number at the end.

    `source_0`, `source_1` and `source_2` are three seeds of the arm `source`.
    """
    arms: dict[str, list[Network]] = {}
    for text in patterns:
        name, equals, pattern = text.partition("=")
        found = [one for key, one in scores.networks.items() if fnmatchcase(key, pattern)]
        if not (name and equals and found):
            known = ", ".join(scores.networks)
            raise UserError(f"--arms {text}: must be NAME=PATTERN of networks; known: {known}")
        arms[name] = found
    if not patterns:
        for key, one in scores.networks.items():
            match = re.fullmatch(r"(.+)[_-]\d+", key)
            arms.setdefault(match[1] if match else key, []).append(one)
    return arms


def require_same_images(networks: Sequence[Network], targets: Sequence[str]) -> None:
    """Raise `UserError` unless all networks were scored on the same images and labels.

    So it does for a target without a pixel of a class: there is no score to compare.
    """
    first = networks[0]
    for target in targets:
        if not first.images[target].areas.any():
            raise UserError(f"{target}: no pixel of it has a class; score again without this set")
    for network in networks[1:]:
        for target in targets:
            own, other = first.images[target], network.images[target]
            if (own.ids, own.conditions, own.labels) != (other.ids, other.conditions, other.labels):
                raise UserError(
                    f"{network.name}: was scored on other images, conditions or labels of {target} "
                    f"than {first.name}; score both again on the same folder"
                )
