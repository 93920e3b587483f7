"""The one home of classes, palette, void and the control tensor.

A label is an HxW uint8 map of the 19 Cityscapes train ids with 255 for void. The control tensor
of the ControlNet has 20 channels: the one-hot classes and void on channel 19. Void is never
written back into a label.
"""

import functools
import io
import struct
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from pipeline.config import load_yaml
from pipeline.errors import UserError

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
MAX_PIXELS = 40_000_000  # refuse decompression bombs well below Pillow's own limit
ID_MODES = ("L", "P", "RGB;16")  # the last is SYNTHIA's: the class is in the first channel
COLOR_MODES = ("RGB", "RGBA", "P")
PNG_END = b"IEND\xaeB`\x82"
_NOT_AN_ID = 254  # in the tables of label spaces: reading refuses the id or colour


def shipped(name: str) -> Path:
    """Return a folder of datasets/; a wheel keeps it inside this package, see pyproject.toml."""
    package = Path(__file__).resolve().parent
    installed = package / name
    return installed if installed.is_dir() else package.parent / "datasets" / name


LABEL_SPACES = shipped("labelspaces")


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
    `train_colors` (train id: colour) and `void_colors` give one entry per 24-bit colour.
    """
    path = Path(name)
    if path.suffix not in (".yaml", ".yml"):
        path = LABEL_SPACES / f"{name}.yaml"
        if not path.is_file():
            known = ", ".join(sorted(p.stem for p in LABEL_SPACES.glob("*.yaml")))
            raise UserError(
                f"--label-space {name}: not known; use one of {known}, or the path of a YAML"
            )
    return _load_space(path, path.stat().st_mtime_ns if path.is_file() else 0)


@functools.lru_cache(maxsize=4)
def _load_space(path: Path, _changed_ns: int) -> np.ndarray:
    space = load_yaml(path)
    keys = set(space) if isinstance(space, dict) else set()
    if keys == {"train_ids", "void"}:
        size = 256
        pairs = [*space["train_ids"].items(), *((i, VOID) for i in space["void"])]
    elif keys == {"train_colors", "void_colors"}:
        size = 1 << 24
        colors = [(c, t) for t, c in space["train_colors"].items()]
        colors += [(c, VOID) for c in space["void_colors"]]
        try:
            pairs = [(int.from_bytes(bytes(c), "little"), t) for c, t in colors]
        except (TypeError, ValueError):
            raise UserError(f"{path}: a colour is a list of three numbers 0..255") from None
    else:
        raise UserError(
            f"{path}: a label space has exactly the keys train_ids and void, or train_colors and "
            "void_colors"
        )
    table = np.full(size, _NOT_AN_ID, dtype=np.uint8)
    for source, target in pairs:
        whole = isinstance(source, int) and isinstance(target, int) and 0 <= source < size
        if not whole or not (0 <= target < NUM_CLASSES or target == VOID):
            raise UserError(
                f"{path}: {source}: {target} does not map an id or colour to 0..18 or 255"
            )
        table[source] = target
    table.setflags(write=False)  # it is shared by everybody who asks for this space
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


def png_header(head: bytes) -> tuple[int, int, str]:
    """Return (width, height, mode) of a PNG from its first 26 bytes, or raise `ValueError`.

    The mode is Pillow's; other than 8 bits a channel are marked, as in "RGB;16", palettes never.
    """
    if head[:8] != b"\x89PNG\r\n\x1a\n" or len(head) < 26:
        raise ValueError("no PNG header")
    width, height, bits, kind = struct.unpack(">IIBB", head[16:26])
    mode = {0: "L", 2: "RGB", 3: "P", 4: "LA", 6: "RGBA"}.get(kind, "unknown")
    if bits != 8 and mode != "P":
        mode = "I;16" if (mode, bits) == ("L", 16) else f"{mode};{bits}"
    return width, height, mode


def check_label_mode(mode: str, *, colors: bool) -> None:
    """Raise `UserError` (without a file name) unless labels of this PNG mode can be read.

    Grey PNGs of fewer than 8 bits are refused: decoders scale their values.
    """
    if mode not in (COLOR_MODES if colors else ID_MODES):
        rule = "colours (mode RGB, RGBA or P)" if colors else "single-channel 8-bit ids (L or P)"
        raise UserError(
            f"label has mode {mode}, but labels are {rule}; convert them by pipeline/prepare.py "
            "--label-space NAME"
        )


def read_label(path: str | Path, table: np.ndarray | None = None) -> np.ndarray:
    """Read a label PNG as HxW uint8 train ids.

    Palette PNGs are read as ids, never expanded to colour; of 16-bit RGB PNGs (SYNTHIA) the first
    channel is read. `table` (see `label_space`, `id_table`) converts another label space or
    colours. Raises `UserError` naming the file for unreadable files, wrong modes and ids or
    colours outside the table.
    """
    colors = table is not None and table.size > 256
    try:
        codes = _decode(Path(path).read_bytes(), colors)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    except FileNotFoundError:
        raise UserError(f"{path}: no such label; check the folder or re-create the file") from None
    except (OSError, SyntaxError, ValueError) as error:
        raise UserError(f"{path}: not a readable PNG ({error}); re-create the file") from None
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


def _decode(data: bytes, colors: bool) -> np.ndarray:
    """Return the HxW ids of PNG bytes, or colours as r + 256 g + 65536 b."""
    width, height, mode = png_header(data)
    check_label_mode(mode, colors=colors)
    if width * height > MAX_PIXELS:
        raise UserError(f"more than {MAX_PIXELS} pixels; is this a label map?")
    if mode == "RGB;16":  # Pillow keeps the high bytes only, and OpenCV decodes truncated files
        import cv2

        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
        if pixels is None or PNG_END not in data:
            raise ValueError("truncated")
        return np.minimum(pixels[..., 2], _NOT_AN_ID).astype(np.uint8)  # BGR
    with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
        if not colors:
            return np.array(image)
        return np.array(image.convert("RGBA")).view("<u4")[..., 0] & 0xFFFFFF


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
