"""The one home of classes, palette, void and the control tensor.

A label is an HxW uint8 map of the 19 Cityscapes train ids with 255 for void. The control tensor
of the ControlNet has 20 channels: the one-hot classes and void on channel 19. Void is never
written back into a label.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline import images
from pipeline.errors import UserError
from pipeline.label_palettes import check_palette

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
NOT_AN_ID = 254  # in the tables of label spaces: reading refuses the id or colour


def shipped(name: str) -> Path:
    """Return a folder of the checkout; a wheel keeps it inside this package, see pyproject.toml.

    `name` is configs, dataset_specs (the catalogue, datasets/ itself), labelspaces or
    pocket_label_maps.
    """
    package = Path(__file__).resolve().parent
    installed = package / name
    if installed.is_dir():
        return installed
    folders = {"configs": "configs", "dataset_specs": "datasets"}
    return package.parent / folders.get(name, f"datasets/{name}")


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
    channel is read. `table` (see `pipeline.label_spaces` and `id_table`) converts another label
    space or colours; a table of ids also takes RGB whose channels are equal or where green and blue
    are empty, and 16-bit grey. Raises `UserError` naming the file for unreadable files, wrong modes
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
        if not colors and header.mode == "P":
            palette = images.palette_of(data)
            if palette is not None:
                read_as = np.arange(256) if table is None else table
                check_palette(codes, palette, table=read_as, classes=PALETTE, void=VOID)
    label = codes if table is None else np.take(table, codes)
    if table is not None and (unknown := label == NOT_AN_ID).any():
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
    if mode in ("I;16", "RGB;16"):
        ids = pixels if mode == "I;16" else pixels[..., 0]
        if ids.max() > VOID:
            raise UserError(
                f"16-bit label has values up to {ids.max()}, as maps of instances do; use the "
                "map of classes"
            )
        return ids.astype(np.uint8)
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
