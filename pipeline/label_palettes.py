"""Palette labels whose colours contradict the ids under which they are read.

Editors that write few colours number them again: the colours still say the classes, the indices no
longer do. Nothing else in such a file would show it.
"""

import numpy as np

from pipeline.errors import UserError


def check_palette(
    codes: np.ndarray, palette: np.ndarray, *, table: np.ndarray, classes: np.ndarray, void: int
) -> None:
    """Raise a nameless `UserError` if most pixels, or most ids, are of another class than read.

    `codes` are HxW uint8 indices, `palette` their Nx3 colours, `table` the 256 train ids that they
    are read as, `classes` the 19x3 Cityscapes colours. Other colours do not count; nor do single
    ids that share the colour of a class, as pole groups and licence plates do. Where absent classes
    were left out of a palette, road and the next few keep their ids, and often most pixels. Label
    spaces may merge classes or leave some out, so among ids neither void counts nor a class that
    the id of its own colour is read as too.
    """
    pixels = np.bincount(codes.ravel(), minlength=256)[: len(palette)]
    index, meant = np.nonzero((palette[:, None, :] == classes[None]).all(axis=2))
    kept = meant[table[index] == meant]
    index, meant = index[pixels[index] > 0], meant[pixels[index] > 0]
    wrong = table[index] != meant
    moved = wrong & (table[index] != void) & ~np.isin(table[index], kept)
    most_pixels = pixels[index[wrong]].sum() > pixels[index[~wrong]].sum()
    if wrong.sum() > 2 and (most_pixels or moved.sum() > (~wrong).sum()):
        first = index[wrong][0]
        raise UserError(
            f"the palette gives index {first} and {wrong.sum() - 1} more the Cityscapes colour of "
            "other classes than they are read as, as if indices were renumbered; if the "
            "colours are right, use the label space cityscapes_colors (pipeline/prepare.py "
            "--label-space)"
        )
