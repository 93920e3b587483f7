"""Class words: captions of a training and prompts of a generation name classes alike."""

import numpy as np
import pytest

from finetune.captions import Captions
from generation.prompts import Grammar, join_classes
from pipeline.captions import join_class_names, present_classes
from pipeline.models import POCKET_BASE

LABEL = np.array([[255, 13, 0, 0], [11, 0, 10, 0]], np.uint8)


@pytest.mark.parametrize("max_classes", [0, 2, 3])
@pytest.mark.parametrize("last", [" ", " and "])
def test_captions_and_prompts_have_the_same_class_words(max_classes, last):
    captions = Captions(str(POCKET_BASE), "{classes}", ", ", last=last, max_classes=max_classes)
    grammar = Grammar(class_separator=", ", class_last=last, max_classes=max_classes)
    for seed in range(8):
        one, other = (np.random.default_rng(seed) for _ in range(2))
        assert captions(LABEL, one) == join_classes(LABEL, grammar, other)


def test_classes_are_in_train_id_order_without_void_and_small_ones():
    rng = np.random.default_rng(0)
    assert present_classes(LABEL, rng) == [0, 10, 11, 13]
    assert present_classes(LABEL, rng, min_share=0.2) == [0]
    assert present_classes(np.full((2, 2), 255, np.uint8), rng, max_classes=3) == []


def test_names_are_joined():
    assert join_class_names([], ", ", " and ") == ""
    assert join_class_names([0], ", ", " and ") == "road"
    assert join_class_names([0, 10, 13], ", ", " and ") == "road, sky and car"
