"""Captions of crops: class names in a template, never longer than the text window."""

import sys
from collections.abc import Sequence
from functools import cached_property, lru_cache

import numpy as np

from pipeline import labels
from pipeline.captions import CaptionSettings
from pipeline.errors import UserError
from pipeline.prompt_encoder import PromptEncoder, fit_classes

PLACEHOLDER = "{classes}"
TEMPLATE_FLAG = "--caption.template"


class Captions:
    """Names the classes of label maps; no caption is longer than the text window of `base`.

    If the window is too short for all classes, the commonest are left out.
    """

    def __init__(self, base: str, settings: CaptionSettings) -> None:
        self._base, self._settings = base, settings
        self._caption_of = lru_cache(4096)(self._caption)  # few sets of classes occur

    def __call__(self, label: np.ndarray, rng: np.random.Generator) -> str:
        """Return the caption of train ids HxW; void is not named. `rng` samples the classes."""
        return self._caption_of(tuple(self._settings.sample_classes(label, rng)))

    @cached_property
    def _text(self) -> PromptEncoder:
        return PromptEncoder(self._base)

    def _truncates(self, caption: str) -> bool:
        return self._text.truncates(caption)

    def _render(self, classes: Sequence[int]) -> str:
        names = self._settings.join_class_names(classes)
        return self._settings.template.replace(PLACEHOLDER, names)

    def _caption(self, classes: tuple[int, ...]) -> str:
        return self._render(fit_classes(classes, self._render, self._truncates))

    def check(self) -> None:
        """Raise `UserError` if a class does not fit the text window; print a note if not all do."""
        every, template = range(labels.NUM_CLASSES), self._settings.template
        if any(self._truncates(self._render([i])) for i in every):
            raise UserError(
                f"{TEMPLATE_FLAG} {template!r}: is cut after the {self._text.window} tokens of the "
                f"text window of --base, {PLACEHOLDER} does not fit; shorten it"
            )
        named = fit_classes(every, self._render, self._truncates)
        most = self._settings.max_classes or labels.NUM_CLASSES
        if PLACEHOLDER in template and len(named) < most:
            print(
                f"streetforge: {TEMPLATE_FLAG}: the text window of --base holds {len(named)} of "
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
