"""How captions of trainings and prompts of generation name the classes of a label map.

A ControlNet is used as it was trained if prompts name classes in the way the captions did. So the
settings of both are those of one dataclass, and both take the words from its methods.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.errors import UserError
from pipeline.labels import CLASS_NAMES, NUM_CLASSES
from pipeline.setting_checks import require_between


@dataclass(frozen=True)
class CaptionSettings:
    """How a text names the classes of a label map."""

    template: str = "{classes}"
    """text with {classes} in place of the class names, in train id order; if the text window is too
    short for all of them, the most frequent classes are left out"""
    class_separator: str = " "
    """text between two class names"""
    class_last: str | None = None
    """text before the last class name; None takes the separator"""
    class_min_share: float = 0.0
    """classes that cover less than this share of a crop, 0 to 1, are not named"""
    max_classes: int = 0
    """name at most this many classes of a crop, sampled at random; 0 names all"""

    def check(self, prefix: str) -> None:
        """Raise `UserError` for settings out of range; `prefix` is the group's flag, with dot."""
        require_between(self, 0, NUM_CLASSES, "max_classes", prefix=prefix)
        require_between(self, 0, 1, "class_min_share", prefix=prefix)

    def sample_classes(self, label: np.ndarray, rng: np.random.Generator) -> list[int]:
        """Return the train ids to be named of a label map HxW, in ascending order, without void.

        If more than `max_classes` are there, that many are sampled with `rng`.
        """
        counts = np.bincount(label.ravel(), minlength=256)[:NUM_CLASSES]
        present = np.flatnonzero((counts > 0) & (counts >= self.class_min_share * label.size))
        if self.max_classes and present.size > self.max_classes:
            present = np.sort(rng.choice(present, self.max_classes, replace=False))
        return present.tolist()

    def join_class_names(self, classes: Sequence[int]) -> str:
        """Return the names of train ids as one text."""
        last = self.class_separator if self.class_last is None else self.class_last
        return join_class_names(classes, self.class_separator, last)


def join_class_names(classes: Sequence[int], separator: str, last: str) -> str:
    """Join the names of train ids; `last` stands before the last name, `separator` elsewhere."""
    names = [CLASS_NAMES[i] for i in classes]
    if len(names) < 2:
        return "".join(names)
    return separator.join(names[:-1]) + last + names[-1]


def drop_empty_parts(text: str) -> str:
    """Return a filled template without the commas and spaces of its empty parts."""
    text = re.sub(r"\s+", " ", text)
    return re.sub(r"( ?,)+", ",", text).strip(" ,")


def check_template(setting: str, template: str, placeholders: Sequence[str]) -> None:
    """Raise `UserError` if a template has other braces than those of its placeholders."""
    plain = re.sub("{(" + "|".join(placeholders) + ")}", "", template)
    if "{" in plain or "}" in plain:
        known = ", ".join(f"{{{name}}}" for name in placeholders)
        raise UserError(f"{setting} {template!r}: may hold only {known} in braces")
