"""Print the tables of docs/scale.md and docs/performance.md from the model of many GPUs.

    python benchmarks/scale_tables.py                                    # seconds, on a CPU
    python benchmarks/scale_tables.py --set gpu_hour_usd=2 utilization=0.4    # your numbers

Nothing is measured here: benchmarks/scale_model.py computes and simulates, from inputs that the
first table states with their origin.
"""

import argparse
import dataclasses
import sys
from collections.abc import Iterable
from pathlib import Path

if sys.path and sys.path[0] == str(Path(__file__).resolve().parent):  # see CONTRIBUTING.md
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from benchmarks.claims_model import play
from benchmarks.scale_model import (
    MODES,
    Case,
    Inputs,
    bottleneck,
    cost_per_image,
    loads,
    most_gpus,
    simulate,
)
from pipeline.errors import UserError, guard

GPUS = (1, 8, 64, 1000)
IMAGES = (50_000, 1_000_000, 10_000_000)
LOSSES = (1000, 100, 10)  # hours between two losses of a node
STRIDES = {256: 9, 128: 25, 64: 81}  # pixels between tiles of 512 on a canvas of 1024, tiles
TERA = {  # TFLOP/s of U-Net and ControlNet, and where the number comes from
    "H200, 141 GB": (None, "computed: share `utilization` of the measured matrix product"),
    "A100, 80 GB": (117, "published: diffusers, ControlNet, compiled, batch 16"),
    "RTX 4090, 24 GB": (99, "published: diffusers, U-Net alone, compiled, batch 16"),
}


