"""What a dataset is and where its pairs of image and label lie: datasets/*.yaml, strict.

A layout is a pair of path templates relative to the root, `leftImg8bit/{split}/{city}/{name}.png`
say. A field matches within one path part, and the label's path is filled in with the fields of
its image, so the names of parent folders never matter.
"""

import functools
import glob
import re
import string
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from pipeline import label_spaces, labels
from pipeline.addresses import missing_folder
from pipeline.config import from_mapping
from pipeline.dataset import open_dataset
from pipeline.errors import UserError
from pipeline.paths import check_relative
from pipeline.tar_members import find_member
from pipeline.yaml_files import load_yaml

CATALOGUE = labels.shipped("dataset_specs")
FIELD = re.compile("[A-Za-z_][A-Za-z0-9_]*")
MAX_FIELDS = 8  # of a template: matching a name takes a power of them
LONGEST_SIDE = 16384  # pixels at which a set is tested
DERIVED = "_labelTrainIds.png"  # the field's converters leave these beside the labels
SIZE_NAMES = ("eval_low_px", "eval_high_px")  # of an entry, and of `protocol` in run.json
OWN_KEYS = (
    "id", "status", "error", "image_file_name", "label_file_name", "image_sha256", "label_sha256",
    "height", "width", "class_pixels", "row_sha256",
)  # fmt: skip


@dataclass(frozen=True)
class Layout:
    """Path templates relative to the root. `{split}` stands for the folder of the split."""

    image: str = ""
    label: str = ""
    label_space: str = "train_ids"


@dataclass(frozen=True)
class Split:
    """One part of a dataset. `count` None means that no count is verified."""

    folder: str = ""
    """what `{split}` stands for; empty: the name of the split"""
    count: int | None = None


@dataclass(frozen=True)
class DatasetSpec:
    """One entry of the catalogue. Without layouts it is a dataset folder of our own."""

    title: str = ""
    role: Literal["source", "target", "generated"] = "source"
    licence: str = ""
    homepage: str = ""
    citation: str = ""
    condition: str = ""
    """of all images; a field `{condition}` in a template takes its place"""
    prefixes: dict[str, str] = field(default_factory=dict)
    """conditions of images whose names begin so"""
    eval_low_px: tuple[int, int] | None = None
    """height and width that images are scaled into for low-resolution networks (DAFormer)"""
    eval_high_px: tuple[int, int] | None = None
    """the same for high-resolution networks (HRDA)"""
    layouts: tuple[Layout, ...] = ()
    """the first one with images and labels is taken"""
    splits: dict[str, Split] = field(default_factory=dict)
    get: dict[str, Any] | None = None
    """where to get it, see pipeline/download.py"""


@dataclass(frozen=True)
class Pair:
    """An image and where its label must be. `attributes` go into the row: names, condition."""

    image: Path
    label: Path
    attributes: dict[str, Any]


@dataclass(frozen=True)
class Listing:
    """The pairs of a split in name order, and labels without an image."""

    pairs: list[Pair]
    orphans: list[Path]
    label_space: str


@dataclass(frozen=True)
class Selection:
    """Which images of which dataset, on the command line."""

    dataset: str = ""
    """name in datasets/ or path of a YAML"""
    root: str = ""
    """folder the dataset was unpacked to"""
    split: str = "all"
    """part of the dataset"""
    condition: str = ""
    """only images of this condition, for example night"""
    label_space: str = ""
    """name in datasets/labelspaces or path of a YAML; empty: the catalogue's"""


def known_datasets() -> list[str]:
    """Return the names in the catalogue."""
    return sorted(p.stem for p in CATALOGUE.glob("*.yaml"))


