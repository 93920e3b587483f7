"""Find every bad file of a dataset before anything is made of it, one line each.

    python pipeline/preflight.py --dataset cityscapes --root /data/cityscapes --split val
    python pipeline/preflight.py --dataset gta --root /data/gta --split all --depth full

`headers` reads the first and last bytes of each file: absent, empty and truncated files, sizes
that disagree, wrong modes, decompression bombs, labels without picture, equal stems in one folder,
odd names. JPEGs are read through, since nothing else shows damage inside them.
`full` decodes every picture and label too, and finds ids outside the label space. Exit code 0
means no fault, 2 that at least one is listed.
"""

import functools
import multiprocessing
import os
import signal
import sys
import threading
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

if sys.path and sys.path[0] == str(Path(__file__).resolve().parent):  # see CONTRIBUTING.md
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import numpy as np

from pipeline import images, labels
from pipeline.catalogue import (
    DatasetSpec,
    Listing,
    Pair,
    Selection,
    list_pairs,
    open_selection,
)
from pipeline.config import parse, require_between, show
from pipeline.errors import UserError, guard
from pipeline.images import read_image
from pipeline.reading import shortened

Depth = Literal["headers", "full"]
MOST_WORKERS = 256


@dataclass(frozen=True)
class Fault:
    """A bad file, the rule it breaks and the remedy."""

    path: Path
    message: str

    def __str__(self) -> str:
        name = str(self.path)
        return f"{name if name.isprintable() else ascii(name)}: {self.message}"


@dataclass(frozen=True)
class Config(Selection):
    """What to check."""

    depth: Depth = "headers"
    """headers, or full: decode everything"""
    workers: int = 2
    """processes"""


def check_file(path: Path, table: np.ndarray, depth: Depth, *, label: bool) -> tuple[int, int]:
    """Return (width, height) as shown of a picture or label without fault, or raise `UserError`."""
    if not path.exists():
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
    table = labels.label_space(label_space)
    for path, is_label in ((pair.image, False), (pair.label, True)):
        try:
            sizes.append(check_file(path, table, depth, label=is_label))
        except UserError as error:
            message = str(error).removeprefix(f"{path}: ").removeprefix(f"{shortened(path)}: ")
            faults.append(Fault(path, message))
    if not faults and sizes[0] != sizes[1]:
        (a, b), (c, d) = sizes
        message = f"label is {c}x{d} but its picture is {a}x{b}; both must have the same size"
        faults.append(Fault(pair.label, message))
    return faults


def check_names(listing: Listing) -> Iterator[Fault]:
    """Yield labels without a picture, pictures equal but for suffix or case, and odd names.

    Pictures of different folders may share their names, as those of many sequences do.
    """
    for path in listing.orphans:
        yield Fault(path, "label without a picture; restore the picture or remove the label")
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


def in_processes(
    function: Callable[[Any], Any], items: Iterable[Any], workers: int, chunk: int = 64
) -> Iterator[Any]:
    """Yield `function(item)` in order, computed by `workers` processes; 1 means by this one.

    The workers are forked from a clean server process, not from this one: a copy of a process with
    threads (torch and OpenCV start some) can wait forever for a lock that nobody holds any more.
    """
    if workers == 1:
        yield from map(function, items)
        return
    context = multiprocessing.get_context("forkserver")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_serve) as pool:
        try:
            yield from pool.map(function, items, chunksize=chunk)
        except BrokenProcessPool:
            raise UserError(
                "a worker process was killed, perhaps for its memory; use fewer --workers; the "
                "same command continues"
            ) from None


def _serve() -> None:
    """Leave Ctrl-C to the parent, and leave with it: a killed parent must not leave writers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def check_listing(listing: Listing, *, depth: Depth = "headers", workers: int = 1) -> list[Fault]:
    """Return all faults of a listing, those of names first, then in the order of the pairs."""
    check = functools.partial(check_pair, label_space=listing.label_space, depth=depth)
    faults = list(check_names(listing))
    for found in in_processes(check, listing.pairs, workers):
        faults += found
    return faults


def preflight(
    spec: DatasetSpec, root: Path, split: str, depth: Depth = "headers", *, workers: int = 1
) -> list[Fault]:
    """Return all faults of a split."""
    return check_listing(list_pairs(spec, root, split), depth=depth, workers=workers)


def report(faults: list[Fault], num_pairs: int, remedy: str) -> None:
    """Print the faults, one line each; raise `UserError` with their number if there is any."""
    for fault in faults:
        print(fault)
    if faults:
        sys.stdout.flush()  # the summary goes to stderr and comes last
        raise UserError(f"{len(faults)} faults in {num_pairs} pairs, listed above; {remedy}")


def main() -> int | None:
    config, call = parse(Config, __doc__)
    require_between(config, 1, MOST_WORKERS, "workers")
    if call.dry_run:
        show(config)
        return None
    _, listing = open_selection(config)
    faults = check_listing(listing, depth=config.depth, workers=config.workers)
    report(faults, len(listing.pairs), "mend or remove these files")
    print(f"{len(listing.pairs)} pairs, no fault")
    return None


if __name__ == "__main__":
    guard(main)
