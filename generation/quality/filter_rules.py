"""The rules of a filter of labels, which several programs take as settings."""

from dataclasses import dataclass
from typing import Literal

from pipeline.setting_checks import require_between, require_positive


@dataclass(frozen=True)
class FilterRules:
    """What a filter drops, repairs and rejects."""

    preset: Literal["freemask", "vote", "band", "transport", "none"] = "freemask"
    """Rule by which labels are filtered or repaired; docs/quality.md describes each."""
    factor: float = 1.25
    """freemask: pixels above this multiple of the mean loss of class and condition are dropped."""
    min_pixels: int = 10_000
    """A class with fewer pixels in a condition is calibrated over all conditions."""
    vote_share: float = 0.5
    """vote: share of the images of a label map that must show the label's class."""
    band_share: float = 0.01
    """band: width of the band, as a share of the image's diagonal."""
    stay: float = 2.0
    """transport: nats by which the cost of the label's own class is lowered."""
    temperature: float = 0.1
    """transport: temperature of the assignment, nats."""
    reject_below: float = 0.0
    """Reject an image whose pixel accuracy is below this share of the accuracy expected for its
    classes in its condition; 0 rejects none."""
    reject_attribute: str = ""
    """Reject an image whose classified value of this attribute, such as `condition`, differs from
    its row."""

    def check(self) -> None:
        """Raise `UserError` for values out of their range."""
        require_positive(self, "factor", "temperature", "min_pixels")
        require_between(self, 0, 1, "vote_share", "reject_below")
        require_between(self, 0, 0.25, "band_share")
        require_between(self, 0, 100, "stay")
