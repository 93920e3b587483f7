"""One door to all looks: source, collection, targets, places and captions."""

from pipeline.pocket.captions import caption
from pipeline.pocket.collection import GAME, LOOKS
from pipeline.pocket.look import PLACES, Look, Place, place_for
from pipeline.pocket.targets import TARGETS

__all__ = [
    "GAME", "LOOKS", "PLACES", "TARGETS", "Look", "Place", "caption", "place_for",
]
