"""The one home of classes, palette, void and the control tensor.

A label is an HxW uint8 map of the 19 Cityscapes train ids with 255 for void. The control tensor
of the ControlNet has 20 channels: the one-hot classes and void on channel 19. Void is never
written back into a label.
"""

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline import images
from pipeline.errors import UserError
from pipeline.label_palettes import check_palette
from pipeline.reading import read_json
from pipeline.yaml_files import load_yaml

if TYPE_CHECKING:
    import torch

CLASS_NAMES = (
    "road", "sidewalk", "building", "wall", "fence", "pole", "traffic light", "traffic sign",
    "vegetation", "terrain", "sky", "person", "rider", "car", "truck", "bus", "train",
    "motorcycle", "bicycle",
)  # fmt: skip
PALETTE = np.array(
    [
        (128, 64, 128), (244, 35, 232), (70, 70, 70), (102, 102, 156), (190, 153, 153),
        (153, 153, 153), (250, 170, 30), (220, 220, 0), (107, 142, 35), (152, 251, 152),
        (70, 130, 180), (220, 20, 60), (255, 0, 0), (0, 0, 142), (0, 0, 70), (0, 60, 100),
        (0, 80, 100), (0, 0, 230), (119, 11, 32),
    ],
    dtype=np.uint8,
)  # fmt: skip
NUM_CLASSES = len(CLASS_NAMES)
VOID = 255
CONTROL_CHANNELS = NUM_CLASSES + 1
SMALL_CLASSES = (5, 6, 7, 11, 12)  # pole, traffic light, traffic sign, person, rider
ID_MODES = ("L", "P", "RGB;16")  # the last is SYNTHIA's: the class is in the first channel
WIDE_MODES = ("RGB", "RGBA", "LA", "I;16")  # ids that programs left in several channels or bytes
COLOR_MODES = ("RGB", "RGBA", "P")
_NOT_AN_ID = 254  # in the tables of label spaces: reading refuses the id or colour


def shipped(name: str) -> Path:
    """Return a folder of the checkout; a wheel keeps it inside this package, see pyproject.toml.

    `name` is configs, dataset_specs (the catalogue, datasets/ itself), labelspaces or
    pocket_layouts.
    """
    package = Path(__file__).resolve().parent
    installed = package / name
    if installed.is_dir():
        return installed
    folders = {"configs": "configs", "dataset_specs": "datasets"}
    return package.parent / folders.get(name, f"datasets/{name}")


LABEL_SPACES = shipped("labelspaces")


def classes_record() -> dict[str, Any]:
    """Return the content of a dataset folder's classes.json: names, colours and void id."""
    return {"names": list(CLASS_NAMES), "palette": PALETTE.tolist(), "void": VOID}


def colorize(label: np.ndarray) -> np.ndarray:
    """Return the Cityscapes colours of `label`, HxWx3 uint8; void is black."""
    table = np.zeros((256, 3), dtype=np.uint8)
    table[:NUM_CLASSES] = PALETTE
    return table[label]


def id_table(mapping: dict[int, int]) -> np.ndarray:
    """Return a 256-entry uint8 table that maps other ids to train ids; unnamed ids become void."""
    table = np.full(256, VOID, dtype=np.uint8)
    for source, target in mapping.items():
        table[source] = target
    return table


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
    table = np.full(size, _NOT_AN_ID, dtype=np.uint8)
    for source, target in pairs:
        whole = type(source) is int and type(target) is int and 0 <= source < size  # no booleans
        if not whole or not (0 <= target < NUM_CLASSES or target == VOID):
            raise UserError(
                f"{path}: {source}: {target} does not map an id or colour to 0..18 or 255"
            )
        if table[source] not in (_NOT_AN_ID, target):
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
    return None if classes is None else parse_merged(classes, f"{path}: classes")


def classes_of_folder(folder: Path) -> MergedClasses | None:
    """Return the own classes of a prepared dataset folder, None if it is scored in all 19.

    They are those of the label space it was converted from, which `prepare` left in its run.json.
    """
    path = folder / "run.json"
    classes = read_json(path, dict).get("classes") if path.is_file() else None
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


def check_ids(label: np.ndarray, name: str) -> None:
    """Raise `UserError` if `label` holds ids other than 0..18 and 255."""
    present = np.flatnonzero(np.bincount(label.ravel(), minlength=256))
    wrong = present[(present >= NUM_CLASSES) & (present != VOID)]
    if wrong.size:
        raise UserError(
            f"{name}: label ids {wrong.tolist()} are outside 0..{NUM_CLASSES - 1} and {VOID}; "
            "convert them to Cityscapes train ids by pipeline/prepare.py --label-space NAME"
        )


