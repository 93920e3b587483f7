"""Captions of crops: class names and style in a template, never longer than the text window."""

import sys
from collections.abc import Sequence
from functools import cached_property, lru_cache

import numpy as np

from finetune.style_images import PLACEHOLDER as STYLE_PLACEHOLDER
from finetune.style_images import StyleImages, fill_style, style_text
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

    def check(self, styles: StyleImages | None = None) -> None:
        """Raise `UserError` if a class does not fit the text window; print a note if not all do.

        Of `styles`, the one with the longest words is checked.
        """
        every, template = range(labels.NUM_CLASSES), self._settings.template
        style, origin = longest_style(styles, template, self._text)
        if any(self._truncates(self._render([i], style)) for i in every):
            raise UserError(
                f"{TEMPLATE_FLAG} {template!r}{origin}: is cut after the {self._text.window} "
                f"tokens of the text window of --base, {PLACEHOLDER} does not fit; shorten it"
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


def check_prompt(prompt: str, base: str, styles: StyleImages | None = None) -> None:
    """Raise `UserError` if the prompt of a training is cut by the text window of `base`.

    Of `styles`, the one with the longest words is checked.
    """
    text = PromptEncoder(base)
    style, origin = longest_style(styles, prompt, text)
    if text.truncates(fill_style(prompt, style)):
        raise UserError(
            f"--prompt {prompt[:60]!r}{origin}: is longer than the text window of --base, "
            f"{text.window} tokens; shorten it"
        )


def longest_style(
    styles: StyleImages | None, template: str, text: PromptEncoder
) -> tuple[str, str]:
    """Return the words with the most tokens that fill {style} of a template, and their origin.

    Both are empty where the template names no style. Messages name the origin.
    """
    if styles is None or STYLE_PLACEHOLDER not in template:
        return "", ""
    sample = styles.longest(text.num_tokens)
    words = style_text(sample)
    return words, f" with the style {words[:60]!r} of row {sample.id} in {sample.folder}"
