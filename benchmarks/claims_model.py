"""Play the real queue of many workers on a shared folder without a file, and count what they ask.

`play` runs `generation.work_queue.WorkQueue` of every worker in simulated time. The folder is three
sets: claims, files, rows. It counts the claims that are tried, the files that are looked for and
the times that rows are read; `scale_model` takes the counts per image.
"""

import heapq
import random
from dataclasses import dataclass, field
from typing import Any, cast

from generation.work_queue import WorkQueue
from pipeline.claims import Claims
from pipeline.metadata_index import MetadataIndex, reading_interval_s

START_S = 60.0  # over which the workers begin to generate


@dataclass
class Folder:
    """The shared folder: what is claimed, what has files, rows in their order, and the time."""

    images: int
    workers: int
    now_s: float = 0.0
    claims: dict[str, int] = field(default_factory=dict)
    files: set[int] = field(default_factory=set)
    rows: list[int] = field(default_factory=list)
    tried: int = 0
    """claims that were tried"""
    looked: int = 0
    """files that were looked for"""
    readings: int = 0
    """times that a worker read the rows of all"""


class Rows:
    """What one worker knows of the rows: see `MetadataIndex`."""

    def __init__(self, folder: Folder) -> None:
        self.folder, self.ok = folder, set[int]()
        self._read, self._read_at = 0, float("-inf")

    @property
    def num_files(self) -> int:
        """The number of metadata files."""
        return self.folder.workers

    def update(self, *, may_wait: bool = False) -> bool:
        """Read the rows that are new, if it is time to; tell whether they were read."""
        now = self.folder.now_s
        if may_wait and now - self._read_at < reading_interval_s(self.folder.workers):
            return False
        self._read_at = now
        self.folder.readings += 1
        self.ok.update(self.folder.rows[self._read :])
        self._read = len(self.folder.rows)
        return True

    def missing(self) -> list[int]:
        """Return the indices without a known row."""
        return [index for index in range(self.folder.images) if index not in self.ok]

    def is_done(self, index: int) -> bool:
        """Tell whether a sample is known to be finished."""
        return index in self.ok


class OwnClaims:
    """The claims of one worker, all of which live: see `Claims`."""

    def __init__(self, folder: Folder, number: int) -> None:
        self.folder, self.number = folder, number

    def take(self, name: str) -> bool:
        """Claim `name` if nobody holds it."""
        self.folder.tried += 1
        return self.folder.claims.setdefault(name, self.number) == self.number

    take_over = take

    def release(self, name: str) -> None:
        """Give up a claim."""
        del self.folder.claims[name]


class Queue(WorkQueue):
    """The queue of one worker on a `Folder`."""

    def __init__(self, folder: Folder, number: int) -> None:
        rows, claims = Rows(folder), OwnClaims(folder, number)
        rows.update()
        super().__init__(cast(MetadataIndex, rows), cast(Claims, claims), number=number)
        self.place = folder

    def has_file(self, index: int) -> bool:
        """Tell whether the image of a sample is there."""
        self.place.looked += 1
        return index in self.place.files


def play(workers: int, images: int, image_s: float, variation: float = 0.3) -> dict[str, Any]:
    """Return what all workers do until `images` are made, per image, and the `hours`.

    `made` are the images that were made, one that was made twice counts twice. `Path` objects and
    files are not touched.
    """
    folder, rng, made = Folder(images, workers), random.Random(0), 0
    queues = [Queue(folder, number) for number in range(workers)]
    folder.readings = 0
    pending: list[list[int]] = [[] for _ in range(workers)]
    events = [(START_S * rng.random(), number) for number in range(workers)]
    heapq.heapify(events)
    while events:
        folder.now_s, number = heapq.heappop(events)
        own = pending[number]
        if own and own[0] >= 0:
            index = own.pop(0)
            folder.files.add(index)
            folder.rows.append(index)
            queues[number].claims.release(f"{index:08d}")
            made += 1
        if not own:
            own.extend(queues[number].take())
        if own:
            spent_s = image_s * max(0.2, rng.gauss(1, variation))
            heapq.heappush(events, (folder.now_s + spent_s, number))
    return {
        "made": made,
        "finished": len(folder.files),
        "tried": folder.tried / images,
        "looked": folder.looked / images,
        "readings": folder.readings / images,
        "hours": folder.now_s / 3600,
    }


def meeting_operations(found: dict[str, Any], workers: int, images: int) -> float:
    """Return the operations of claims in vain and of readings, for each pair of workers.

    A claim that meets another one is one operation. One that meets a finished sample is four: link,
    look, open and unlink. A reading lists the folder, opens each file and asks for its size; at the
    end of a run each worker reads twice more.
    """
    vain = found["tried"] - 1 + 3 * (found["looked"] - 1)
    readings = found["readings"] + 2 * workers / images
    return images * (vain + readings * (1 + 2 * workers)) / workers**2
