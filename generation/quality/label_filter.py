"""The filter of labels: repaired label maps and reasons to reject an image, by its scores."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from generation.quality import repair, segmenters
from generation.quality.filter_rules import FilterRules
from pipeline import labels
from pipeline.dataset import Sample
from pipeline.errors import UserError
from pipeline.iou import boundary_px
from pipeline.score_rows import Row, label_state, state_of


@dataclass(frozen=True)
class Scores:
    """Rows of scores by sample id, and the folder that their files of costs are in."""

    folder: Path
    rows: Mapping[str, Row]

    def costs(self, key: str, segmenter: str, size: tuple[int, int]) -> np.ndarray:
        """Return the costs 19xHxW in nats of a sample's image of `size` (height, width)."""
        return segmenters.decode_costs(self.folder / self.rows[key]["costs"][segmenter], size)


class LabelFilter:
    """The filter, with limits from the rows of `calibration`.

    `scores` are those of the samples that are filtered, `calibration` the same ones or those of
    another set, whose images also take part in votes.
    """

    def __init__(
        self, rules: FilterRules, scores: Scores, calibration: Scores, segmenter: str
    ) -> None:
        self.rules, self.scores, self.segmenter = rules, scores, segmenter
        self.calibration = calibration
        self.losses, self.recalls = repair.mean_losses(
            list(calibration.rows.values()),
            segmenter,
            rules.min_pixels,
            conditions=[row["condition"] for row in scores.rows.values()],
        )
        self.voters: dict[str, list[str]] = {}
        """Ids of other images of the calibration by their label map."""
        if calibration is not scores:
            for key, row in calibration.rows.items():
                if label_map := label_state(row["state"]):
                    self.voters.setdefault(label_map, []).append(key)

    def reason(self, sample: Sample) -> str:
        """Return why an image is rejected, nothing if it is not."""
        rules, row = self.rules, self.scores.rows[sample.id]
        score = repair.relative_score(row, self.segmenter, self.recalls)
        if score < rules.reject_below:
            return (
                f"pixel accuracy is {100 * score:.0f} % of that expected for its classes and "
                f"condition, less than {100 * rules.reject_below:g} %"
            )
        if attribute := rules.reject_attribute:
            said, seen = sample.row.get(attribute), row["attributes"][attribute]["seen"]
            if said is not None and str(said) != seen:
                return f"its {attribute} looks like {seen}"
        return ""

    def labels_of(self, group: Sequence[Sample]) -> list[tuple[np.ndarray, np.ndarray]]:
        """Return the label HxW before and after of each sample of one label map."""
        before = [labels.read_label(s.label) for s in group if s.label is not None]
        if self.rules.preset == "none":
            return [(label, label) for label in before]
        if self.rules.preset == "vote":
            after = self._voted(group, before)
        else:
            after = [self._repaired(s, label) for s, label in zip(group, before, strict=True)]
        return list(zip(before, after, strict=True))

    def _voted(self, group: Sequence[Sample], before: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Return the labels after a vote of all images of the label map."""
        for sample, label in zip(group, before, strict=True):
            if not np.array_equal(label, before[0]):
                raise UserError(
                    f"{sample.label}: is not the label map of {group[0].label}, though its "
                    "row says so by label_sha256; see pipeline/verify.py --repair"
                )
        seen = [costs.argmin(0) for costs in self._costs_of_voters(group, before[0].shape)]
        return repair.drop_outvoted(before[0], seen, self.rules.vote_share)[: len(group)]

    def _costs_of_voters(
        self, group: Sequence[Sample], size: tuple[int, int]
    ) -> Iterator[np.ndarray]:
        """Yield the costs of the images of a label map, first those of the samples themselves."""
        for sample in group:
            yield self.scores.costs(sample.id, self.segmenter, size)
        for key in self.voters.get(label_state(state_of(group[0])), ()):
            yield self.calibration.costs(key, self.segmenter, size)

    def _repaired(self, sample: Sample, label: np.ndarray) -> np.ndarray:
        rules, (height, width) = self.rules, label.shape
        costs = self.scores.costs(sample.id, self.segmenter, (height, width))
        if rules.preset == "band":
            return repair.drop_band(label, costs, boundary_px(height, width, rules.band_share))
        if rules.preset == "transport":
            stay, temperature = rules.stay, rules.temperature
            return repair.transport(label, costs, stay=stay, temperature=temperature)
        limits = rules.factor * self.losses[self.scores.rows[sample.id]["condition"]]
        return repair.drop_hard(label, costs, limits)
