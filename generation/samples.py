"""The forms of a sample: what shall be generated, and what came out.

`PlanItem` (plan.py) is a sample before its label map is read. `SampleSpec` is all that the sampler
needs. `FinishedSample` is what is written.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

RESULTS = (  # fields of a row
    "tiles", "tiles_total", "evaluations", "gradients", "seconds", "generated_at",
)  # fmt: skip
ATTEMPTS = 3  # an image that is not finite or constant is generated again twice


@dataclass(frozen=True)
class SampleSpec:
    """A sample that can be generated: label crop, prompt and seed."""

    label: np.ndarray
    """HxW uint8 train ids of the crop, void 255."""
    prompt: str
    seed: int
    """Seed of all noise."""
    source: np.ndarray | None = None
    """HxWx3 uint8 source image of the crop, where the settings use it."""
    index: int = 0
    attempt: int = 0
    """Number of attempts with other seeds before this one."""
    retries: int = 0
    """Number of those among them that this run made, because their images were unusable."""
    metadata: dict[str, Any] = field(default_factory=dict)
    """What the row says beside prompt, seed and attempt: where crop and words come from."""

    @property
    def row(self) -> dict[str, Any]:
        """What the metadata row says of the sample before it is generated."""
        own = {"prompt": self.prompt, "seed": self.seed, "attempt": self.attempt}
        return {**own, **self.metadata}


@dataclass(frozen=True)
class FinishedSample:
    """A sample that was generated, or that failed."""

    spec: SampleSpec
    image: np.ndarray | None
    """HxWx3 uint8 of the crop's size, None if it is unusable."""
    problem: str = ""
    """Why it is unusable."""
    tiles: int = 0
    """Tiles of the high-resolution pass that were evaluated."""
    tiles_total: int = 0
    """Tiles of the whole canvas."""
    evaluations: int = 0
    """Network evaluations of the base pass and of tiles, each with its guidance pair."""
    gradients: int = 0
    """Gradients of the in-sampling correction, each a forward and a backward pass of the branch of
    the prompt; they are not among the evaluations."""
    uncorrected: int = 0
    """Gradients among them that were not finite and corrected nothing."""
    seconds: float = 0.0
    """Time of the process for this sample."""
    generated_at: str = ""
    """Date and time in UTC, ISO 8601."""

    def result(self) -> "FinishedSample":
        """Return itself, so that it can stand where a sample is still at work."""
        return self

    @property
    def is_to_be_repeated(self) -> bool:
        """Whether the image is unusable and another seed may give a usable one."""
        return self.image is None and self.spec.retries + 1 < ATTEMPTS

    @property
    def row(self) -> dict[str, Any]:
        """The metadata row; in that of a failed sample `error` says why."""
        row = self.spec.row
        for name in RESULTS:
            row[name] = getattr(self, name)
        if self.uncorrected:
            row["uncorrected"] = self.uncorrected
        if self.image is None:
            row["error"] = f"{self.problem} in {ATTEMPTS} attempts"
        return row
