"""Remembered results of checks of file contents: training reads the same files many times."""

import functools
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")
MOST_VERDICTS = 1_000_000  # of one check in one process, about 100 bytes each


def by_content(check: Callable[[bytes], T]) -> Callable[[bytes], T]:
    """Return `check` with its results kept by a 64-bit hash of the content, which costs far less.

    The contents themselves are not kept.
    """
    verdicts: dict[int, T] = {}

    @functools.wraps(check)
    def remembered(data: bytes) -> T:
        key = hash(data)
        if key not in verdicts:
            if len(verdicts) >= MOST_VERDICTS:
                verdicts.clear()
            verdicts[key] = check(data)
        return verdicts[key]

    return remembered
