"""Proof that the samples of a dataset folder were checked: checked.json beside the rows.

It holds a state for each sample that was read and found sound: names, sizes and times of its
files. A sample whose files or row say something else since is not covered, and is read again.
Nothing but time depends on it: what is not covered is checked, and `pipeline/verify.py` reads all.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pipeline import files
from pipeline.errors import UserError
from pipeline.reading import read_json

NAME = "checked.json"
VERSION = 2  # to be raised when the check itself finds more than before


@dataclass
class Proof:
    """The states of the samples of `folder` that are known to be sound, by id."""

    folder: Path
    states: dict[str, str] = field(default_factory=dict)

    @staticmethod
    def state_of(parts: Sequence[object]) -> str:
        """Return a short hash of names, sizes in bytes and times in nanoseconds."""
        return hashlib.blake2b(repr(parts).encode(), digest_size=8).hexdigest()

    @classmethod
    def read(cls, folder: Path) -> "Proof":
        """Return the proof in a folder; one that is absent, foreign or damaged proves nothing."""
        path = folder / NAME
        try:
            stored = read_json(path, dict) if path.is_file() and not path.is_symlink() else {}
        except UserError:
            stored = {}
        states = stored.get("samples") if stored.get("version") == VERSION else None
        return cls(folder, dict(states) if isinstance(states, dict) else {})

    def covers(self, sample_id: str, state: str) -> bool:
        """Tell whether a sample was checked, and its files have this state since."""
        return bool(state) and self.states.get(sample_id) == state

    def add(self, states: dict[str, str]) -> None:
        """Keep that samples are sound, if the folder is one that our programs write to.

        A folder without run.json is somebody else's and stays as it is; one that cannot be written
        to is checked at each start.
        """
        if not states or not (self.folder / "run.json").is_file():
            return
        if states.items() <= self.states.items():
            return
        self.states |= states
        try:
            files.write_json(self.folder / NAME, {"version": VERSION, "samples": self.states})
        except OSError:
            return
