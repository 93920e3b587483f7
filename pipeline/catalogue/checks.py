"""Checks of the files of a dataset before anything is made of it.

Every bad file becomes one `Fault`. `headers` reads the first and last bytes of each file; JPEGs are
read through, since nothing else shows damage inside them. `full` decodes every image and label.
"""

import functools
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from pipeline import images, label_spaces, labels
from pipeline.catalogue.specs import Listing, Pair
from pipeline.errors import UserError
from pipeline.images import read_image
from pipeline.parallel import in_processes
from pipeline.reading import shortened
from pipeline.tar_members import find_member

Depth = Literal["headers", "full"]


@dataclass(frozen=True)
class Fault:
    """A bad file, the rule it breaks and the remedy."""

    path: Path
    message: str

    def __str__(self) -> str:
        name = str(self.path)
        return f"{name if name.isprintable() else ascii(name)}: {self.message}"


def check_file(path: Path, table: np.ndarray, depth: Depth, *, label: bool) -> tuple[int, int]:
    """Return (width, height) as shown of an image or label without fault, or raise `UserError`."""
    if not path.exists() and not find_member(path):
        raise UserError("is missing; restore it, or remove its partner")
    header = images.read_header(path, "label" if label else "image")
    if label:
        colors = table.size > 256
        with images.naming(path, "label"):
            labels.check_label_mode(header.mode, colors=colors, converted=True)
        wide = not colors and header.mode in labels.WIDE_MODES
        if depth == "full" or wide or header.kind != "PNG":
            labels.read_label(path, table)  # of wide modes only the pixels tell whether it is ids
    else:
        with images.naming(path, "image"):
            images.check_image_mode(header.mode)
        if depth == "full":
            read_image(path)
        elif header.kind == "JPEG":
            data = images.read_file(path)
            with images.naming(path, "image"):
                images.check_compressed(header, data)
    return header.width, header.height


def check_pair(pair: Pair, label_space: str, depth: Depth) -> list[Fault]:
    """Return the faults of one pair: of each file, and if there is none, of both together."""
    faults, sizes = [], []
    table = label_spaces.label_space(label_space)
    for path, is_label in ((pair.image, False), (pair.label, True)):
        try:
            sizes.append(check_file(path, table, depth, label=is_label))
        except UserError as error:
            message = str(error).removeprefix(f"{path}: ").removeprefix(f"{shortened(path)}: ")
            faults.append(Fault(path, message))
    if not faults and sizes[0] != sizes[1]:
        (a, b), (c, d) = sizes
        message = f"label is {c}x{d} but its image is {a}x{b}; both must have the same size"
        faults.append(Fault(pair.label, message))
    return faults


def check_names(listing: Listing) -> Iterator[Fault]:
    """Yield labels without an image, images equal but for suffix or case, and odd names.

    Images of different folders may share their names, as those of many sequences do.
    """
    for path in listing.orphans:
        yield Fault(path, "label without an image; restore the image or remove the label")
    first: dict[str, Path] = {}
    for pair in listing.pairs:
        stem = unicodedata.normalize("NFC", str(pair.image.with_suffix(""))).casefold()
        if stem in first:
            message = f"has the stem of {first[stem]}; rename one of them, and its label"
            yield Fault(pair.image, message)
        first.setdefault(stem, pair.image)
        for path in (pair.image, pair.label):
            if not path.name.isprintable() or not unicodedata.is_normalized("NFC", path.name):
                yield Fault(path, "name is not printable UTF-8 in normal form NFC; rename the file")


def check_listing(listing: Listing, *, depth: Depth = "headers", workers: int = 1) -> list[Fault]:
    """Return all faults of a listing, those of names first, then in the order of the pairs."""
    check = functools.partial(check_pair, label_space=listing.label_space, depth=depth)
    faults = list(check_names(listing))
    for found in in_processes(check, listing.pairs, workers):
        faults += found
    return faults
