"""The tokenizer learned from captions: one numbering for all processes, whole words for all."""

from finetune.tokenizer import merge, train_tokenizer

CAPTIONS = [
    "a city street with car and tree",
    "a street at night",
    "Cars, a tree and a street",
    "a tree in the city",
]


def test_ties_are_broken_by_spelling_and_known_words_are_whole():
    tokenizer = train_tokenizer(CAPTIONS, vocabulary=560, length=12)
    again = train_tokenizer(CAPTIONS[::-1], vocabulary=560, length=12)
    assert tokenizer.get_vocab() == again.get_vocab()
    assert tokenizer.tokenize("A STREET tree") == ["a</w>", "street</w>", "tree</w>"]
    assert tokenizer.decode(tokenizer("a zebra").input_ids[1:-1]).strip() == "a zebra"  # unseen


def test_vocabulary_keeps_to_its_size():
    tokenizer = train_tokenizer(CAPTIONS, vocabulary=520, length=12)
    assert len(tokenizer) == 520
    assert sorted(tokenizer.get_vocab().values()) == list(range(520))


def test_merge_joins_from_the_left():
    assert merge(("a", "a", "a", "b</w>"), ("a", "a")) == ("aa", "a", "b</w>")
