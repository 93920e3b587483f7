"""One-line errors for users.

Bad input is reported as a single line on stderr that names the file or setting, the rule and the
remedy. Exit codes: 0 done, 2 bad input or setting, 3 finished but with failed samples, 130/143
stopped by SIGINT/SIGTERM.
"""

from __future__ import annotations  # so that doctor.py starts on any Python

import errno
import io
import os
import select
import sys
from collections.abc import Callable

EXIT_BAD_INPUT = 2
EXIT_INCOMPLETE = 3
EXIT_READER_GONE = 141  # as a shell shows SIGPIPE
PREFIX = "streetforge: "
LONGEST = 4000  # characters of a message


class UserError(Exception):
    """An error that the user can fix. The message is one line: what, the rule, the remedy."""


def one_line(message: str) -> str:
    """Return a message as one line that a terminal shows as it is: other characters as escapes."""
    shown = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in message)
    return shown if len(shown) <= LONGEST else f"{shown[:LONGEST]}..."


def _end_progress_bars() -> None:
    """End the lines of tqdm's bars that are open, so that a message has a line of its own."""
    bars = getattr(sys.modules.get("tqdm.std"), "tqdm", None)
    for bar in list(getattr(bars, "_instances", ())):
        bar.close()


def _reader_is_gone() -> bool:
    """Tell whether who reads our output has closed it (`| head`), and write no more of it then."""
    watch = select.poll()
    watch.register(sys.stdout.fileno(), 0)
    gone = any(event & select.POLLERR for _, event in watch.poll(0))
    if gone:  # what is still in the buffer is written at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return gone


def _remedy_of(error: OSError) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return "free some space and repeat the command"
    return "check the path and its rights"


def guard(main: Callable[[], int | None]) -> None:
    """Run `main` and leave the process with its exit code; `UserError` becomes one stderr line.

    So does a file that the system refuses (its rights, its name, its kind, a full disk): readers
    and writers that know a better remedy say it themselves. `--debug` anywhere on the command line
    shows the traceback instead. A reader of the output that leaves ends the program quietly.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):  # names of files need not be text
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        code = main()
    except (UserError, OSError) as error:
        if isinstance(error, BrokenPipeError) and _reader_is_gone():
            raise SystemExit(EXIT_READER_GONE) from None
        if "--debug" in sys.argv or not (isinstance(error, UserError) or error.filename):
            raise
        message = str(error)
        if isinstance(error, OSError):
            name = error.filename2 or error.filename  # of two, what was to be replaced
            message = f"{name}: {error.strerror}; {_remedy_of(error)}"
        _end_progress_bars()
        print(f"{PREFIX}{one_line(message)}", file=sys.stderr)
        raise SystemExit(EXIT_BAD_INPUT) from None
    except KeyboardInterrupt:
        if "--debug" in sys.argv:
            raise
        print(f"{PREFIX}stopped; the same command continues", file=sys.stderr)
        raise SystemExit(130) from None
    raise SystemExit(code or 0)
