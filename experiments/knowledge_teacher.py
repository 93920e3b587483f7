"""Measure how much the conditional branch of IPKL improves on the unconditional one (mIoU).

In IPKL (Ji et al., ICASSP 2025) the conditional branch teaches the unconditional one. It receives
the classes of an image and their masks, here from the ground truth as in training. If it predicts
no better, there is nothing to teach.

    python experiments/knowledge_teacher.py --checkpoint DIR [DIR ...] --data DIR [--limit N]

`--checkpoint`: output folders of segtrain/train.py with IPKL. `--data`: a labelled dataset folder
that no training used. Columns: `unconditional` and `conditional` are the two branches; the
conditional branch receives at most as many classes as in a training step. `conditional, all
classes` receives every class of the image. `equal` is the share of pixels on which it agrees with
the unconditional branch.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

if sys.path and sys.path[0] == str(Path(__file__).resolve().parent):  # see CONTRIBUTING.md
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from pipeline.dataset import Sample, open_dataset, read_pair
from pipeline.errors import UserError, guard
from pipeline.iou import AREAS, areas_of, score_of
from pipeline.labels import NUM_CLASSES
from segtrain.segmenter import Segmenter

BRANCHES = ("unconditional", "conditional", "conditional, all classes")


@torch.no_grad()
def predictions(segmenter: Segmenter, image: np.ndarray, label: torch.Tensor) -> list[torch.Tensor]:
    """Return the train ids HxW that each of `BRANCHES` predicts; `label` HxW int64 train ids."""
    network = segmenter.model
    inputs, samples = segmenter.prepare([image])
    latents = network.backbone.encode(inputs)
    truth = label[None, None]
    some = network.conditional_options(truth, latents, network.ipkl.max_classes)
    results = []
    for options in ({}, some, network.conditional_options(truth, latents)):
        maps = network.extract_feat(inputs, latents=latents, **(options or {}))
        metainfo = [sample.metainfo for sample in samples]
        logits = network.decode_head.predict(maps, metainfo, network.test_cfg)
        results.append(network.postprocess_result(logits, samples)[0].pred_sem_seg.data[0])
    return results


def measure(folder: Path, samples: list[Sample]) -> str:
    """Return a row of the table."""
    segmenter = Segmenter.from_pretrained(folder)
    if getattr(segmenter.model, "ipkl", None) is None:
        raise UserError(f"{folder}: was trained without `ipkl`; give a run with IPKL")
    torch.manual_seed(0)  # selects the classes of the conditional branch
    areas, same = np.zeros((len(BRANCHES), AREAS, NUM_CLASSES), np.int64), []
    for sample in tqdm(samples, leave=False):
        image, ids = read_pair(sample)
        label = torch.from_numpy(ids.astype(np.int64))
        found = predictions(segmenter, image, label)
        areas += np.stack([areas_of(prediction.byte().numpy(), ids) for prediction in found])
        same.append([float((found[0] == other).float().mean()) for other in found[1:]])
    scores = [f"{score_of(each, len(samples))['miou']:.1f}" for each in areas]
    shares = [f"{100 * share:.1f}" for share in np.mean(same, axis=0)]
    return f"| {folder.name} | {' | '.join([*scores, *shares])} |"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument(
        "--checkpoint",
        nargs="+",
        required=True,
        type=Path,
        help="output folders of segtrain/train.py",
    )
    parser.add_argument("--data", required=True, type=Path, help="labelled dataset folder")
    parser.add_argument("--limit", type=int, help="use only the first N images")
    arguments = parser.parse_args()
    if arguments.limit is not None and arguments.limit < 1:
        parser.error("--limit: must be 1 or more")
    samples = open_dataset(arguments.data, labelled=True)[: arguments.limit]
    titles = [f"{name}, mIoU %" for name in BRANCHES]
    titles += [f"equal, {name}, %" for name in BRANCHES[1:]]
    print(f"| run | {' | '.join(titles)} |", "|---" * (len(titles) + 1) + "|", sep="\n")
    for folder in arguments.checkpoint:
        print(measure(folder, samples))


if __name__ == "__main__":
    guard(main)
