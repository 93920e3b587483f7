"""Class words: captions of a training and prompts of a generation name classes alike."""

from dataclasses import MISSING, fields

import numpy as np
import pytest

from finetune.captions import Captions
from finetune.controlnet import Config as ControlNetConfig
from generation.prompts import Grammar, join_classes
from generation.settings import Config as GenerationConfig
from pipeline.captions import CaptionSettings, join_class_names
from pipeline.config import from_mapping, parse
from pipeline.errors import UserError
from pipeline.models import POCKET_BASE

LABEL = np.array([[255, 13, 0, 0], [11, 0, 10, 0]], np.uint8)


@pytest.mark.parametrize("max_classes", [0, 2, 3])
@pytest.mark.parametrize("last", [None, " ", " and "])
@pytest.mark.parametrize("min_share", [0.0, 0.2])
def test_captions_and_prompts_have_the_same_class_words(max_classes, last, min_share):
    words = {
        "class_separator": ", ",
        "class_last": last,
        "class_min_share": min_share,
        "max_classes": max_classes,
    }
    captions = Captions(str(POCKET_BASE), CaptionSettings(**words))
    grammar = Grammar(**words)
    for seed in range(8):
        one, other = (np.random.default_rng(seed) for _ in range(2))
        assert captions(LABEL, one) == join_classes(LABEL, grammar, other)


def test_classes_are_in_train_id_order_without_void_and_small_ones():
    rng = np.random.default_rng(0)
    assert CaptionSettings().sample_classes(LABEL, rng) == [0, 10, 11, 13]
    assert CaptionSettings(class_min_share=0.2).sample_classes(LABEL, rng) == [0]
    void = np.full((2, 2), 255, np.uint8)
    assert CaptionSettings(max_classes=3).sample_classes(void, rng) == []


def test_both_stages_have_the_same_settings_and_defaults():
    """All but the template, in which prompts say more."""
    of_prompts = {f.name: f.default for f in fields(Grammar) if f.default is not MISSING}
    shared = {f.name: f.default for f in fields(CaptionSettings) if f.name != "template"}
    assert shared.items() <= of_prompts.items()
    assert isinstance(ControlNetConfig().caption, CaptionSettings)
    assert issubclass(Grammar, CaptionSettings)


@pytest.mark.parametrize("stage", [ControlNetConfig, GenerationConfig])
@pytest.mark.parametrize(
    ("settings", "message"),
    [({"max_classes": 20}, "max-classes 20: must be in 0..19"),
     ({"class_min_share": -0.1}, "class-min-share -0.1: must be in 0..1")],
)  # fmt: skip
def test_ranges_are_the_same(stage, settings, message):
    group = "caption" if stage is ControlNetConfig else "prompt"
    with pytest.raises(UserError, match=f"--{group}.{message}"):
        config = from_mapping(stage, {group: settings}, "file.yaml")
        getattr(config, group).check(f"{group}.")


def test_old_names_give_the_new_ones():
    for old, new in (
        ("caption-template", "template"),
        ("class-separator", "class-separator"),
        ("class-last", "class-last"),
        ("max-classes", "max-classes"),
    ):
        with pytest.raises(UserError, match=f"--{old}: is now called --caption.{new}; rename it"):
            parse(ControlNetConfig, "", [f"--{old}", "3"])


def test_names_are_joined():
    assert join_class_names([], ", ", " and ") == ""
    assert join_class_names([0], ", ", " and ") == "road"
    assert join_class_names([0, 10, 13], ", ", " and ") == "road, sky and car"
