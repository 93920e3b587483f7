"""A tokenizer learned from captions, of the kind that CLIP's text encoder takes."""

from collections import Counter
from itertools import pairwise

import torch
from tokenizers import pre_tokenizers
from transformers import CLIPTokenizer

START, END, WORD_END = "<|startoftext|>", "<|endoftext|>", "</w>"


def train_tokenizer(captions: list[str], vocabulary: int, length: int) -> CLIPTokenizer:
    """Learn CLIP's byte-level BPE (lower case, word end mark) from the captions.

    `vocabulary` is the largest number of tokens, `length` the number of tokens of a prompt.
    Sennrich et al., ACL 2016, algorithm 1, with ties broken by spelling: the trainer of the
    tokenizers library breaks them at random, and all processes must number the tokens alike.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [START, END, *alphabet, *(letter + WORD_END for letter in alphabet)]
    backend = CLIPTokenizer(vocab={START: 0, END: 1}, merges=[]).backend_tokenizer
    words: Counter[tuple[str, ...]] = Counter()
    for caption in captions:
        text = backend.normalizer.normalize_str(caption)
        for word, _ in backend.pre_tokenizer.pre_tokenize_str(text):
            words[(*word[:-1], word[-1] + WORD_END)] += 1
    merges: list[tuple[str, str]] = []
    while len(tokens) < vocabulary:
        pairs: Counter[tuple[str, str]] = Counter()
        for word, count in words.items():
            for pair in pairwise(word):
                pairs[pair] += count
        best = max(pairs, key=lambda pair: (pairs[pair], pair), default=None)
        if best is None or pairs[best] < 2:
            break
        merges.append(best)
        tokens.append("".join(best))
        words = Counter({merge(word, best): count for word, count in words.items()})
    vocab = {token: i for i, token in enumerate(dict.fromkeys(tokens))}
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=length)


def tokenize(captions: list[str], tokenizer: CLIPTokenizer) -> torch.Tensor:
    """Return the token ids of captions, BxL, padded and cut to the tokenizer's length."""
    return tokenizer(
        captions,
        padding="max_length",
        max_length=tokenizer.model_max_length,
        truncation=True,
        return_tensors="pt",
    ).input_ids


def merge(word: tuple[str, ...], pair: tuple[str, str]) -> tuple[str, ...]:
    """Return the word with each occurrence of `pair` joined, from the left."""
    parts: list[str] = []
    for part in word:
        if parts and (parts[-1], part) == pair:
            parts[-1] += part
        else:
            parts.append(part)
    return tuple(parts)
