"""What ends a program reaches the user as one printable line."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline import files
from pipeline.errors import EXIT_BAD_INPUT, LONGEST, UserError, guard

ROOT = Path(__file__).resolve().parent.parent.parent


def ended(error: BaseException, capsys: pytest.CaptureFixture[str]) -> tuple[object, str]:
    """Run a program that raises `error`; return its exit code and what it says."""

    def main() -> int:
        raise error

    with pytest.raises(SystemExit) as stopped:
        guard(main)
    return stopped.value.code, capsys.readouterr().err


@pytest.mark.parametrize(
    "text", ["two\nlines", "a \x1b[31mred\x1b[0m name", "half \ud800 of a character", "x" * 99_999]
)
def test_messages_are_one_printable_line(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, message = ended(UserError(text), capsys)
    assert code == EXIT_BAD_INPUT
    assert message.endswith("\n") and message[:-1].isprintable() and len(message) < LONGEST + 30


def test_files_that_the_system_refuses_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("")
    for action, name in (
        (lambda: (tmp_path / ("x" * 300)).read_bytes(), "xxx: File name too long"),
        (lambda: os.replace(tmp_path / "file", tmp_path / "folder"), "folder: Is a directory"),
        (lambda: (tmp_path / "file" / "a").read_bytes(), "a: Not a directory"),
    ):
        with pytest.raises(OSError) as caught:
            action()
        code, message = ended(caught.value, capsys)
        assert code == EXIT_BAD_INPUT and f"{name}; check the path and its rights" in message


def test_a_full_disk_names_the_file_and_the_remedy(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(OSError) as one:
        files.write_bytes(tmp_path / "a", b"x")
    with pytest.raises(OSError) as other, files.replacing(tmp_path / "a"):
        full()
    monkeypatch.undo()
    for caught in (one, other):
        code, message = ended(caught.value, capsys)
        assert code == EXIT_BAD_INPUT and f"{tmp_path}/a: No" in message
        assert message.endswith("No space left on device; free some space and repeat the command\n")


def test_faults_of_ours_keep_their_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    for error in (KeyError("x"), OSError("without a name")):

        def main(error: BaseException = error) -> int:
            raise error

        with pytest.raises(type(error)):
            guard(main)

    def refused() -> int:
        raise UserError("x")

    monkeypatch.setattr(sys, "argv", ["a.py", "--debug"])
    with pytest.raises(UserError):
        guard(refused)


def test_the_line_of_a_fault_does_not_hang_on_a_progress_bar(capsys) -> None:
    from tqdm import tqdm

    def main() -> None:
        bar = tqdm(total=3)
        bar.update()
        raise UserError("x: must be y")

    with pytest.raises(SystemExit):
        guard(main)
    assert capsys.readouterr().err.splitlines()[-1] == "streetforge: x: must be y"


def test_a_reader_that_leaves_ends_the_program_quietly():
    program = (
        "from pipeline.errors import guard\n"
        "def main():\n"
        "    for _ in range(100_000):\n"
        "        print('a line of help')\n"
        "guard(main)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT
    ) as process:
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 141
