"""Correlations over networks against scipy, and the program on score files."""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import scipy.stats

from pipeline.errors import UserError
from segtrain import stress_test
from segtrain.evaluation import correlation
from tests.segtrain.test_compare import no_class, write_scores


@pytest.mark.parametrize("number", [4, 7, 9])
def test_coefficients_are_those_of_scipy(number: int) -> None:
    rng = np.random.default_rng(number)
    one = rng.normal(size=number)
    other = one + rng.normal(size=number)
    found = correlation.correlate(one.tolist(), other.tolist())
    assert found.pearson == pytest.approx(scipy.stats.pearsonr(one, other).statistic)
    assert found.spearman == pytest.approx(scipy.stats.spearmanr(one, other).statistic)
    if number < 8:  # exact: over all orders
        orders = [scipy.stats.pearsonr(one, list(p)).statistic
                  for p in itertools.permutations(other)]  # fmt: skip
        wanted = np.mean(np.abs(orders) >= abs(found.pearson) - 1e-9)
        assert found.p_pearson == pytest.approx(wanted)
    else:
        method = scipy.stats.PermutationMethod(n_resamples=10_000, rng=rng)
        wanted = scipy.stats.pearsonr(one, other, method=method).pvalue
        assert found.p_pearson == pytest.approx(wanted, abs=0.03)


def test_ties_and_equal_scores() -> None:
    found = correlation.correlate([1, 1, 2, 3], [1, 2, 2, 3])
    assert found.spearman == pytest.approx(scipy.stats.spearmanr([1, 1, 2, 3], [1, 2, 2, 3])[0])
    flat = correlation.correlate([1, 1, 1], [1, 2, 3])
    assert flat.spearman is None and flat.p_pearson is None


def test_networks_are_ranked_alike_by_generated_set_and_targets(
    tmp_path: Path, monkeypatch, capsys
) -> None:
    noise = {
        f"net{letter}": share for letter, share in zip("abcd", (0.1, 0.3, 0.5, 0.7), strict=True)
    }
    one = write_scores(tmp_path / "g.json", noise, ("acdc",), images=4)  # with conditions
    two = write_scores(tmp_path / "t.json", noise, ("bdd100k", "dark_zurich"), images=3)
    output = tmp_path / "out.json"
    monkeypatch.setattr(
        "sys.argv",
        ["x", str(one), str(two), "--generated", "acdc_val", "--output", str(output)],
    )
    assert not stress_test.main()
    found, text = json.loads(output.read_text()), capsys.readouterr().out
    assert set(found["correlations"]) == {"acdc_val/all", "acdc_val/fog", "acdc_val/night"}
    others = found["correlations"]["acdc_val/fog"]
    assert set(others) == {"bdd100k_val/all", "dark_zurich_val/all", "mean of targets"}
    assert others["mean of targets"]["spearman"] == pytest.approx(1.0)
    assert others["mean of targets"]["p_spearman"] == pytest.approx(2 / 24)
    assert not found["enough"] and "**Too few networks**: 4, and 8 or more" in text
    assert output.with_suffix(".csv").read_text().count("\n") == 5
    config = stress_test.Config(scores=(one, two), generated=("acdc_val",), output=output)
    stress_test.check(config)  # may replace its own


def test_what_gives_no_correlation_is_refused(tmp_path: Path) -> None:
    few = write_scores(tmp_path / "few.json", {"a": 0.1, "b": 0.2}, ("acdc", "bdd100k"), images=2)
    three = {"a": 0.1, "b": 0.2, "c": 0.3}
    enough = write_scores(tmp_path / "more.json", three, ("acdc",), images=2)
    for changes, text in (
        ({"scores": ()}, "no score file"),
        ({}, "2 networks were scored on all sets, and a correlation needs 3"),
        ({"generated": ()}, "--generated: name at least one set .* of acdc_val, bdd100k_val"),
        ({"generated": ("x",)}, "--generated: name at least one"),
        ({"scores": (enough,)}, "leaves no target"),
    ):
        with pytest.raises(UserError, match=text):
            stress_test.check(
                stress_test.Config(**{"scores": (few,), "generated": ("acdc_val",), **changes})
            )


def test_tables_say_how_the_networks_were_chosen(tmp_path: Path, monkeypatch, capsys) -> None:
    chosen = {"rule": "best", "on": "acdc_val", "candidates": {"a": 1, "b": 2}, "is_target": True}
    noise = {"a": 0.1, "b": 0.2, "c": 0.3}
    scores = write_scores(tmp_path / "s.json", noise, ("acdc", "bdd100k"), chosen, images=2)
    output = tmp_path / "out.json"
    words = [str(scores), "--generated", "acdc_val", "--output", str(output)]
    monkeypatch.setattr("sys.argv", ["x", *words])
    assert not stress_test.main()
    text = output.with_suffix(".md").read_text()
    assert text in capsys.readouterr().out and "**Not target-blind**: a, b, c" in text
    assert "which is a target" in text
    assert json.loads(output.read_text())["selection"]["b"]["is_target"]
    output.unlink()
    config = stress_test.Config(scores=(scores,), generated=("acdc_val",), output=output)
    stress_test.check(config)  # its own tables it replaces
    output.with_suffix(".md").write_text("mine")
    with pytest.raises(UserError, match=r"out\.md: exists and is not a table of a stress test"):
        stress_test.check(config)


def test_sets_without_a_labelled_pixel_are_named(tmp_path: Path) -> None:
    noise = {"a": 0.1, "b": 0.2, "c": 0.3}
    scores = write_scores(tmp_path / "s.json", noise, ("acdc", "bdd100k"), images=2)
    no_class(scores)
    with pytest.raises(UserError, match="acdc_val: no pixel of it has a class"):
        stress_test.check(stress_test.Config(scores=(scores,), generated=("acdc_val",)))
