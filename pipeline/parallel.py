"""Worker processes for work on many items, and threads for many files."""

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from pipeline.errors import UserError

THREADS = 8  # that read or write files at the same time

MOST_WORKERS = 256


def in_processes(
    function: Callable[[Any], Any], items: Iterable[Any], workers: int, chunk: int = 64
) -> Iterator[Any]:
    """Yield `function(item)` in order, computed by `workers` processes; 1 means by this one.

    The workers are forked from a clean server process, not from this one: a copy of a process with
    threads (torch and OpenCV start some) can wait forever for a lock that nobody holds any more.
    """
    if workers == 1:
        yield from map(function, items)
        return
    context = multiprocessing.get_context("forkserver")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_serve) as pool:
        try:
            yield from pool.map(function, items, chunksize=chunk)
        except BrokenProcessPool:
            raise UserError(
                "a worker process was killed, perhaps for its memory; use fewer --workers; the "
                "same command continues"
            ) from None


def _serve() -> None:
    """Leave Ctrl-C to the parent, and leave with it: a killed parent must not leave writers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


@contextlib.contextmanager
def thread_pool(threads: int = THREADS) -> Iterator[ThreadPoolExecutor]:
    """Give threads for work on many files; what is not begun when the block ends is dropped."""
    pool = ThreadPoolExecutor(threads)
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)
