"""Captions of crops: class names and style in a template, never longer than the text window."""

import sys
from collections.abc import Sequence
from functools import cached_property, lru_cache

import numpy as np

from finetune.style_images import fill_style
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

    def __call__(self, label: np.ndarray, rng: np.random.Generator, style: str = "") -> str:
        """Return the caption of train ids HxW in the words of a style.

        Void is not named. `rng` samples the classes.
        """
        return self._caption_of(tuple(self._settings.sample_classes(label, rng)), style)

    @cached_property
    def _text(self) -> PromptEncoder:
        return PromptEncoder(self._base)

    def _truncates(self, caption: str) -> bool:
        return self._text.truncates(caption)

    def _render(self, classes: Sequence[int], style: str) -> str:
        names = self._settings.join_class_names(classes)
        return fill_style(self._settings.template.replace(PLACEHOLDER, names), style)

    def _caption(self, classes: tuple[int, ...], style: str) -> str:
        return self._render(self._fit(classes, style), style)

    def _fit(self, classes: Sequence[int], style: str) -> list[int]:
        return fit_classes(classes, lambda some: self._render(some, style), self._truncates)

    def check(self, style: str = "") -> None:
        """Raise `UserError` if a class does not fit the text window; print a note if not all do.

        `style` are the words of the longest style.
        """
        every, template = range(labels.NUM_CLASSES), self._settings.template
        if any(self._truncates(self._render([i], style)) for i in every):
            named = style and style in self._render([], style)
            words = f" with the style {style[:60]!r}" if named else ""
            raise UserError(
                f"{TEMPLATE_FLAG} {template!r}{words}: is cut after the {self._text.window} tokens "
                f"of the text window of --base, {PLACEHOLDER} does not fit; shorten it"
            )
        fitting = self._fit(every, style)
        most = self._settings.max_classes or labels.NUM_CLASSES
        if PLACEHOLDER in template and len(fitting) < most:
            print(
                f"streetforge: {TEMPLATE_FLAG}: the text window of --base holds {len(fitting)} of "
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
