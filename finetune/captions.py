"""Captions of crops: class names within a template, never cut by the text window."""

import sys
from collections.abc import Sequence
from functools import cached_property, lru_cache

import numpy as np

from pipeline import labels
from pipeline.errors import UserError
from pipeline.prompt_encoder import PromptEncoder, fit_classes

PLACEHOLDER = "{classes}"


class Captions:
    """Names the classes of a label map in train id order.

    Where the text window of `base` is too short for all of them, the commonest are left out.
    """

    def __init__(self, base: str, template: str, separator: str) -> None:
        plain = template.replace(PLACEHOLDER, "")
        if "{" in plain or "}" in plain:
            raise UserError(f"--caption-template {template!r}: knows only {PLACEHOLDER} in braces")
        self._base, self._template, self._separator = base, template, separator
        self._of = lru_cache(4096)(self._caption)  # few sets of classes occur

    def __call__(self, label: np.ndarray) -> str:
        """Return the caption of train ids HxW; void is not named."""
        return self._of(tuple(int(i) for i in np.unique(label) if i < labels.NUM_CLASSES))

    @cached_property
    def _text(self) -> PromptEncoder:
        return PromptEncoder(self._base)

    def _truncates(self, caption: str) -> bool:
        return self._text.truncates(caption)

    def _render(self, classes: Sequence[int]) -> str:
        names = self._separator.join(labels.CLASS_NAMES[i] for i in classes)
        return self._template.replace(PLACEHOLDER, names)

    def _caption(self, classes: tuple[int, ...]) -> str:
        return self._render(fit_classes(classes, self._render, self._truncates))

    def check(self) -> None:
        """Raise `UserError` if a class does not fit the text window, say if not all do."""
        every = range(labels.NUM_CLASSES)
        if any(self._truncates(self._render([i])) for i in every):
            raise UserError(
                f"--caption-template {self._template!r}: is cut after the "
                f"{self._text.window} tokens "
                f"of the text window of --base, {PLACEHOLDER} does not fit; shorten it"
            )
        named = fit_classes(every, self._render, self._truncates)
        if PLACEHOLDER in self._template and len(named) < labels.NUM_CLASSES:
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
