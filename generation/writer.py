"""Samples are finished and written in a thread, while the next ones are generated."""

import contextlib
import queue
import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

from generation.samples import FinishedSample
from pipeline import files

Numbered = tuple[int, np.ndarray | None, np.ndarray | None, dict[str, Any]]
"""Index, image, label and row of a sample."""
QUEUE = 4  # samples that may wait; then the sampler waits for the disk


class Writer(Protocol):
    """Commits samples; see `DatasetWriter.write_all`."""

    process_index: int

    def write_all(self, samples: Sequence[Numbered]) -> object:
        """Commit samples together."""


class Pending(Protocol):
    """A sample that may still be at work on the device."""

    def result(self) -> FinishedSample:
        """Wait for the image."""


class WriterThread:
    """Finishes and commits samples in the order they come, together when several wait.

    `saved` is called in the thread with what has just been committed. An error of the thread is
    raised by the next `put` or at the end of the context; what came before it is on the disk.
    The end of the context waits until all is written. A SystemExit within that wait, from a second
    stop signal, goes on after it; another one ends it.
    """

    def __init__(self, writer: Writer, saved: Callable[[Sequence[FinishedSample]], None]) -> None:
        self.writer, self.saved = writer, saved
        self._queue: queue.Queue[Pending | None] = queue.Queue(QUEUE)
        self._again: deque[int] = deque()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        # Python 3.11 takes a living thread for a stopped one when an exception interrupts `join`
        self._has_ended = threading.Event()

    def __enter__(self) -> "WriterThread":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._finish_thread()
        except SystemExit:
            self._finish_thread()
            raise
        self._raise()

    def _finish_thread(self) -> None:
        self._queue.put(None)
        self._has_ended.wait()

    @property
    def is_writing(self) -> bool:
        """Tell whether samples may still be on their way to the disk."""
        return not self._has_ended.is_set()

    def put(self, sample: Pending) -> None:
        """Hand over a sample; wait while too many are unwritten."""
        self._raise()
        self._queue.put(sample)

    def take_again(self, count: int, *, wait: bool) -> list[int]:
        """Return up to `count` samples that must be generated again.

        `wait`: until all is written; else those that are known already.
        """
        if wait:
            self._queue.join()
        self._raise()
        return [self._again.popleft() for _ in range(min(count, len(self._again)))]

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        try:
            self._work()
        finally:
            self._has_ended.set()

    def _work(self) -> None:
        batch: list[Pending | None] = [None]
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

    def _finish(self, batch: list[Pending]) -> list[FinishedSample]:
        finished = [sample.result() for sample in batch]
        self._again.extend(sample.spec.index for sample in finished if sample.is_to_be_repeated)
        return [sample for sample in finished if not sample.is_to_be_repeated]

    def _save(self, batch: list[FinishedSample]) -> None:
        if not batch:  # the folder stays as it is
            return
        numbered = [(s.spec.index, s.image, s.spec.label, s.row) for s in batch]
        files.despite_transient_errors(lambda: self.writer.write_all(numbered))
        self.saved(batch)