def check_label_mode(mode: str, *, colors: bool, converted: bool = False) -> None:
    """Raise `UserError` (without a file name) unless labels of this PNG mode can be read.

    `converted`: they are read through a label space, where ids may also lie in a channel of RGB or
    in 16 bits. Grey PNGs of fewer than 8 bits are refused: decoders scale their values.
    """
    wide = WIDE_MODES if converted and not colors else ()
    if mode not in (*(COLOR_MODES if colors else ID_MODES), *wide):
        rule = "colours (mode RGB, RGBA or P)" if colors else "single-channel 8-bit ids (L or P)"
        remedy = (
            "save them so"
            if converted
            else "convert them by pipeline/prepare.py --label-space NAME"
        )
        raise UserError(f"label has mode {mode}, but labels are {rule}; {remedy}")


def read_label(path: str | Path, table: np.ndarray | None = None) -> np.ndarray:
    """Read a label PNG as HxW uint8 train ids.

    Palette PNGs are read as ids, never expanded to colour; of 16-bit RGB PNGs (SYNTHIA) the first
    channel is read. `table` (see `label_space`, `id_table`) converts another label space or
    colours; a table of ids also takes RGB whose channels are equal or where green and blue are
    empty, and 16-bit grey. Raises `UserError` naming the file for unreadable files, wrong modes
    and ids or colours outside the table.
    """
    return decode_label(images.read_file(path), path, table)


def decode_label(data: bytes, path: str | Path, table: np.ndarray | None = None) -> np.ndarray:
    """Do what `read_label` does with the bytes of the file, which messages call `path`."""
    colors = table is not None and table.size > 256
    with images.naming(path, "PNG"):
        header = images.header_of(data)
        check_label_mode(header.mode, colors=colors, converted=table is not None)
        images.check_size(header)
        codes = images.decode_codes(data, header, colors=colors)
        if not colors:
            codes = _single_channel(codes, header.mode)
        if table is not None and not colors and header.mode == "P":
            palette = images.palette_of(data)
            if palette is not None:
                check_palette(codes, palette, table, PALETTE)
    label = codes if table is None else np.take(table, codes)
    if table is not None and (unknown := label == _NOT_AN_ID).any():
        found = np.unique(codes[unknown])[:8].tolist()
        if colors:
            found = [(c & 255, c >> 8 & 255, c >> 16) for c in found]
        raise UserError(
            f"{path}: label {'colours' if colors else 'ids'} {found} are outside its label space; "
            "name the right --label-space, or add them to its YAML"
        )
    check_ids(label, str(path))
    return label


def _single_channel(pixels: np.ndarray, mode: str) -> np.ndarray:
    """Return HxW uint8 ids of decoded pixels that may have channels or two bytes."""
    if mode == "I;16":
        if pixels.max() > VOID:
            raise UserError(
                f"16-bit label has values up to {pixels.max()}, as maps of instances do; use the "
                "map of classes"
            )
        return pixels.astype(np.uint8)
    if mode == "RGB;16":
        return np.minimum(pixels[..., 0], _NOT_AN_ID).astype(np.uint8)
    if pixels.ndim == 2:
        return pixels
    if mode != "LA":
        first, others = pixels[..., :1], pixels[..., 1:3]
        if others.any() and (others != first).any():
            raise UserError(
                f"label has mode {mode} and three channels that differ: its colours need a label "
                "space of train_colors; ids in the first channel alone need the others emptied"
            )
    return np.ascontiguousarray(pixels[..., 0])


def one_hot_control(labels: "torch.Tensor") -> "torch.Tensor":
    """Turn BxHxW uint8 train ids into the Bx20xHxW float32 control of values 0 and 1.

    Void (255) goes to channel 19. The input is not modified. DGInStyle, section 3.2.
    """
    import torch

    ids = labels.long()
    ids = torch.where(ids == VOID, NUM_CLASSES, ids)
    return torch.nn.functional.one_hot(ids, CONTROL_CHANNELS).movedim(-1, 1).float()


def count_classes(label: np.ndarray) -> np.ndarray:
    """Return the pixels of each of the 19 classes, void left out."""
    return np.bincount(label.ravel(), minlength=256)[:NUM_CLASSES]


def present_class_names(label: np.ndarray) -> list[str]:
    """Return the names of the classes in `label` in train id order, void skipped."""
    return [CLASS_NAMES[i] for i in np.unique(label) if i < NUM_CLASSES]
