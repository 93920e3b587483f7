"""Draws training samples from source and generated pictures at an explicit ratio.

Each drawn sample comes from the generated set with probability `share`, whatever the sizes of the
two sets, and is uniform within its set. The transforms of mmcv and mmsegmentation draw from the
global streams of numpy and Python; these are seeded from the sample's own generator for the time
of one sample, so that a sample does not depend on order, workers or processes.
"""

import contextlib
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.errors import UserError


def check_share(share: float, generated: Path | None) -> None:
    """Raise `UserError` unless the share of generated samples and the generated set agree."""
    if not 0 <= share <= 1:
        raise UserError(f"--generated-share {share}: must be within 0..1")
    if generated is None and share > 0:
        raise UserError(f"--generated-share {share} needs --generated DIR")
    if generated is not None and share == 0:
        raise UserError("--generated is given but --generated-share is 0; raise it or drop the set")


@contextlib.contextmanager
def seeded_globals(seed: int) -> Iterator[None]:
    """Seed the global streams of numpy and Python inside the block; restore them after it."""
    numpy_state, python_state = np.random.get_state(), random.getstate()
    np.random.seed(seed % 2**32)
    random.seed(seed)
    try:
        yield
    finally:
        np.random.set_state(numpy_state)
        random.setstate(python_state)


class MixedSamples:
    """Draws one transformed sample at a time: the `draw` of `pipeline.seeding.DrawnSamples`."""

    def __init__(self, source: Any, generated: Any | None, share: float) -> None:
        self.source, self.generated, self.share = source, generated, share

    def __call__(self, rng: np.random.Generator) -> Any:
        """Return one sample as packed by the recipe's transforms."""
        from_generated = bool(rng.random() < self.share)
        dataset = self.generated if from_generated else self.source
        info = dataset.get_data_info(int(rng.integers(len(dataset))))
        with seeded_globals(int(rng.integers(2**63))):
            return dataset.pipeline(info)