def load_spec(name: str) -> DatasetSpec:
    """Read an entry: a name in the catalogue or the path of a YAML."""
    path = Path(name)
    if path.suffix not in (".yaml", ".yml"):
        path = CATALOGUE / f"{name}.yaml"
        if "/" in name or not path.is_file():
            raise UserError(
                f"--dataset {name!r}: not in the catalogue; use one of "
                f"{', '.join(known_datasets())}, or the path of a YAML"
            )
    spec = from_mapping(DatasetSpec, load_yaml(path), str(path))
    for key in ("title", "licence", "splits"):
        if not getattr(spec, key):
            raise UserError(f"{path}: {key} is missing; every entry states it")
    for name, split in spec.splits.items():
        _check_below_root(split.folder or name, f"{path}: splits.{name}: folder")
        if split.count is not None and split.count < 0:
            raise UserError(f"{path}: splits.{name}: count {split.count}: must be 0 or more")
    for key in SIZE_NAMES:
        if not all(0 < side <= LONGEST_SIDE for side in getattr(spec, key) or ()):
            raise UserError(f"{path}: {key}: height and width must be in 1..{LONGEST_SIDE}")
    for layout in spec.layouts:
        fields = {}
        for kind in ("image", "label"):
            template = getattr(layout, kind)
            fields[kind] = set(_read_template(template, f"{path}: {kind} {template}"))
        if unknown := sorted(fields["label"] - fields["image"] - {"split"}):
            raise UserError(
                f"{path}: label {layout.label}: {{{unknown[0]}}} is not a field of its image; "
                "use the same fields in both"
            )
        label_spaces.label_space(layout.label_space)
    return spec


def _check_below_root(name: str, where: str) -> None:
    """Raise `UserError` unless `name` is a plain path below the root."""
    try:
        check_relative(name)
    except ValueError as error:
        raise UserError(f"{where}: {error}; give a plain path below --root") from None


def _read_template(template: str, where: str) -> list[str]:
    """Check a path template and return its fields, `split` among them."""
    _check_below_root(template, where)
    try:
        parts = list(string.Formatter().parse(template))
    except ValueError as error:
        raise UserError(f"{where}: {error}; close every brace") from None
    fields: list[str] = []
    for text, name, spec, conversion in parts:
        if name is None:
            continue
        if not FIELD.fullmatch(name):
            raise UserError(f"{where}: {{{name}}}: field names are letters, digits and _")
        if spec or conversion:
            raise UserError(f"{where}: {{{name}}} has a format or conversion; write {{{name}}}")
        if fields and not text and "split" not in (name, fields[-1]):
            raise UserError(f"{where}: {{{fields[-1]}}}{{{name}}} need text between them")
        fields.append(name)
    if len(fields) > MAX_FIELDS:
        raise UserError(f"{where}: has more than {MAX_FIELDS} fields; use fewer")
    return fields


def _fill(template: str, fields: dict[str, str]) -> str:
    """Return a checked template with its fields filled in."""
    parts = string.Formatter().parse(template)
    return "".join(text + (fields[name] if name else "") for text, name, _, _ in parts)


def _any_case(suffix: str) -> str:
    """Return the glob mask of a suffix in upper or lower case: cameras and archives write both."""
    return "".join(f"[{c.lower()}{c.upper()}]" if c.isalpha() else glob.escape(c) for c in suffix)


@functools.lru_cache
def _matcher(template: str, split: str) -> tuple[str, re.Pattern[str]]:
    """Return the glob mask and the regular expression of a template; the suffix in any case."""
    suffix = Path(template).suffix
    suffix = "" if "}" in suffix else suffix
    mask, pattern, seen = "", "", set()
    for text, name, _, _ in string.Formatter().parse(template.removesuffix(suffix)):
        mask, pattern = mask + glob.escape(text), pattern + re.escape(text)
        if name == "split":
            mask, pattern = mask + glob.escape(split), pattern + re.escape(split)
        elif name:
            mask += "*"
            pattern += f"(?P={name})" if name in seen else f"(?P<{name}>[^/]+)"
            seen.add(name)
    return mask + _any_case(suffix), re.compile(f"{pattern}(?i:{re.escape(suffix)})")


def _matches(root: Path, template: str, split: str) -> dict[str, dict[str, str]]:
    """Return the files that fit a template, in name order, with their fields."""
    mask, pattern = _matcher(template, split)
    found = ((name, pattern.fullmatch(name)) for name in sorted(glob.glob(mask, root_dir=root)))
    return {name: match.groupdict() for name, match in found if match}


