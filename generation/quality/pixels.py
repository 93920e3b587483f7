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


def near_duplicates(hashes: Sequence[str], most_bits: int) -> list[tuple[int, int, int]]:
    """Return (i, j, bits) of all pairs i < j of hashes that differ in at most `most_bits`."""
    words = np.array([np.frombuffer(bytes.fromhex(h), np.uint64) for h in hashes])
    found = []
    for start in range(0, len(words), BLOCK):
        rows = words[start : start + BLOCK, None]
        bits = np.zeros((rows.shape[0], len(words)), np.uint16)
        for word in range(words.shape[1] if len(words) else 0):
            bits += np.bitwise_count(rows[..., word] ^ words[None, :, word])
        first, second = np.nonzero(bits <= most_bits)
        later = second > first + start
        pairs = zip(first[later], second[later], strict=True)
        found += [(int(i) + start, int(j), int(bits[i, j])) for i, j in pairs]
    return found
