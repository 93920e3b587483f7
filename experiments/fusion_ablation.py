"""Generate the same label maps with different fusion settings; compare quality and cost.

    python experiments/fusion_ablation.py --label-maps runs/experiment/data/source \\
        --oracle runs/experiment/segtrain/oracle --train runs/experiment/data/oracle/train \\
        --heldout runs/experiment/data/oracle/heldout --n 32 --output runs/ablation

Needs the oracle segmenter and its data from `pipeline/run.py --recipe pocket_experiment`. Each row
changes one setting of the row that it names. Quality: mIoU of the oracle on the images, over all
classes and over the small ones, and the accuracy of a look classifier. Cost: guided network
evaluations per image, including the base pass. The same command continues.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from statistics import mean

if sys.path and sys.path[0] == str(Path(__file__).resolve().parent):  # see CONTRIBUTING.md
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from benchmarks.machine import describe
from experiments.summary import load, table
from generation.settings import default_config
from pipeline import files
from pipeline.dataset import open_dataset
from pipeline.errors import guard
from pipeline.labels import CLASS_NAMES, SMALL_CLASSES
from pipeline.reading import read_json

ROOT = Path(__file__).resolve().parent.parent
PUBLISHED = "--guess-mode-from 1 --guidance-interval 0 1 --base-pass-classes"  # none named: all
REFERENCE = f"--fusion reference --scheduler ddim --steps 20 --tile-selection uncovered {PUBLISHED}"
FAST = "--scheduler dpm++2m --steps 10"
SLOW = "--scheduler ddim --steps 20 --tile-selection uncovered"
EIGHTH, QUARTER, HALF = "--stride-px 8 16", "--stride-px 16 32", "--stride-px 32 64"
VARIANTS = {  # name -> settings; strides in parts of a tile
    "base pass alone": "--fusion none",
    "reference, stride 1/8": f"{REFERENCE} {EIGHTH}",
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


def run(*words: object) -> None:
    """Run one of the repository's programs."""
    subprocess.run([sys.executable, *map(str, words)], cwd=ROOT, check=True)


def folder_of(output: Path, name: str) -> Path:
    """Return the folder of a variant's images."""
    return output / "".join(c if c.isalnum() else "_" for c in name)


def guided_share(settings: str, steps: int) -> float:
    """Return the mean cost of a step in guided evaluations, by the interval of the settings."""
    first, last = default_config("pocket").guidance_interval
    if "--guidance-interval" in settings:
        first, last = map(float, settings.split("--guidance-interval ")[1].split()[:2])
    guided = sum(first <= number / steps < last for number in range(steps))
    return (guided + 0.5 * (steps - guided)) / steps


def read_arguments() -> argparse.Namespace:
    """Return the options of the call, their paths absolute."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    for name, text in {
        "label-maps": "dataset folder of label maps",
        "oracle": "output folder of the oracle segmenter",
        "train": "rendered dataset folder to train the look classifier on",
        "heldout": "rendered dataset folder to validate it on",
        "output": "folder to write",
    }.items():
        parser.add_argument(f"--{name}", type=Path, required=True, help=text)
    parser.add_argument("--n", type=int, default=32, help="images per row")
    parser.add_argument(
        "--only", nargs="+", choices=VARIANTS, metavar="NAME", help="generate only these rows"
    )
    arguments = parser.parse_args()
    return argparse.Namespace(
        **{k: v.resolve() if isinstance(v, Path) else v for k, v in vars(arguments).items()}
    )


def main() -> None:
    arguments = read_arguments()
    variants = {name: VARIANTS[name] for name in arguments.only or VARIANTS}
    folders = {name: folder_of(arguments.output, name) for name in variants}
    for name, settings in variants.items():
        run(
            "generation/run.py",
            "--n",
            arguments.n,
            "--label-maps",
            arguments.label_maps,
            "--output",
            folders[name],
            *settings.split(),
        )
    scores_file, looks_file = arguments.output / "oracle.json", arguments.output / "looks.json"
    sets = list(folders.values())
    run(
        "segtrain/score.py",
        "--checkpoint",
        arguments.oracle,
        "--targets",
        *sets,
        "--output",
        scores_file,
    )
    run(
        "experiments/look_adherence.py",
        "--train",
        arguments.train,
        "--heldout",
        arguments.heldout,
        "--generated",
        *sets,
        "--output",
        looks_file,
    )
    write_table(arguments, variants, folders)


def write_table(
    arguments: argparse.Namespace, variants: dict[str, str], folders: dict[str, Path]
) -> None:
    """Print the table and write it beside the images."""
    (entry,) = load(arguments.output / "oracle.json").values()
    looks = read_json(arguments.output / "looks.json")["generated"]
    rows = []
    for name, settings in variants.items():
        samples = [s.row for s in open_dataset(folders[name], labelled=True)]
        steps = int(settings.split("--steps ")[1].split()[0]) if "--steps" in settings else 10
        cost = mean(row["evaluations"] for row in samples) * guided_share(settings, steps)
        result = entry["targets"][folders[name].name]
        small = mean(result["iou"][CLASS_NAMES[c]] or 0.0 for c in SMALL_CLASSES)
        top1 = next(v["top1"] for k, v in looks.items() if Path(k).name == folders[name].name)
        seconds = mean(row["seconds"] for row in samples)
        numbers = (result["miou"], small, top1, cost, seconds)
        rows.append([name, *(f"{number:.1f}" for number in numbers)])
    header = ["fusion", "mIoU", "small", "look top-1 %", "evaluations", "seconds"]
    text = f"{table(header, rows)}\n{json.dumps(describe('torch', 'diffusers'))}\n"
    files.write_bytes(arguments.output / "table.md", text.encode())
    print(text)


if __name__ == "__main__":
    guard(main)
