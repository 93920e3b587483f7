"""The queue of one worker: which missing sample it claims next.

Workers do not talk to each other. Each begins at a place of its own in the list of missing samples,
and goes on at another place when it meets a claim of somebody else. So workers seldom try to claim
the same sample, and each need not know at every moment what the others have finished: it reads
their rows at intervals that grow with their number (`MetadataIndex.update`). That no sample is made
twice rests on the order of a commit: files come first, then the row, and the claim is given up
last. So a sample that can be claimed, and has no file, is not finished. One that failed has a row
and no file; its claim stays when its worker ends (`Claims.keep`).
"""

import random
from collections import deque
from collections.abc import Iterator

from pipeline.claims import Claims
from pipeline.dataset_writer import file_name
from pipeline.metadata_index import MetadataIndex
from pipeline.rows import sample_id

MAX_CLAIMS = 8  # samples claimed at once, while many are missing
MANY = 256  # missing samples for each that is claimed at once


def start_share(number: int) -> float:
    """Return where worker `number` begins, as a share of the list: 0, 1/2, 1/4, 3/4, 1/8, ...

    Van der Corput's sequence: the places of any number of workers are spread evenly.
    """
    digits = f"{number:b}"[::-1]
    return int(digits, 2) / 2 ** len(digits)


class WorkQueue:
    """Gives out missing samples that no other process has claimed.

    `number` is that of the worker, from 0; `group` how many samples it makes together.
    """

    def __init__(
        self, rows: MetadataIndex, claims: Claims, group: int = 1, number: int = 0
    ) -> None:
        self.rows, self.claims, self.group = rows, claims, group
        self._todo = deque(rows.missing())
        self._todo.rotate(-int(len(self._todo) * start_share(number)))
        self._random = random.Random(number)
        self._elsewhere: list[int] = []
        """What was held by other processes, or not known to be finished, at its turn here."""
        self._is_at_end = False
        self._num_vain = 0
        """claims in vain since rows were read"""

    def take(self) -> list[int]:
        """Claim the next few samples; an empty list if nothing is left to take."""
        while self._todo:
            taken = self._claim(max(min(len(self._todo) // MANY, MAX_CLAIMS), self.group))
            # to read the rows of k workers costs about as much as k claims in vain
            is_worth = self._num_vain > self.rows.num_files
            if self.rows.update(may_wait=not is_worth):
                self._num_vain = 0
            if taken := [index for index in taken if self._is_missing(index)]:
                return taken
        if not self._is_at_end:
            self.rows.update()
            self._is_at_end = True
        while self._elsewhere:  # its processes may have died
            index = self._elsewhere.pop()
            if self.rows.is_done(index) or not self.claims.take_over(sample_id(index)):
                continue
            self.rows.update()
            if not self.rows.is_done(index):
                return [index]
            self.claims.release(sample_id(index))
        return []

    def _claim(self, count: int) -> list[int]:
        taken: list[int] = []
        while self._todo and len(taken) < count:
            index = self._todo.popleft()
            if self.rows.is_done(index):
                continue
            if self.claims.take(sample_id(index)):
                taken.append(index)
            else:
                self._leave(index)
        return taken

    def _leave(self, index: int) -> None:
        """Put a sample back to the end, and go on at another place of the list."""
        self._elsewhere.append(index)
        self._num_vain += 1
        if self._todo:
            self._todo.rotate(-self._random.randrange(len(self._todo)))

    def _is_missing(self, index: int) -> bool:
        """Tell whether a claimed sample is not finished; the claim is given up if it may be."""
        if not self.rows.is_done(index):
            if not self.has_file(index):
                return True
            self._leave(index)  # finished since the rows were read, or never: its worker has died
        self.claims.release(sample_id(index))
        return False

    def has_file(self, index: int) -> bool:
        """Tell whether the image of a sample is there, with a row or without."""
        return (self.rows.folder / file_name("image", index)).exists()

    def __iter__(self) -> Iterator[list[int]]:
        while taken := self.take():
            for first in range(0, len(taken), self.group):
                yield taken[first : first + self.group]
