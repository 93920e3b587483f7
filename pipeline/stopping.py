"""Stop signals: remembered, so that a program ends between two samples or two updates."""

import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from pipeline.errors import PREFIX

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)
ECHO_S = 5.0  # launchers pass on a signal that the whole group already got


class StopRequest:
    """Remembers SIGTERM or SIGINT; another one, ECHO_S or more later, ends the process at once.

    With `grace_s` work inside `limited` that goes on for so many seconds after the signal is ended,
    by SystemExit in the main thread.
    """

    def __init__(self, grace_s: float = 0.0) -> None:
        self.signal_number = 0
        self._noted, self._grace_s = 0.0, grace_s
        self._is_limited = False

    @contextmanager
    def listening(self) -> Iterator["StopRequest"]:
        """Catch the signals inside the block and restore the old handlers after it."""
        old = {number: signal.signal(number, self._note) for number in STOP_SIGNALS}
        if self._grace_s:
            old[signal.SIGALRM] = signal.signal(signal.SIGALRM, self._leave)
        try:
            yield self
        finally:
            for number, handler in old.items():
                signal.signal(number, handler)

    @contextmanager
    def limited(self) -> Iterator[None]:
        """Bound the time that the block may take after a signal, which may come before it."""
        if not self._grace_s:
            yield
            return
        self._is_limited = True
        if self.signal_number:
            signal.setitimer(signal.ITIMER_REAL, self._grace_s)
        try:
            yield
        finally:
            self._is_limited = False
            signal.setitimer(signal.ITIMER_REAL, 0)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if not self.signal_number:
            self.signal_number, self._noted = number, time.monotonic()
            if self._is_limited:
                signal.setitimer(signal.ITIMER_REAL, self._grace_s)
        elif time.monotonic() - self._noted >= ECHO_S:
            raise SystemExit(self.exit_code)

    def _leave(self, number: int, frame: FrameType | None) -> None:
        raise SystemExit(self.exit_code)

    @property
    def exit_code(self) -> int:
        """128 plus the signal's number, 0 without one."""
        return 128 + self.signal_number if self.signal_number else 0


def ignore_stop_signals(_worker: int = 0) -> None:
    """Leave the decision to the parent: for loader processes, whose death would be an error."""
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def leave(accelerator: Any, stop: StopRequest, folder: Path, done: int) -> NoReturn:
    """End a training that has saved its state, with the exit code of the signal."""
    from pipeline import runs

    if accelerator.is_main_process:
        message = f"{folder}: stopped after step {done}; the same command continues"
        print(f"{PREFIX}{message}", file=sys.stderr)
    runs.end(accelerator)
    raise SystemExit(stop.exit_code or 143)  # another process got the signal
