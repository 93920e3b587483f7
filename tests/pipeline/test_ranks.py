"""Variables of launchers: read where they are numbers, one line where they are none."""

import pytest

from pipeline import ranks, runs
from pipeline.errors import UserError


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"RANK": "x"}, "RANK=x: must be a whole number, 0 or more"),
        ({"RANK": ""}, "RANK=: must be a whole number"),
        ({"RANK": "-1"}, "RANK=-1: must be"),
        ({"LOCAL_RANK": "1.5"}, "LOCAL_RANK=1.5: must be"),
        ({"WORLD_SIZE": "0"}, "WORLD_SIZE=0: must be a whole number, 1 or more"),
        ({"WORLD_SIZE": "\u0664"}, "WORLD_SIZE=\u0664: must be"),
        ({"MASTER_PORT": "http"}, "MASTER_PORT=http: must be"),
        ({"RANK": "2", "WORLD_SIZE": "2"}, "RANK=2: must be below WORLD_SIZE=2"),
        ({"RANK": "1"}, "RANK=1: must be below WORLD_SIZE, which is not set; unset it"),
    ],
)
def test_values_that_no_launcher_sets_are_named(values, told: str, monkeypatch) -> None:
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=told):
        ranks.check()


@pytest.mark.parametrize("name", ["LOCAL_RANK", "WORLD_SIZE"])
def test_processes_that_cannot_find_each_other_are_named(name: str, monkeypatch) -> None:
    for other in (*ranks.LEAST, "MASTER_ADDR"):
        monkeypatch.delenv(other, raising=False)
    monkeypatch.setenv(name, "2")
    ranks.check()  # of programs whose processes do not talk to each other
    with pytest.raises(UserError, match=f"{name}=2: needs MASTER_ADDR, which is not set; unset it"):
        runs.start_accelerator()


def test_a_process_without_launcher_is_alone(monkeypatch) -> None:
    for name in ranks.LEAST:
        monkeypatch.delenv(name, raising=False)
    ranks.check()
    assert (ranks.rank(), ranks.local_rank(), ranks.world_size()) == (0, 0, 1)
    assert ranks.is_main()
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("WORLD_SIZE", "4")
    ranks.check()
    assert (ranks.rank(), ranks.world_size(), ranks.is_main()) == (3, 4, False)


@pytest.mark.parametrize("program", ["finetune/unet.py", "generation/run.py", "segtrain/score.py"])
def test_programs_say_it_in_one_line(run_program, program: str) -> None:
    done = run_program(program, "--dry-run", check=False, LOCAL_RANK="x")
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "LOCAL_RANK=x: must be a whole number" in done.stderr
