"""The parts of Pocket City: their names, their scenes and their looks.

No two splits share a scene. The five targets and `dev` have looks of their own; `oracle` has the
looks of the source and of the collection.
"""

from pipeline.pocket.collection import GAME, LOOKS
from pipeline.pocket.look import Look
from pipeline.pocket.targets import DEVELOPMENT_LOOKS, TARGET_LOOKS

TARGETS = ("cityscapes", "bdd100k", "mapillary", "acdc", "dark_zurich")
SPLITS = ("source", "collection", "oracle", *TARGETS, "dev")
"""The scenes of a split follow from its position: new splits go to the end."""
SEEDS_PER_SPLIT = 10_000_000


def scene_seed(split: str, index: int) -> int:
    """Return the seed of scene `index` of a split; the ranges of two splits never meet."""
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}: choose one of {', '.join(SPLITS)}")
    if not 0 <= index < SEEDS_PER_SPLIT:
        raise ValueError(f"scene index {index}: must be in 0..{SEEDS_PER_SPLIT - 1}")
    return SPLITS.index(split) * SEEDS_PER_SPLIT + index


def looks_of(split: str) -> dict[str, Look]:
    """Return the looks of a split by name."""
    if split == "source":
        return {"game": GAME}
    if split == "oracle":
        return {"game": GAME, **LOOKS}
    if split == "dev":
        return DEVELOPMENT_LOOKS
    if split in TARGETS:
        return {
            name: look
            for name, look in TARGET_LOOKS.items()
            if name == split or name.startswith(f"{split}_")
        }
    return LOOKS


def look_of(split: str, index: int) -> tuple[str, Look]:
    """Return (name, look) of image `index` of a split; the looks take turns in name order."""
    looks = looks_of(split)
    name = sorted(looks)[index % len(looks)]
    return name, looks[name]
