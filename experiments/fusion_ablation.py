"""Generate the same label maps with different fusion settings; compare quality and cost.

    python experiments/fusion_ablation.py --label-maps runs/ladder/data/source \\
        --oracle runs/ladder/segtrain/oracle --train runs/ladder/data/oracle/train \\
        --heldout runs/ladder/data/oracle/heldout --output runs/ablation

Needs the oracle segmenter and its data from `pipeline/run.py --recipe pocket_ladder`. All rows have
the same guidance scale, label maps, prompts and noise; each seed has its own. Quality: mIoU of the
oracle on the images, over all classes and over the small ones, and the accuracy of a look
classifier. Cost: guided network evaluations per image, including the base pass. A row is on the
frontier if no other row has a higher mIoU at no more evaluations. The same command continues.
"""

import argparse
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

if sys.path and sys.path[0] == str(Path(__file__).resolve().parent):  # see CONTRIBUTING.md
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from benchmarks.machine import heading
from experiments.score_files import load, spread
from generation.settings import default_config
from pipeline import files
from pipeline.dataset import open_dataset
from pipeline.errors import guard
from pipeline.labels import CLASS_NAMES, SMALL_CLASSES
from pipeline.launching import has_accelerator, launch_prefix
from pipeline.markdown import table
from pipeline.reading import read_json
from pipeline.setting_checks import require_positive

ROOT = Path(__file__).resolve().parent.parent
PUBLISHED_ROW = "reference, stride 1/8"
PUBLISHED = "--guess-mode-from 1 --guidance-interval 0 1 --base-pass-classes"  # none named: all
REFERENCE = f"--fusion reference --scheduler ddim --steps 20 --tile-selection uncovered {PUBLISHED}"
FAST = "--scheduler dpm++2m --steps 10"
SLOW = "--scheduler ddim --steps 20 --tile-selection uncovered"
EIGHTH, QUARTER, HALF = "--stride-px 8 16", "--stride-px 16 32", "--stride-px 32 64"
VARIANTS = {  # name -> settings; strides in parts of a tile
    "base pass alone": "--fusion none",
    PUBLISHED_ROW: f"{REFERENCE} {EIGHTH}",
    "reference, stride 1/4": f"{REFERENCE} {QUARTER}",
    "aligned, stride 1/4, DDIM 20": f"{SLOW} {QUARTER}",
    "aligned, stride 1/2, DDIM 20": f"{SLOW} {HALF}",
    "aligned, stride 1/2, DPM++ 2M 10": f"{FAST} {HALF}",
    "aligned, stride 1/2, UniPC 10": f"--scheduler unipc --steps 10 {HALF}",
    "DPM++ 2M 10, Gaussian weights": f"{FAST} {HALF} --tile-weight gaussian",
    "DPM++ 2M 10, greedy tile selection": f"{FAST} {QUARTER} --tile-selection greedy",
    "DPM++ 2M 10, all classes fixed": f"{FAST} --base-pass-classes {HALF}",
    "DPM++ 2M 10, guidance from 0 to 1": f"{FAST} {HALF} --guidance-interval 0 1",
    "DPM++ 2M 10, guidance from 0.2 to 1": f"{FAST} {HALF} --guidance-interval .2 1",
    "DPM++ 2M 10, no guess mode": f"{FAST} {HALF} --guess-mode-from 1",
    "DPM++ 2M 6": f"--scheduler dpm++2m --steps 6 {HALF}",
}


def guided_share(settings: str, steps: int) -> float:
    """Return the mean cost of a step in guided evaluations, by the interval of the settings."""
    first, last = default_config("pocket").guidance_interval
    if "--guidance-interval" in settings:
        first, last = map(float, settings.split("--guidance-interval ")[1].split()[:2])
    guided = sum(first <= number / steps < last for number in range(steps))
    return (guided + 0.5 * (steps - guided)) / steps


