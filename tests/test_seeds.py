"""Every program with a seed refuses what no generator takes, in one line and at once."""

import importlib
import sys
from pathlib import Path

import pytest

from pipeline.errors import UserError
from segtrain.diffusion.trajectories import Inversion, Noised

ROOT = Path(__file__).resolve().parent.parent
MEASURING = {
    "experiments.color_transfer": ("--source", "a", "--collection", "b", "--output", "c"),
    "experiments.contact_sheet": ("--render", "game", "--output", "c"),
    "benchmarks.random_base": ("--output", "c"),
}


def has_seed(path: Path) -> bool:
    """Tell whether an entry has the setting `seed`, its own or one that all of its stage have."""
    text = path.read_text()
    return "    guard(main)\n" in text and (
        "    seed: int" in text or path.parent.name == "finetune"
    )


PROGRAMS = sorted(
    f"{path.parent.name}.{path.stem}"
    for stage in ("pipeline", "finetune", "generation", "segtrain")
    for path in (ROOT / stage).glob("*.py")
    if has_seed(path)
) + ["generation.run", *MEASURING]


def test_all_programs_are_found() -> None:
    stages = {name.partition(".")[0] for name in PROGRAMS}
    measuring = {"benchmarks", "experiments"}
    assert stages == {"finetune", "generation", "segtrain"} | measuring and len(PROGRAMS) > 8


@pytest.mark.parametrize("seed", [-1, 2**64])
@pytest.mark.parametrize("name", PROGRAMS)
def test_seed_that_no_generator_takes(name, seed, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    others = MEASURING.get(name, ())
    monkeypatch.setattr(sys, "argv", [name, *others, "--seed", str(seed)])
    program = importlib.import_module(name)
    with pytest.raises(UserError, match=f"^--seed {str(seed)[:4]}.*must be") as caught:
        program.main()
    assert "\n" not in str(caught.value) and not list(tmp_path.iterdir())


@pytest.mark.parametrize("seed", [-1, 2**64, 0.5, None, True])
def test_seed_of_a_recipe(seed) -> None:
    for make in (lambda: Noised((100,), seed), lambda: Inversion((1, 20), (0,), seed=seed)):
        with pytest.raises(UserError, match="seed .*: must be 0 or more, a whole number"):
            make()
