"""Which process of how many this is: variables that torchrun and accelerate launch set.

Without them a process is alone: rank 0 of 1. `check` refuses values that are no numbers before
any library reads them.
"""

import os

from pipeline.errors import UserError

LEAST = {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 1, "LOCAL_WORLD_SIZE": 1, "MASTER_PORT": 0}
"""Smallest value of each variable."""


def _number(name: str) -> int:
    """Return the value of a variable, its smallest one if it is not set."""
    text = os.environ.get(name)
    if text is None:
        return LEAST[name]
    if not (text.isascii() and text.isdecimal() and len(text) <= 9) or int(text) < LEAST[name]:
        raise UserError(
            f"environment variable {name}={text[:40]}: must be a whole number, {LEAST[name]} or "
            "more, as torchrun and accelerate launch set it; unset it"
        )
    return int(text)


def rank() -> int:
    """Return the number of this process among all processes, from 0."""
    return _number("RANK")


def local_rank() -> int:
    """Return the number of this process among those of this machine, from 0."""
    return _number("LOCAL_RANK")


def world_size() -> int:
    """Return the number of processes."""
    return _number("WORLD_SIZE")


def is_main() -> bool:
    """Tell whether this is the first process, which does what one alone must do."""
    return rank() == 0


def require_address() -> None:
    """Raise `UserError` if several processes are stated, but not where they find each other."""
    if ("LOCAL_RANK" in os.environ or world_size() > 1) and "MASTER_ADDR" not in os.environ:
        name = "LOCAL_RANK" if "LOCAL_RANK" in os.environ else "WORLD_SIZE"
        raise UserError(
            f"environment variable {name}={os.environ[name]}: needs MASTER_ADDR, which is not set; "
            "unset it, or start processes by torchrun or accelerate launch"
        )


def check() -> None:
    """Raise `UserError` for a variable whose value is no number of its range."""
    for name in LEAST:
        _number(name)
    if rank() >= world_size():
        is_set = "WORLD_SIZE" in os.environ
        limit = f"WORLD_SIZE={world_size()}" if is_set else "WORLD_SIZE, which is not set"
        raise UserError(
            f"environment variable RANK={rank()}: must be below {limit}; unset it, or start "
            "processes by torchrun or accelerate launch"
        )
