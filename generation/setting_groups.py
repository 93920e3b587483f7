"""Groups of the settings of a run: second control, in-sampling correction, rare class sampling."""

import math
from dataclasses import dataclass
from typing import Literal

from pipeline.errors import UserError
from pipeline.images import MAX_PIXELS
from pipeline.rare_classes import RareClassSampling
from pipeline.setting_checks import require_between

MIN_TEMPERATURE = 1e-6  # below it the softmax overflows


@dataclass(frozen=True)
class SecondControl:
    """A second ControlNet, conditioned on the structure of the source image."""

    kind: Literal["none", "canny", "depth", "softedge", "lineart"] = "none"
    """condition that is detected in the source image; canny needs no extra package, the others need
    the extra `controlnet-aux`"""
    controlnet: str = ""
    """folder of a ControlNet with 3 condition channels, trained for this kind"""
    scale: float = 0.5
    """factor on the residuals of this ControlNet"""
    detector: str = "lllyasviel/Annotators@982e7edaec38759d914a963c48c4726685de7d96"
    """weights of the detector: a folder, or a hub id pinned as owner/name@<40-digit commit>"""
    canny_thresholds: tuple[float, float] = (100.0, 200.0)
    """lower and upper gradient threshold of canny, for 8-bit grey values"""

    def __post_init__(self) -> None:
        require_between(self, 0, 10, "scale", prefix="second-control.")
        low, high = self.canny_thresholds
        if not 0 <= low <= high < math.inf:
            raise UserError(
                f"--second-control.canny-thresholds {low:g} {high:g}: must be two numbers of 0 or "
                "more, in order"
            )

    @property
    def is_on(self) -> bool:
        """Whether there is a second ControlNet."""
        return self.kind != "none"


@dataclass(frozen=True)
class CorrectionSettings:
    """Leads the first steps towards the label map by the gradient of a segmentation head."""

    scale: float = 0.0
    """how far a corrected step moves the predicted clean latent against the gradient of the head's
    cross entropy, in standard deviations at full noise; 0 corrects nothing"""
    steps: float = 0.5
    """share of the steps, from the first on, that are corrected; at least one step is"""
    class_balance: float = 0.5
    """weight of a class in the cross entropy of a tile: n^-class_balance for n pixels; 0 counts
    pixels, 1 counts classes"""
    head: str = ""
    """folder of a segmentation head of finetune/controlnet.py; empty takes segmentation_head beside
    the folder of the ControlNet"""

    def __post_init__(self) -> None:
        require_between(self, 0, 10, "scale", prefix="correction.")
        require_between(self, 0, 1, "steps", "class_balance", prefix="correction.")

    @property
    def is_on(self) -> bool:
        """Whether steps are corrected."""
        return self.scale > 0 and self.steps > 0


@dataclass(frozen=True)
class RareClasses(RareClassSampling):
    """How often label maps and crops with rare classes are chosen."""

    min_share: float = 0.01
    """crops are sampled again (10 tries) until the class covers more than this share of the crop"""

    def __post_init__(self) -> None:
        prefix = "rare-classes."
        require_between(self, MIN_TEMPERATURE, 1000, "temperature", prefix=prefix)
        require_between(self, 0, MAX_PIXELS, "min_pixels", prefix=prefix)
        require_between(self, 0, 1, "min_share", prefix=prefix)