def list_pairs(spec: DatasetSpec, root: Path, split: str, condition: str = "") -> Listing:
    """List a split below `root`, only the images of `condition` if it is given.

    Raises `UserError` if the root, the split or every layout is absent.
    """
    if not root.is_dir():
        raise missing_folder(root, f"--root is where {spec.title} was unpacked")
    if split not in spec.splits:
        known = ", ".join(spec.splits)
        raise UserError(f"--split {split!r}: {spec.title} has {known}; choose one of them")
    listing = _list_layouts(spec, root, split) if spec.layouts else _list_own(root)
    if not condition:
        return listing
    pairs = [p for p in listing.pairs if p.attributes.get("condition") == condition]
    if not pairs:
        known = ", ".join(sorted({str(p.attributes.get("condition")) for p in listing.pairs}))
        raise UserError(f"--condition {condition}: no such images; {root} has {known}")
    return Listing(pairs, [], listing.label_space)


def _list_layouts(spec: DatasetSpec, root: Path, split: str) -> Listing:
    folder = spec.splits[split].folder or split
    for layout in spec.layouts:
        images = _matches(root, layout.image, folder)
        found = _matches(root, layout.label, folder)
        if images and found:
            break
    else:
        tried = "; ".join(f"{x.image} with {x.label}" for x in spec.layouts)
        raise UserError(
            f"{root}: no {split} split of {spec.title} ({tried}); check --root, it holds these"
        )
    pairs = []
    spelt = {_plain_suffix(name): name for name in found}
    labels_of = {
        name: _fill(layout.label, {**fields, "split": folder}) for name, fields in images.items()
    }
    labels_of = {name: spelt.get(_plain_suffix(x), x) for name, x in labels_of.items()}
    beside = {label for name, label in labels_of.items() if label != name}
    for name, fields in images.items():
        if name in beside:  # a label in the folder of the images, whose template it fits too
            continue
        label = labels_of[name]
        found.pop(label, None)
        by_name = (c for p, c in spec.prefixes.items() if Path(name).name.startswith(p))
        condition = fields.get("condition") or next(by_name, spec.condition)
        attributes = {"original_image": name, "original_label": label}
        attributes |= {"condition": condition} if condition else {}
        pairs.append(Pair(root / name, root / label, attributes))
    if not layout.label.endswith(DERIVED):
        found = {name: fields for name, fields in found.items() if not name.endswith(DERIVED)}
    return Listing(pairs, [root / name for name in found], layout.label_space)


def _plain_suffix(name: str) -> str:
    """Return a name with its suffix in lower case."""
    path = Path(name)
    return str(path.with_suffix(path.suffix.lower()))


def _list_own(root: Path) -> Listing:
    pairs = []
    for sample in open_dataset(root, labelled=True):
        assert sample.label is not None
        attributes = {k: v for k, v in sample.row.items() if k not in OWN_KEYS}
        name = sample.row["label_file_name"]
        if attributes.get("original_image") is None:  # the name of a Cityscapes frame stays
            attributes["original_image"] = sample.row["image_file_name"]
        attributes["original_label"] = f"labels/{sample.id}.png" if find_member(name) else name
        pairs.append(Pair(sample.image, sample.label, attributes))
    return Listing(pairs, [], "train_ids")


def protocol_record(spec: DatasetSpec) -> dict[str, list[int]]:
    """Return the heights and widths at which the field tests this set, for its `run.json`."""
    return {name: list(size) for name in SIZE_NAMES if (size := getattr(spec, name))}


def open_selection(selection: Selection) -> tuple[DatasetSpec, Listing]:
    """Return what a command line selects; say on stderr if it is not as large as expected."""
    for name in ("dataset", "root"):
        if not getattr(selection, name):
            raise UserError(f"--{name}: not given; name the dataset and where it was unpacked")
    spec = load_spec(selection.dataset)
    listing = list_pairs(spec, Path(selection.root), selection.split, selection.condition)
    if selection.label_space:
        label_spaces.label_space(selection.label_space)
        listing = replace(listing, label_space=selection.label_space)
    found, expected = len(listing.pairs), spec.splits[selection.split].count
    if expected is not None and expected != found and not selection.condition:
        print(
            f"notice: {spec.title}, {selection.split}: {found} images of {expected} expected",
            file=sys.stderr,
        )
    return spec, listing
