"""Find every bad file of a dataset before it is used, one line each.

    python pipeline/preflight.py --dataset cityscapes --root /data/cityscapes --split val
    python pipeline/preflight.py --dataset gta --root /data/gta --split all --depth full

`headers` reads the first and last bytes of each file. It finds missing, empty and truncated files,
different sizes of image and label, wrong modes, decompression bombs, labels without an image, equal
stems in one folder, and unusual names. JPEG files are read completely, because damage inside them
cannot be found otherwise. `full` also decodes every image and label, and finds ids outside the
label space. Exit codes: 0 no fault, 2 at least one fault.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

if sys.path and sys.path[0] == str(Path(__file__).resolve().parent):  # see CONTRIBUTING.md
    sys.path[0] = str(Path(__file__).resolve().parent.parent)


from pipeline.catalogue.checks import Depth, Fault, check_listing
from pipeline.catalogue.specs import (
    DatasetSpec,
    Selection,
    list_pairs,
    open_selection,
)
from pipeline.config import parse, show
from pipeline.errors import UserError, guard
from pipeline.parallel import MOST_WORKERS
from pipeline.setting_checks import require_between


@dataclass(frozen=True)
class Config(Selection):
    """What to check."""

    depth: Depth = "headers"
    """headers, or full: decode everything"""
    workers: int = 2
    """processes"""


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
    report(faults, len(listing.pairs), "repair or remove these files")
    print(f"{len(listing.pairs)} pairs, no fault")
    return None


if __name__ == "__main__":
    guard(main)
