"""Captions of crops: class names in a template, never longer than the text window."""

import sys
from collections.abc import Sequence
from functools import cached_property, lru_cache

import numpy as np

from pipeline import labels
from pipeline.captions import join_class_names, present_classes
from pipeline.errors import UserError
from pipeline.prompt_encoder import PromptEncoder, fit_classes

PLACEHOLDER = "{classes}"


class Captions:
    """Names the classes of a label map in train id order.

    If the text window of `base` is too short for all of them, the commonest are left out. With
    `max_classes`, at most that many are named, sampled at random; 0 names all. `last` is the text
    before the last name; None takes the separator.
    """

    def __init__(
        self,
        base: str,
        template: str,
        separator: str,
        *,
        last: str | None = None,
        max_classes: int = 0,
    ) -> None:
        plain = template.replace(PLACEHOLDER, "")
        if "{" in plain or "}" in plain:
            raise UserError(
                f"--caption-template {template!r}: may hold only {PLACEHOLDER} in braces"
            )
        self._base, self._template, self._separator = base, template, separator
        self._last, self._max_classes = separator if last is None else last, max_classes
        self._of = lru_cache(4096)(self._caption)  # few sets of classes occur

    def __call__(self, label: np.ndarray, rng: np.random.Generator) -> str:
        """Return the caption of train ids HxW; void is not named. `rng` samples the classes."""
        return self._of(tuple(present_classes(label, rng, max_classes=self._max_classes)))

    @cached_property
    def _text(self) -> PromptEncoder:
        return PromptEncoder(self._base)

    def _truncates(self, caption: str) -> bool:
        return self._text.truncates(caption)

    def _render(self, classes: Sequence[int]) -> str:
        names = join_class_names(classes, self._separator, self._last)
        return self._template.replace(PLACEHOLDER, names)

    def _caption(self, classes: tuple[int, ...]) -> str:
        return self._render(fit_classes(classes, self._render, self._truncates))

    def check(self) -> None:
        """Raise `UserError` if a class does not fit the text window; print a note if not all do."""
        every = range(labels.NUM_CLASSES)
        if any(self._truncates(self._render([i])) for i in every):
            raise UserError(
                f"--caption-template {self._template!r}: is cut after the "
                f"{self._text.window} tokens "
                f"of the text window of --base, {PLACEHOLDER} does not fit; shorten it"
            )
        named = fit_classes(every, self._render, self._truncates)
        if PLACEHOLDER in self._template and len(named) < (self._max_classes or labels.NUM_CLASSES):
            print(
                f"streetforge: --caption-template: the text window of --base holds {len(named)} of "
                f"{labels.NUM_CLASSES} classes; the commonest of a crop are left out of its "
                "caption where they do not fit",
                file=sys.stderr,
            )


def check_prompt(prompt: str, base: str) -> None:
    """Raise `UserError` if the one prompt of a training is cut by the text window of `base`."""
    text = PromptEncoder(base)
    if text.truncates(prompt):
        raise UserError(
            f"--prompt {prompt[:60]!r}...: is longer than the text window of --base, {text.window} "
            "tokens; shorten it"
        )
