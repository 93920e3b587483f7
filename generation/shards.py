"""Static shards: which samples `--shard i/n` leaves to this process, without asking any other.

Shard i of n has the samples i, i + n, i + 2n, ... of a folder, so that a part of the shards is
representative of the whole set; where tar files are written, it has those tar files. The union
over i is the same set for every n, since a sample depends on its index alone.
"""

import re

from pipeline import ranks
from pipeline.errors import UserError

MOST_SHARDS = 1_000_000


def parse_shard(text: str) -> tuple[int, int]:
    """Return (i, n) of `--shard i/n`; (0, 1), everything, for an empty text."""
    if not text:
        return 0, 1
    match = re.fullmatch(r"([0-9]{1,7})/([0-9]{1,7})", text)
    index, count = (int(match[1]), int(match[2])) if match else (0, 0)
    if not 0 <= index < count <= MOST_SHARDS:
        raise UserError(
            f"--shard {text}: must be i/n with i from 0 to n - 1 and n up to {MOST_SHARDS}, for "
            "example 0/8 to 7/8"
        )
    return index, count


def position(text: str) -> tuple[int, int]:
    """Return which worker of how many this process is: its shard, divided among a launcher's ranks.

    For outputs where processes have nothing else to divide the work by.
    """
    index, count = parse_shard(text)
    rank, size = ranks.rank(), ranks.world_size()
    return index * size + rank, count * size
