"""Take folders of one commit from a public git repository, by the git program, as a tar file.

Nothing is checked out: the tar goes through `pipeline.catalogue.archives`, so no link, hook or
filter of the repository has any effect. The commit's 40-digit name is a checksum of all of its
files.
"""

import os
import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from pipeline import files
from pipeline.errors import UserError

SAFE = ("-c", "core.hooksPath=/dev/null", "-c", "gc.auto=0",
        "-c", "http.lowSpeedLimit=1000", "-c", "http.lowSpeedTime=60")  # fmt: skip


@dataclass(frozen=True)
class GitSource:
    """Folders of a pinned commit."""

    address: str = ""
    """https address of the repository"""
    revision: str = ""
    """40-digit commit"""
    folders: tuple[str, ...] = ()
    """what to take of it, as paths from its root"""

    @property
    def name(self) -> str:
        """The name of the tar file that `fetch_git` writes."""
        return f"{Path(self.address).stem}-{self.revision[:12]}.tar"


def check_git(source: GitSource, where: str) -> None:
    """Raise `UserError` unless the source is an https address, a commit and plain folders."""
    if not re.fullmatch(r"https://[\w.-]+(:\d+)?(/[\w.~-]+)+", source.address):
        raise UserError(f"{where}: git address {source.address!r} must be a plain https address")
    if not re.fullmatch("[0-9a-f]{40}", source.revision):
        raise UserError(f"{where}: git pins no 40-digit revision; name a commit")
    for folder in source.folders:
        if not re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)*", folder):
            raise UserError(f"{where}: git folder {folder!r} must be a plain path")
    if not source.folders:
        raise UserError(f"{where}: git names no folders; list what to take")


def fetch_git(source: GitSource, path: Path) -> None:
    """Write the folders of the commit to the tar file `path`, whole or not at all."""
    program = shutil.which("git")
    by_hand = (
        f"clone {source.address} yourself, check out {source.revision}, and give the clone as "
        "--root to pipeline/prepare.py"
    )
    if program is None:
        raise UserError(f"git: is not installed; install it, or {by_hand}")
    files.make_folder(path.parent.absolute())
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f"{path.name}.git-") as store:
        steps = (
            ("init", "--quiet", "--bare", store),
            ("-C", store, "fetch", "--quiet", "--depth=1", "--no-tags", source.address,
             source.revision),
            ("-C", store, "archive", "--format=tar", f"--output={store}/taken.tar",
             source.revision, "--", *source.folders),
        )  # fmt: skip
        for step in steps:
            done = _run(program, step)
            if done.returncode:
                reason = done.stderr.strip().rpartition("\n")[2] or f"exit code {done.returncode}"
                raise UserError(f"{source.address}: git: {reason}; try again later, or {by_hand}")
        os.replace(f"{store}/taken.tar", path)


def _run(program: str, words: tuple[str, ...]) -> subprocess.CompletedProcess[str]:
    """Run git without questions, and over https alone unless the user's environment allows more."""
    environment = {"GIT_ALLOW_PROTOCOL": "https", **os.environ, "GIT_TERMINAL_PROMPT": "0"}
    for name in ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE"):  # of a caller that is a git hook
        environment.pop(name, None)
    return subprocess.run(
        [program, *SAFE, *words],
        env=environment,
        capture_output=True,
        text=True,
        errors="replace",
        stdin=subprocess.DEVNULL,
        check=False,
    )
