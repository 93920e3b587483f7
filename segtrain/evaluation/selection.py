"""The choice of one of several networks on a development set."""

import sys
from collections.abc import Mapping
from typing import Any

import numpy as np

from pipeline.errors import UserError
from pipeline.iou import AREAS, score_of
from segtrain.evaluation.parts import Part
from segtrain.evaluation.segmenters import Predict
from segtrain.evaluation.streaming import NotFiniteError, score_images, sum_over_processes
from segtrain.evaluation.targets import Target


def development_score(
    predict: Predict,
    development: Target,
    name: str,
    accelerator: Any,
    part: Part,
    keys: dict[str, str],
) -> float | None:
    """Return the mIoU of a network on the development set, the same on all processes.

    None: its probabilities are not numbers.
    """
    class_names = development.protocol.class_names
    areas = np.zeros((AREAS, len(class_names)), np.int64)
    is_broken = np.zeros(1, np.int64)
    try:
        areas, _ = score_images(predict, development, name, accelerator, part, keys)
    except NotFiniteError as error:
        is_broken[0] = 1
        print(f"notice: {error}", file=sys.stderr)
    areas = sum_over_processes(areas, accelerator)
    is_broken = sum_over_processes(is_broken, accelerator)
    return None if is_broken.any() else score_of(areas, 0, class_names)["miou"] or 0.0


def best_network(scores: Mapping[str, float | None], setting: str) -> str:
    """Return the network of the highest score; one without a score is never taken.

    Raises `UserError`, which begins with the `setting`, if none has one.
    """
    sound = {name: score for name, score in scores.items() if score is not None}
    if not sound:
        raise UserError(
            f"{setting}: the probabilities of all {len(scores)} networks are not numbers; train "
            "them again"
        )
    return max(sound, key=lambda name: sound[name])