def table(head: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    """Return a Markdown table."""
    names = list(head)
    lines = [names, ["---"] * len(names), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines) + "\n"


def number(value: float) -> str:
    """Return a number with two significant digits, or whole from 100 on."""
    return f"{value:,.0f}" if abs(value) >= 99.5 else f"{float(f'{value:.2g}'):g}"


def percent(share: float) -> str:
    """Return a share in percent."""
    return f"{number(100 * share)} %"


def inputs_table(inputs: Inputs) -> str:
    """Return every input with its unit and its origin."""
    rows = [
        (
            f"`{f.name}`",
            f"{getattr(inputs, f.name):g} {f.metadata['unit']}".strip(),
            f.metadata["origin"],
        )
        for f in dataclasses.fields(inputs)
    ]
    return table(("input", "value", "origin"), rows)


def images_table(inputs: Inputs) -> str:
    """Return what an image and 50,000 images cost by stride."""
    rows = [
        (
            stride,
            tiles,
            inputs.steps * (1 + tiles),
            number(inputs.image_s(tiles)),
            number(inputs.image_s(tiles) * 50_000 / 3600),
        )
        for stride, tiles in STRIDES.items()
    ]
    head = ("stride, px", "tiles", "evaluations", "s per image", "GPU-hours for 50,000")
    return table(head, rows)


def runs_table(inputs: Inputs) -> str:
    """Return hours and efficiency of every size of run, a node lost every 1,000 hours."""
    rows = []
    for gpus in GPUS:
        for images in IMAGES:
            cells = []
            for mode in MODES:
                case = Case(gpus, images, mode, losses_per_node_hour=1 / 1000)
                outcome = simulate(case, inputs)
                cells.append(f"{number(outcome.hours)} h ({percent(outcome.efficiency)})")
            rows.append((gpus, f"{images:,}", *cells))
    return table(("GPUs", "images", *(f"`{mode}`" for mode in MODES)), rows)


def losses_table(inputs: Inputs) -> str:
    """Return what node losses cost, for the cases in which any is expected."""
    rows = []
    for gpus, images in ((64, 1_000_000), (1000, 10_000_000)):
        for hours in LOSSES:
            for mode in ("claims", "shards", "ray-shards"):
                case = Case(gpus, images, mode, losses_per_node_hour=1 / hours)
                if bottleneck(case, inputs)[1] > 1:
                    continue  # beyond its limit
                calm = simulate(dataclasses.replace(case, losses_per_node_hour=0.0), inputs)
                outcome = simulate(case, inputs)
                if not outcome.losses:
                    continue
                longer = outcome.hours / calm.hours - 1
                lost = outcome.lost_gpu_hours / (gpus * outcome.hours)
                shares = percent(lost), percent(longer)
                rows.append(
                    (gpus, f"{images:,}", f"{hours:,} h", f"`{mode}`", outcome.losses, *shares)
                )
    head = ("GPUs", "images", "a node is lost every", "division", "nodes lost", "GPU time lost",
            "run longer by")  # fmt: skip
    return table(head, rows)


def loads_table(inputs: Inputs) -> str:
    """Return the load on shared resources while all GPUs generate."""
    rows = []
    for mode in MODES:
        for gpus in GPUS:
            case = Case(gpus, 1_000_000, mode)
            parts = [
                f"{name}: {number(load)} of {number(most)}"
                for name, (load, most) in loads(case, inputs).items()
            ]
            name, share = bottleneck(case, inputs)
            first = f"{name.partition(',')[0]}, {percent(share)}"
            rows.append((f"`{mode}`", gpus, "; ".join(parts), first))
    return table(("division", "GPUs", "load of capacity", "first bottleneck"), rows)


def limits_table(inputs: Inputs) -> str:
    """Return how many GPUs each way carries, and which resource is then used up."""
    rows = []
    for mode in MODES:
        gpus = most_gpus(mode, inputs)
        name, _ = bottleneck(Case(gpus, gpus * 1000, mode), inputs)
        rows.append((f"`{mode}`", f"{gpus:,}", name.partition(",")[0]))
    return table(("division", "GPUs at most", "resource that is then used up"), rows)


def costs_table(inputs: Inputs) -> str:
    """Return the cost per image of the static shards."""
    rows = []
    for gpus in GPUS:
        for images in IMAGES:
            case = Case(gpus, images, "shards", losses_per_node_hour=1 / 1000)
            found = cost_per_image(case, inputs, simulate(case, inputs))
            rows.append((gpus, f"{images:,}", *(f"{value:.2g}" for value in found.values())))
    head = ("GPUs", "images", "GPUs, USD", "requests, USD", "a month of storage, USD")
    return table(head, rows)


def users_table(inputs: Inputs) -> str:
    """Return time and cost of 10,000 and 50,000 images on kinds and numbers of GPUs."""
    rows = []
    for name, (teraflops, _) in TERA.items():
        of_kind = inputs
        if teraflops:
            of_kind = dataclasses.replace(inputs, utilization=teraflops / inputs.matmul_tflops)
        for stride, tiles in STRIDES.items():
            cells = []
            for images in (10_000, 50_000):
                cells.append(number(of_kind.image_s(tiles) * images / 3600))
                for gpus in (1, 8, 64):
                    case = Case(gpus, images, "claims", tiles)
                    cells.append(number(simulate(case, of_kind).hours))
            rows.append((name, stride, *cells))
    head = ["GPU", "stride, px"]
    for images in ("10,000", "50,000"):
        head += [f"GPU-hours, {images}", "hours, 1 GPU", "hours, 8 GPUs", "hours, 64 GPUs"]
    return table(head, rows)


def claims_table(inputs: Inputs) -> str:
    """Return what workers ask of a shared folder, counted while their queues are played."""
    rows = []
    for workers in (1, 8, 64, 128):
        images = 100 * workers
        found = play(workers, images, inputs.image_s(STRIDES[256]), inputs.variation)
        cells = [number(found[key]) for key in ("tried", "looked", "readings")]
        rows.append((workers, images, *cells))
    head = ("workers", "images", "claims tried", "files looked for", "readings of all rows")
    return table(head, rows)


TABLES = {
    "Inputs": inputs_table,
    "One image": images_table,
    "Runs": runs_table,
    "Node losses": losses_table,
    "Loads": loads_table,
    "Limits": limits_table,
    "Claims": claims_table,
    "Cost per image": costs_table,
    "Time by kind of GPU": users_table,
}


def changed(words: list[str]) -> Inputs:
    """Return the inputs with `name=value` words applied."""
    known = {f.name: f.default for f in dataclasses.fields(Inputs)}
    values = {}
    for word in words:
        name, _, text = word.partition("=")
        if name not in known:
            raise UserError(f"--set {word}: no such input; use {', '.join(known)}")
        try:
            value = type(known[name])(text)
        except ValueError:
            raise UserError(
                f"--set {word}: give a number, for example {name}={known[name]:g}"
            ) from None
        if not 0 < value < float("inf"):
            raise UserError(f"--set {word}: must be above 0, for example {name}={known[name]:g}")
        values[name] = value
    return Inputs(**values)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--set", nargs="+", default=[], metavar="NAME=VALUE", help="other inputs")
    inputs = changed(parser.parse_args().set)
    for title, make in TABLES.items():
        print(f"### {title}\n\n{make(inputs)}")


if __name__ == "__main__":
    guard(main)