def read_arguments() -> argparse.Namespace:
    """Return the options of the call, their paths absolute."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, text in {
        "label-maps": "dataset folder of label maps",
        "oracle": "output folder of the oracle segmenter",
        "train": "rendered dataset folder to train the look classifier on",
        "heldout": "rendered dataset folder to validate it on",
        "output": "folder to write",
    }.items():
        parser.add_argument(f"--{name}", type=Path, required=True, help=text)
    for network in ("base", "controlnet"):
        parser.add_argument(f"--{network}", default="pocket", help="as in generation/run.py")
    parser.add_argument("--n", type=int, default=64, help="images per row and seed")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="generation seeds")
    parser.add_argument("--processes", type=int, default=1, help="processes of the generation")
    parser.add_argument(
        "--only", nargs="+", choices=VARIANTS, metavar="NAME", help="generate only these rows"
    )
    arguments = parser.parse_args()
    require_positive(arguments, "n", "processes")
    return argparse.Namespace(
        **{k: v.resolve() if isinstance(v, Path) else v for k, v in vars(arguments).items()}
    )


@dataclass
class Row:
    """The measurements of one variant, one value per seed."""

    name: str
    miou: list[float]
    small: list[float]
    looks: list[float]
    evaluations: float
    seconds: float

    def cells(self, *, on_frontier: bool) -> list[str]:
        """Return the cells of the row."""
        spreads = [spread(values) for values in (self.miou, self.small, self.looks)]
        cost = [f"{self.evaluations:.1f}", f"{self.seconds:.2f}"]
        return [self.name, *spreads, *cost, "yes" if on_frontier else ""]


def read_row(name: str, folders: list[Path], targets: dict[str, Any], looks: dict[str, Any]) -> Row:
    """Return the measurements of the folders of a variant, one per seed."""
    settings = VARIANTS[name]
    steps = int(settings.split("--steps ")[1].split()[0]) if "--steps" in settings else 10
    rows = [sample.row for folder in folders for sample in open_dataset(folder, labelled=True)]
    scores = [targets[folder.name] for folder in folders]
    top1 = {Path(key).name: value["top1"] for key, value in looks.items()}
    return Row(
        name,
        miou=[score["miou"] for score in scores],
        small=[
            mean(score["iou"][CLASS_NAMES[c]] or 0.0 for c in SMALL_CLASSES) for score in scores
        ],
        looks=[top1[folder.name] for folder in folders],
        evaluations=mean(row["evaluations"] for row in rows) * guided_share(settings, steps),
        seconds=mean(row["seconds"] for row in rows),
    )


def frontier(rows: list[Row]) -> list[bool]:
    """Tell for each row whether none beats its mIoU at no more evaluations."""
    return [
        not any(
            mean(other.miou) > mean(row.miou) and other.evaluations <= row.evaluations
            for other in rows
        )
        for row in rows
    ]


def verdict(rows: list[Row]) -> str:
    """Compare each row with the published fusion at its finest stride, seed by seed."""
    known = {row.name: row for row in rows}
    if PUBLISHED_ROW not in known:
        return ""
    published, lines = known[PUBLISHED_ROW], []
    for row in rows:
        gains = [a - b for a, b in zip(row.miou, published.miou, strict=True)]
        fewer = published.evaluations / row.evaluations
        if row is not published:
            lines.append([row.name, spread(gains), f"{fewer:.1f}"])
    header = ["fusion", f"mIoU minus {PUBLISHED_ROW}", "times fewer evaluations"]
    return table(header, lines)


def main() -> None:
    arguments = read_arguments()
    folders = {
        name: [arguments.output / f"{slug(name)}_{seed}" for seed in arguments.seeds]
        for name in arguments.only or VARIANTS
    }
    launcher = launch_prefix("accelerate", arguments.processes, has_accelerator())
    for name, own in folders.items():
        for seed, folder in zip(arguments.seeds, own, strict=True):
            common = ["--n", arguments.n, "--seed", seed, "--label-maps", arguments.label_maps]
            common += ["--base", arguments.base, "--controlnet", arguments.controlnet]
            words = ["generation/run.py", *common, "--output", folder, *VARIANTS[name].split()]
            run(launcher, words)
    sets = [folder for own in folders.values() for folder in own]
    scores, looks = arguments.output / "oracle.json", arguments.output / "looks.json"
    score = ["segtrain/score.py", "--checkpoint", arguments.oracle, "--targets", *sets]
    run([sys.executable], [*score, "--output", scores])
    classify = ["experiments/look_adherence.py", "--train", arguments.train]
    classify += ["--heldout", arguments.heldout, "--generated", *sets, "--output", looks]
    run([sys.executable], classify)
    (entry,) = load(scores).values()
    named = read_json(looks)["generated"]
    rows = [read_row(name, own, entry["targets"], named) for name, own in folders.items()]
    write_tables(arguments.output / "table.md", rows)


def run(launcher: list[str], words: list[object]) -> None:
    """Run one of the repository's programs."""
    subprocess.run([*launcher, *map(str, words)], cwd=ROOT, check=True)


def slug(name: str) -> str:
    """Return the name of a variant's folders."""
    return "".join(c if c.isalnum() else "_" for c in name)


def write_tables(path: Path, rows: list[Row]) -> None:
    """Print the tables and write them."""
    header = ["fusion", "mIoU", "small", "look top-1 %", "evaluations", "seconds", "frontier"]
    cells = [row.cells(on_frontier=on) for row, on in zip(rows, frontier(rows), strict=True)]
    parts = [heading(shlex.join(["python", *sys.argv])), table(header, cells), verdict(rows)]
    text = "\n\n".join(part for part in parts if part) + "\n"
    files.write_bytes(path, text.encode())
    print(text)


if __name__ == "__main__":
    guard(main)
