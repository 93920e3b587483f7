"""What can be said of an image without any network: light, contrast, sharpness, likeness."""

from collections.abc import Sequence

import cv2
import numpy as np

HASH_SIDE = 16  # the hash has HASH_SIDE^2 bits
HASH_DIGITS = HASH_SIDE**2 // 4
BLOCK = 512  # rows of the table of distances that is in memory


def statistics(image: np.ndarray) -> dict[str, float]:
    """Return brightness and contrast (mean and deviation of luma, 0 to 255) and sharpness.

    Sharpness is the variance of the Laplacian of luma. `image` is HxWx3 uint8 RGB.
    """
    luma = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    laplacian = cv2.Laplacian(luma, cv2.CV_64F)
    values = {"brightness": luma.mean(), "contrast": luma.std(), "sharpness": laplacian.var()}
    return {name: round(float(value), 3) for name, value in values.items()}


def difference_hash(image: np.ndarray) -> str:
    """Return 256 bits in hexadecimal: is each cell of a 16x17 thumbnail darker than the next one?

    Images that differ little, by compression say, differ in few bits.
    """
    luma = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    small = cv2.resize(luma, (HASH_SIDE + 1, HASH_SIDE), interpolation=cv2.INTER_AREA)
    return np.packbits(small[:, 1:] > small[:, :-1]).tobytes().hex()


def near_duplicates(hashes: Sequence[str], most_bits: int) -> list[list[int]]:
    """Return the positions of near-duplicates in groups of two or more, the largest group first.

    Two images are in one group if their hashes differ in at most `most_bits`, or if a chain of such
    images joins them. Equal hashes are compared once, so memory does not grow with their number.
    """
    if not hashes:
        return []
    raw = np.array([np.frombuffer(bytes.fromhex(h), np.uint64) for h in hashes])
    words, kind_of = np.unique(raw, axis=0, return_inverse=True)
    group_of_kind = _joined(words, most_bits)
    groups: dict[int, list[int]] = {}
    for position, kind in enumerate(kind_of.ravel().tolist()):
        groups.setdefault(int(group_of_kind[kind]), []).append(position)
    found = [group for group in groups.values() if len(group) > 1]
    return sorted(found, key=lambda group: (-len(group), group))


def _joined(words: np.ndarray, most_bits: int) -> np.ndarray:
    """Return for each of N hashes, rows of NxW 64-bit words, the number of its group."""
    group_of = np.arange(len(words))
    for start in range(0, len(words), BLOCK):
        block = words[start : start + BLOCK, None]
        bits = np.zeros((len(block), len(words)), np.uint16)
        for word in range(words.shape[1]):
            bits += np.bitwise_count(block[..., word] ^ words[None, :, word])
        for near in bits <= most_bits:
            joined = np.unique(group_of[near])
            if len(joined) > 1:
                group_of[np.isin(group_of, joined)] = joined[0]
    return group_of
