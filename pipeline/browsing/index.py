"""The samples of a dataset folder, so arranged that a filter over 50,000 takes milliseconds."""

import json
import sys
import threading
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from pipeline import labels, marks
from pipeline.dataset import Sample, open_dataset
from pipeline.errors import UserError
from pipeline.marks import Mark
from pipeline.parallel import thread_pool
from pipeline.reporting.quality import caption, read_scores

MOST_LABELS_READ = 2000  # where rows do not hold the pixels of their classes

Order = Literal["id", "worst", "best"]
State = Literal["all", "kept", "excluded", "marked", "commented"]


@dataclass(frozen=True)
class Query:
    """What is to be shown; an empty text and -1 take everything."""

    condition: str = ""
    class_id: int = -1
    low: float = -1.0
    """least score in percent"""
    high: float = -1.0
    """largest score in percent"""
    text: str = ""
    """part of id, prompt or comment, in any case of letters"""
    state: State = "all"
    order: Order = "id"


def _held_by(sample: Sample) -> list[bool]:
    """Return for each class whether a sample holds it; none where its label cannot be read."""
    if sample.label is not None or sample.row.get("class_pixels") is not None:
        try:
            return [pixels > 0 for pixels in sample.class_pixels]
        except UserError as error:
            print(f"notice: {error}", file=sys.stderr)
    return [False] * labels.NUM_CLASSES


class Index:
    """All samples of a dataset folder, with their marks; safe in threads."""

    def __init__(self, folder: Path, quality: Path, source: Path | None) -> None:
        self.folder, self.source = folder, source
        self.samples = open_dataset(folder, labelled=False, with_excluded=True)
        self.positions = {sample.id: position for position, sample in enumerate(self.samples)}
        names = [sample.condition or "none" for sample in self.samples]
        self.conditions = sorted(Counter(names).items())
        order = {name: code for code, (name, _) in enumerate(self.conditions)}
        self._codes = np.array([order[name] for name in names])
        self.held = self._held_classes()
        self._texts = [f"{s.id}\n{s.caption}".lower() for s in self.samples]
        self.scores = np.full(len(self.samples), np.nan)
        self.networks: list[str] = []
        self._detail: dict[str, str] = {}
        self._read_scores(quality)
        self._lock = threading.Lock()
        self._marks, self._seen = marks.read_marks(folder), self._state_of_marks()

    def _held_classes(self) -> np.ndarray | None:
        """Return NxK truth values, which sample holds which class; None if rows do not say so."""
        unknown = [s for s in self.samples if s.label and s.row.get("class_pixels") is None]
        if len(unknown) > MOST_LABELS_READ:
            print(
                f"notice: {self.folder}: rows hold no class_pixels, no filter by class; "
                "pipeline/prepare.py counts them",
                file=sys.stderr,
            )
            return None
        with thread_pool() as pool:
            return np.array(list(pool.map(_held_by, self.samples)), bool)

    def _read_scores(self, quality: Path) -> None:
        found = read_scores(quality, self.samples)
        if found is None:
            return
        self.networks = found.networks
        score = found.score  # a mean over all samples, taken once
        for position, sample in enumerate(found.samples):
            self.scores[self.positions[sample.id]] = score[position]
            self._detail[sample.id] = caption(found, position)

    def find(self, query: Query) -> np.ndarray:
        """Return the positions of the samples that a query takes, in its order."""
        taken = np.full(len(self.samples), True)
        if query.condition:
            codes = [i for i, (name, _) in enumerate(self.conditions) if name == query.condition]
            taken &= np.isin(self._codes, codes)
        if query.class_id >= 0 and self.held is not None:
            taken &= self.held[:, query.class_id]
        if query.low >= 0:
            taken &= self.scores >= query.low  # never true of samples without a score
        if query.high >= 0:
            taken &= self.scores <= query.high
        given = self.marks
        if query.state != "all":
            taken &= self._of_state(query.state, given)
        if query.text:
            taken &= self._with_text(query.text.lower(), given)
        positions = np.flatnonzero(taken)
        if query.order == "id":
            return positions
        keys = self.scores[positions] * (1 if query.order == "worst" else -1)
        return positions[np.argsort(keys, kind="stable")]  # those without a score are last

    def _of_state(self, state: State, given: dict[str, Mark]) -> np.ndarray:
        chosen = np.zeros(len(self.samples), bool)
        for key, mark in given.items():
            fits = {
                "kept": mark.excluded, "excluded": mark.excluded, "marked": mark.marked,
                "commented": bool(mark.comment),
            }[state]  # fmt: skip
            if fits and key in self.positions:
                chosen[self.positions[key]] = True
        return ~chosen if state == "kept" else chosen

    def _with_text(self, text: str, given: dict[str, Mark]) -> np.ndarray:
        found = np.array([text in own for own in self._texts])
        for key, mark in given.items():
            if text in mark.comment.lower() and key in self.positions:
                found[self.positions[key]] = True
        return found

    def about(self, position: int) -> dict[str, Any]:
        """Return what a list shows of a sample."""
        mark = self._marks.get(self.samples[position].id, Mark())
        sample, score = self.samples[position], float(self.scores[position])
        return {
            "id": sample.id,
            "condition": self.conditions[int(self._codes[position])][0],
            "caption": sample.caption[:400],
            "score": None if np.isnan(score) else round(score, 1),
            **asdict(mark),
        }

    def more_about(self, sample: Sample) -> dict[str, Any]:
        """Return what the page of one sample shows beside the images."""
        hidden = ("class_pixels", "row_sha256", "image_sha256", "label_sha256", "prompt")
        row = {k: v for k, v in sample.row.items() if k not in hidden}
        held = self.held[self.positions[sample.id]] if self.held is not None else ()
        return {
            **self.about(self.positions[sample.id]),
            "caption": sample.caption[:4000],
            "scores": self._detail.get(sample.id, ""),
            "classes": [n for n, h in zip(labels.CLASS_NAMES, held, strict=False) if h],
            "labelled": sample.label is not None,
            "row": json.dumps(row, indent=1, sort_keys=True)[:8000],
        }

    @property
    def marks(self) -> dict[str, Mark]:
        """The marks by sample id, read again when somebody else has written them."""
        if self._state_of_marks() != self._seen:
            with self._lock:
                seen = self._state_of_marks()
                self._marks, self._seen = marks.read_marks(self.folder), seen
        return self._marks

    def _state_of_marks(self) -> tuple[int, ...]:
        try:
            state = (self.folder / marks.NAME).stat()
        except OSError:
            return ()
        return state.st_mtime_ns, state.st_size, state.st_ino

    def set_mark(self, key: str, mark: Mark) -> None:
        """Mark a sample and save all marks; those that others saved meanwhile are kept."""
        with self._lock:
            given = marks.read_marks(self.folder)
            given[key] = mark
            marks.write_marks(self.folder, given)
            self._marks, self._seen = given, self._state_of_marks()
