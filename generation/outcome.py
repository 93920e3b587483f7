"""The last message and the exit code of a run: which samples are finished, failed and missing."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import EXIT_INCOMPLETE
from pipeline.metadata_index import MetadataIndex
from pipeline.rows import sample_id

SHOWN_PROCESSES = 8
SHOWN_SAMPLES = 5


@dataclass(frozen=True)
class Outcome:
    """The state of the output folder when a process has nothing left to do."""

    folder: Path
    n: int
    """Size of the set, or of the shard of it, that was asked for."""
    done: int
    """Finished samples among these."""
    surplus: int
    """Finished samples from `n` on, of an earlier run with a larger `n`."""
    failed: list[int]
    """Indices of wanted samples that could not be generated."""
    others: list[dict[str, Any]]
    """Host and pid of the processes that are still generating."""
    is_last: bool
    """No other process holds a claim."""
    had_work: bool
    """Samples were missing when this process began."""
    stop_code: int
    """Exit code of a stop signal, 0 without one."""

    @classmethod
    def of(
        cls,
        rows: MetadataIndex,
        others: list[dict[str, Any]],
        *,
        is_last: bool,
        had_work: bool,
        stop_code: int,
    ) -> "Outcome":
        """Read the state from the rows of the folder."""
        return cls(
            folder=rows.folder,
            n=len(rows.wanted),
            done=rows.done,
            surplus=sum(index >= rows.n for index in rows.ok),
            failed=sorted(index for index in rows.failed if index in rows.wanted),
            others=others,
            is_last=is_last,
            had_work=had_work,
            stop_code=stop_code,
        )

    @property
    def left(self) -> int:
        """Samples that are neither finished nor failed."""
        return self.n - self.done - len(self.failed)

    @property
    def exit_code(self) -> int:
        """0 if the set is complete or other processes have the rest."""
        if self.stop_code:
            return self.stop_code
        return EXIT_INCOMPLETE if self.failed or (self.left and not self.others) else 0

    def print(self, *, is_main: bool) -> None:
        """Print a complete set on stdout, anything else on stderr.

        Of several processes the main one speaks, and the last one to end.
        """
        if not (is_main or self.stop_code or (self.is_last and self.had_work)):
            return
        if problem := self.problem():
            print(f"streetforge: {problem}", file=sys.stderr)
        else:
            print(self.summary())

    def problem(self) -> str:
        """Return what is not as it should be, "" for a set that is complete and closed."""
        if self.stop_code:
            return "stopped; the same command continues"
        if self.left and self.others:
            names = (f"{h.get('host')} pid {h.get('pid')}" for h in self.others[:SHOWN_PROCESSES])
            return (
                f"{self.done} of {self.n} samples; other processes are making the rest "
                f"({', '.join(names)})"
            )
        if self.left:
            return (
                f"another process left {self.left} of {self.n} samples; the same command makes them"
            )
        if self.failed:
            ids = map(sample_id, self.failed[:SHOWN_SAMPLES])
            return (
                f"{len(self.failed)} samples could not be generated ({', '.join(ids)}); their "
                f"rows in {self.folder} say why; the same command tries them again"
            )
        if not self.is_last:
            return f"{self.folder}: complete; another process is about to close it"
        return ""

    def summary(self) -> str:
        """Return the line on a complete set."""
        text = f"{self.folder}: {self.done + self.surplus} samples"
        if self.surplus:
            text += f"; {self.surplus} more than --n, all kept"
        if not self.had_work:
            text += "; nothing to do"
        return text
