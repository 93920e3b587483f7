"""The one home of classes, palette, void and the control tensor.

A label is an HxW uint8 map of the 19 Cityscapes train ids with 255 for void. The control tensor
of the ControlNet has 20 channels: the one-hot classes and void on channel 19. Void is never
written back into a label.
"""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

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
    present = np.unique(label)
    wrong = present[(present >= NUM_CLASSES) & (present != VOID)]
    if wrong.size:
        raise UserError(
            f"{name}: label ids {wrong.tolist()} are outside 0..{NUM_CLASSES - 1} and {VOID}; "
            "convert the labels to Cityscapes train ids, or name their --label-space"
        )


def read_label(path: str | Path, table: np.ndarray | None = None) -> np.ndarray:
    """Read a label PNG as HxW uint8 train ids.

    Palette PNGs are read as ids, never expanded to colour. `table` (256 entries, see `id_table`)
    converts another label space first. Raises `UserError` naming the file for unreadable files,
    colour or 16-bit labels and ids outside 0..18 and 255.
    """
    try:
        with Image.open(path, formats=("PNG",)) as image:
            if image.mode not in ("L", "P"):
                raise UserError(
                    f"{path}: label has mode {image.mode}, but labels are single-channel 8-bit "
                    "ids (mode L or P); convert colours to ids first"
                )
            if image.width * image.height > MAX_PIXELS:
                raise UserError(f"{path}: more than {MAX_PIXELS} pixels; is this a label map?")
            label = np.array(image)
    except FileNotFoundError:
        raise UserError(f"{path}: no such label; check the folder or re-create the file") from None
    except (OSError, SyntaxError, ValueError) as error:
        raise UserError(f"{path}: not a readable PNG ({error}); re-create the file") from None
    if table is not None:
        label = table[label]
    check_ids(label, str(path))
    return label


def one_hot_control(labels: "torch.Tensor") -> "torch.Tensor":
    """Turn BxHxW uint8 train ids into the Bx20xHxW float32 control of values 0 and 1.

    Void (255) goes to channel 19. The input is not modified. DGInStyle, section 3.2.
    """
    import torch

    ids = labels.long()
    ids = torch.where(ids == VOID, NUM_CLASSES, ids)
    return torch.nn.functional.one_hot(ids, CONTROL_CHANNELS).movedim(-1, 1).float()


def present_class_names(label: np.ndarray) -> list[str]:
    """Return the names of the classes in `label` in train id order, void skipped."""
    return [CLASS_NAMES[i] for i in np.unique(label) if i < NUM_CLASSES]
