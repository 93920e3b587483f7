"""Config: dataclass <- YAML <- flags, strict."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

import pytest

from pipeline.config import differences, digest, from_mapping, parse, to_mapping
from pipeline.errors import UserError
from pipeline.setting_checks import require_positive
from pipeline.yaml_files import load_yaml


@dataclass(frozen=True)
class Sampler:
    RENAMED: ClassVar[dict[str, str]] = {"solver": "kind"}

    steps: int = 20
    """solver steps"""
    kind: Literal["ddim", "unipc"] = "ddim"
    """solver"""


@dataclass(frozen=True)
class Config:
    """A small program."""

    RENAMED: ClassVar[dict[str, str]] = {"count": "n", "sampler_steps": "sampler.steps"}

    n: int = 8
    """how many"""
    rate: float = 0.5
    """a share"""
    size: tuple[int, int] = (64, 128)
    """height, width"""
    folder: Path | None = None
    """where"""
    sampler: Sampler = field(default_factory=Sampler)


def test_flags_win_over_yaml_and_yaml_over_defaults(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("n: 3\nrate: 1e-3\nsampler: {steps: 5}\n")
    config, call = parse(Config, "doc", ["--config", str(path), "--n", "4", "--dry-run"])
    assert (config.n, config.rate, config.sampler.steps) == (4, 1e-3, 5)
    assert config.size == (64, 128) and config.sampler.kind == "ddim"
    assert call.dry_run and not call.debug


def test_a_preset_states_what_differs_from_its_base(tmp_path: Path) -> None:
    """Groups of settings are merged, lists replaced; the last file and then the flags win."""
    (tmp_path / "base.yaml").write_text("n: 3\nsize: [8, 8]\nsampler: {steps: 5, kind: unipc}\n")
    (tmp_path / "middle.yaml").write_text("_base_: base.yaml\nsampler: {steps: 6}\n")
    path = tmp_path / "last.yaml"
    path.write_text("_base_: middle.yaml\nsize: [16, 32]\n")
    config, _ = parse(Config, "doc", ["--config", str(path), "--n", "4"])
    assert config == Config(n=4, size=(16, 32), sampler=Sampler(steps=6, kind="unipc"))


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("_base_: none.yaml", "none.yaml: "),
        ("_base_: ../other.yaml", "_base_: .* name a YAML file in the folder of this one"),
        ("_base_: [a.yaml]", "_base_: must be text"),
        ("_base_: c.yaml", "_base_: more than 16 files, or one builds on itself"),
        ("_base_: wrong.yaml", "wrong.yaml: unknown key 'm'"),
    ],
)
def test_a_base_that_cannot_be_read_is_named(tmp_path: Path, text: str, rule: str) -> None:
    (tmp_path / "wrong.yaml").write_text("m: 3")
    path = tmp_path / "c.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=rule):
        parse(Config, "doc", ["--config", str(path)])


def test_nested_flags() -> None:
    config, _ = parse(Config, "doc", ["--sampler.steps", "7", "--size", "32", "48"])
    assert config.sampler.steps == 7 and config.size == (32, 48)


@dataclass(frozen=True)
class Switches:
    """Settings that are on or off."""

    repair: bool = False
    """a switch"""
    quick_look: bool = True
    """another"""


def test_a_bare_switch_is_on_and_a_value_says_what_it_is() -> None:
    for flags, repair, quick_look in (
        ([], False, True),
        (["--repair"], True, True),
        (["--repair", "--quick-look", "False"], True, False),
        (["--quick-look", "False", "--repair", "True"], True, False),
    ):
        config, _ = parse(Switches, "doc", flags)
        assert (config.repair, config.quick_look) == (repair, quick_look)


@dataclass(frozen=True)
class Grouped:
    """A group of switches."""

    n: int = 0
    """a number"""
    look: Switches = field(default_factory=Switches)
    """switches"""


def test_a_bare_switch_of_a_group_is_on() -> None:
    config, _ = parse(Grouped, "doc", ["--look.repair", "--n", "3"])
    assert config == Grouped(3, Switches(repair=True))


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        ({"colour": 1}, "unknown key 'colour'; known keys: n, rate, size, folder, sampler"),
        ({"sampler": {"step": 1}}, "unknown key 'step'; known keys: steps, kind"),
        ({"sampler": {"kind": "euler"}}, "not one of"),
        ({"n": "many"}, "expected int"),
        ({"n": True}, "expected int"),
        ({"rate": "fast"}, "is not a number"),
        ({"size": [1, 2, 3]}, "expected 2 values"),
        ({"size": 5}, "expected a list"),
        ([], "expected a mapping"),
    ],
)
def test_wrong_yaml_values_name_key_and_rule(mapping: object, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        from_mapping(Config, mapping, "c.yaml")
    assert str(caught.value).startswith("c.yaml") and "\n" not in str(caught.value)


def test_broken_and_missing_yaml_are_named(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("a: [1\n")
    with pytest.raises(UserError, match="not valid YAML"):
        load_yaml(path)
    with pytest.raises(UserError, match="no such file; check"):
        load_yaml(tmp_path / "none.yaml")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--colour", "3"], "Unrecognized options: --colour, 3; see --help"),
        (["--foldre", "a"], "Unrecognized options: --foldre, a; did you mean --folder? see --help"),
        (["--sampler.stesp", "1"], "--sampler.stesp, 1; did you mean --sampler.steps?"),
        (["--n", "abc"], "Error parsing --n: invalid literal for int() with base 10: 'abc'; see"),
        (["--sampler.kind", "euler"], "invalid choice 'euler' for argument '--sampler.kind'"),
        (["--folder", "a\udcff"], "--folder 'a\\udcff': is not UTF-8; rename it"),
        (["--rate", "inf"], "--rate inf: must be a number from"),
        (["--rate", "nan"], "--rate nan: must be a number from"),
        (["--n", "1" * 30], "must be a number from"),
        (["--sampler.steps", "-" + "1" * 30], "--sampler.steps"),
        (["--config"], "--config: expected one argument; see --help"),
        (["--size", "64"], "Missing value for argument '--size'. Expected 2 values; see --help"),
    ],
)
def test_wrong_flags_are_one_line(
    flags: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UserError) as caught:
        parse(Config, "doc", flags)
    assert message in str(caught.value) and str(caught.value).isascii()
    assert "\n" not in str(caught.value) and not capsys.readouterr().err


def test_help_ends_the_program(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parse(Config, "doc", ["--help"])
    assert not caught.value.code and "how many" in capsys.readouterr().out


def test_digest_ignores_key_order_and_sees_values() -> None:
    assert digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1}) != digest({"a": 1, "b": 3})


def test_differences_are_field_by_field() -> None:
    old, new = to_mapping(Config()), to_mapping(Config(n=9, sampler=Sampler(steps=1)))
    assert differences(old, new) == ["n: 8 -> 9", "sampler.steps: 20 -> 1"]
    assert differences(old, old) == []


def test_positive_numbers_are_required() -> None:
    with pytest.raises(UserError, match="--n 0: must be 1 or more"):
        require_positive(Config(n=0), "n")


@pytest.mark.parametrize(
    ("arguments", "text", "message"),
    [
        (["--count", "3"], "", "--count: is now called --n; rename it"),
        (["--count=3"], "", "--count: is now called --n; rename it"),
        (["--sampler_steps", "3"], "", "--sampler-steps: is now called --sampler.steps; rename it"),
        (["--sampler.solver", "ddim"], "", "--sampler.solver: is now called --sampler.kind"),
        ([], "count: 3", "c.yaml: 'count' is now called 'n'; rename it"),
        (
            [],
            "sampler: {solver: ddim}",
            "c.yaml: sampler: 'solver' is now called 'kind'; rename it",
        ),
    ],
)
def test_an_old_name_of_a_setting_is_refused_with_the_new_one(arguments, text, message, tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        parse(Config, "doc", ["--config", str(path), *arguments])


@pytest.mark.parametrize("word", ["--no-fast", "--no_fast"])
def test_the_negative_form_of_an_old_flag_gives_the_new_flag(word: str) -> None:
    @dataclass(frozen=True)
    class Switch:
        RENAMED: ClassVar[dict[str, str]] = {"fast": "quick"}

        quick: bool = True

    with pytest.raises(UserError, match="--no-fast: is now called --quick False; rename it"):
        parse(Switch, "doc", [word])
