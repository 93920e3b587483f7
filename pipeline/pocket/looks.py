"""One door to all looks: source, collection, targets, development, places and captions."""

from pipeline.pocket.captions import caption
from pipeline.pocket.collection import GAME, LOOKS
from pipeline.pocket.look import PLACES, Look, Place, place_for
from pipeline.pocket.targets import DEVELOPMENT, TARGETS

__all__ = [
    "DEVELOPMENT",
    "GAME",
    "LOOKS",
    "PLACES",
    "TARGETS",
    "Look",
    "Place",
    "caption",
    "place_for",
]
