"""One-line errors for users.

Bad input is reported as a single line on stderr that names the file or setting, the rule and the
remedy. Exit codes: 0 done, 2 bad input or setting, 3 finished but with failed samples, 130/143
stopped by SIGINT/SIGTERM.
"""

from __future__ import annotations  # so that doctor.py starts on any Python

import sys
from collections.abc import Callable

EXIT_BAD_INPUT = 2
EXIT_INCOMPLETE = 3
PREFIX = "streetforge: "


class UserError(Exception):
    """Something the user can mend. The message is one line: what, the rule, the remedy."""


def guard(main: Callable[[], int | None]) -> None:
    """Run `main` and leave the process with its exit code; `UserError` becomes one stderr line.

    `--debug` anywhere on the command line shows the traceback instead.
    """
    try:
        code = main()
    except UserError as error:
        if "--debug" in sys.argv:
            raise
        print(f"{PREFIX}{error}", file=sys.stderr)
        raise SystemExit(EXIT_BAD_INPUT) from None
    except KeyboardInterrupt:
        if "--debug" in sys.argv:
            raise
        print(f"{PREFIX}stopped; the same command continues", file=sys.stderr)
        raise SystemExit(130) from None
    raise SystemExit(code or 0)
