"""Samples are finished and written in a thread, beside the drawing of the next ones."""

import contextlib
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from generation.output import RunFolder
from pipeline import files
from pipeline.dataset import DatasetWriter

Writer = DatasetWriter | RunFolder
QUEUE = 4  # samples that may wait; then drawing waits for the disk
PAUSES_S = (0.5, 1.0, 2.0)  # before a write that failed for a passing reason is tried again


@dataclass(frozen=True)
class FinishedSample:
    """A sample to be written. `image` is None if it failed; then the row says why in `error`."""

    index: int
    image: np.ndarray | None
    label: np.ndarray
    row: dict[str, Any]


@dataclass(frozen=True)
class PendingSample:
    """A sample that is still being drawn. `finish` waits for it; None says: draw it again."""

    index: int
    finish: Callable[[], FinishedSample | None]


class WriterThread:
    """Finishes and commits samples in the order they come, together when several wait.

    `saved` is called in the thread with what has just been committed. An error of the thread is
    raised by the next `put` or at the end of the context; what came before it is on the disk.
    """

    def __init__(self, writer: Writer, saved: Callable[[Sequence[FinishedSample]], None]) -> None:
        self.writer, self.saved = writer, saved
        self._queue: queue.Queue[FinishedSample | PendingSample | None] = queue.Queue(QUEUE)
        self._again: deque[int] = deque()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._work, daemon=True)

    def __enter__(self) -> "WriterThread":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._queue.put(None)
        self._thread.join()
        self._raise()

    def put(self, sample: FinishedSample | PendingSample) -> None:
        """Hand over a sample; wait while too many are unwritten."""
        self._raise()
        self._queue.put(sample)

    def take_again(self, count: int) -> list[int]:
        """Wait until all is written; return up to `count` samples that must be drawn again."""
        self._queue.join()
        self._raise()
        return [self._again.popleft() for _ in range(min(count, len(self._again)))]

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error

    def _work(self) -> None:
        batch: list[FinishedSample | PendingSample | None] = [None]
        while True:
            batch = [self._queue.get()]
            with contextlib.suppress(queue.Empty):
                while True:
                    batch.append(self._queue.get_nowait())
            try:
                if self._error is None:  # after an error the rest is taken and dropped
                    self._save(self._finish([sample for sample in batch if sample is not None]))
            except Exception as error:
                self._error = error
            for _ in batch:
                self._queue.task_done()
            if batch[-1] is None:
                return

    def _finish(self, batch: list[FinishedSample | PendingSample]) -> list[FinishedSample]:
        finished = [s.finish() if isinstance(s, PendingSample) else s for s in batch]
        places = zip(batch, finished, strict=True)
        self._again.extend(sample.index for sample, drawn in places if drawn is None)
        return [drawn for drawn in finished if drawn is not None]

    def _save(self, batch: list[FinishedSample]) -> None:
        if not batch:  # nothing drawn: the folder stays as it is
            return
        for pause_s in (*PAUSES_S, None):
            try:
                self.writer.write_all([(d.index, d.image, d.label, d.row) for d in batch])
                break
            except OSError as error:
                if error.errno not in files.TRANSIENT or pause_s is None:
                    raise
                time.sleep(pause_s)
        self.saved(batch)
