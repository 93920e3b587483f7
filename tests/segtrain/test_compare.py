"""Comparisons of score files: arms, paired tests, published rows, selection marks."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from pipeline.errors import UserError, guard
from pipeline.identity import file_digest
from pipeline.labels import CLASS_NAMES
from segtrain import compare
from segtrain.evaluation import published, rows
from segtrain.evaluation.bootstrap import mious
from segtrain.evaluation.counts import measure

FIVE = ("cityscapes", "bdd100k", "mapillary_v1_2", "acdc", "dark_zurich")
SOURCE = {"rule": "last iterate"}


def write_scores(
    path: Path,
    noise: dict[str, float],
    targets: tuple[str, ...] = FIVE,
    selection: dict | None = None,
    images: int = 12,
) -> Path:
    """Write a score file of networks that err in a share of the pixels, as score.py would."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(rows.rows_file(path), "w") as handle:
        for number, (network, share) in enumerate(noise.items()):
            for target in targets:
                for index in range(images):
                    label = np.kron(
                        np.random.default_rng([len(target), index]).integers(0, 19, (4, 8)),
                        np.ones((8, 8)),
                    ).astype(np.uint8)
                    rng = np.random.default_rng([number, len(target), index])
                    wrong = rng.random(label.shape) < share
                    found = np.where(wrong, rng.integers(0, 19, label.shape), label)
                    counts = measure(found.astype(np.uint8), label)
                    condition = ("fog", "night")[index % 2] if target == "acdc" else ""
                    digest = rows.label_digest(label)
                    row = rows.Row(
                        network, f"{target}_val", f"{index:08d}", condition, digest, counts
                    )
                    handle.write(json.dumps(row.to_json()) + "\n")
    facts = {f"{t}_val": {"dataset": t, "classes": list(CLASS_NAMES)} for t in targets}
    entries = [
        {"name": n, "checkpoint": f"{path.parent}/{n}", "selection": selection or SOURCE}
        for n in noise
    ]
    document = {"targets": list(facts), "sets": facts, "limit": None, "checkpoints": entries,
                "rows_sha256": file_digest(rows.rows_file(path))}  # fmt: skip
    path.write_text(json.dumps(document))
    return path


def call(monkeypatch, *words: object) -> None:
    monkeypatch.setattr("sys.argv", ["compare.py", *map(str, words)])
    assert not compare.main()


def test_two_arms_of_seeds_on_the_same_images(tmp_path: Path, monkeypatch, capsys) -> None:
    noise = {"source_0": 0.4, "source_1": 0.42, "mixed_0": 0.2, "mixed_1": 0.22, "same_0": 0.41}
    scores, output = write_scores(tmp_path / "s.json", noise), tmp_path / "c.json"
    call(monkeypatch, scores, "--output", output, "--published", "gta_mit_b5", "--resamples", 400)
    text, found = capsys.readouterr().out, json.loads(output.read_text())
    assert output.with_suffix(".md").read_text() == text
    assert found["order"] == ["source", "mixed", "same"] and found["baseline"] == "source"
    columns = found["arms"]["mixed"]["columns"]
    assert found["columns"][-2:] == ["Avg3", "Avg5"] and len(columns) == 7
    each = [np.mean([columns[f"{t}_val"]["seeds"][i] for t in FIVE]) for i in range(2)]
    assert columns["Avg5"]["seeds"] == pytest.approx(each)
    assert columns["Avg5"]["deviation"] == pytest.approx(np.std(each, ddof=1))
    low, high = columns["Avg5"]["difference_interval"]
    assert 0 < low < columns["Avg5"]["difference"] < high and columns["Avg5"]["p"] < 0.01
    assert found["arms"]["same"]["columns"]["Avg5"]["p"] > columns["Avg5"]["p"]
    shown = next(r for r in found["published"] if r["method"] == "HRDA + DGInStyle")
    assert shown["scores"]["Avg5"] == pytest.approx(48.99) and shown["read"] == "quoted"
    assert shown["scores"]["mapillary_v1_2_val"] == 62.47
    assert "| acdc\\_val/fog" in text or "acdc_val/fog" in text
    assert "last iterate" in text and "One seed: same." in text and "chosen on a target" not in text
    assert r"\begin{tabular}{lrrrrrrrr}" in output.with_suffix(".tex").read_text()
    assert output.with_suffix(".csv").read_text().startswith("mIoU %,networks,cityscapes_val")


def test_the_paired_interval_is_that_of_the_same_draws(tmp_path: Path, monkeypatch) -> None:
    scores = write_scores(tmp_path / "s.json", {"a": 0.3, "b": 0.25}, ("acdc",))
    output = tmp_path / "c.json"
    call(monkeypatch, scores, "--output", output, "--resamples", 2000)
    cell = json.loads(output.read_text())["arms"]["b"]["columns"]["acdc_val"]
    areas: dict[str, list[np.ndarray]] = {"a": [], "b": []}
    for row in rows.read_rows(rows.rows_file(scores), {"acdc_val": 19}):
        areas[row.network].append(row.counts.areas)
    one, other = (np.stack(areas[name]) for name in "ab")
    rng = np.random.default_rng(7)  # other draws of the same distribution
    draws = []
    for _ in range(2000):
        picked = rng.integers(0, len(one), len(one))
        pair = [mious(each[picked].sum(0)[None])[0] for each in (one, other)]
        draws.append(pair[1] - pair[0])
    wanted = np.percentile(draws, [2.5, 97.5])
    assert cell["difference_interval"] == pytest.approx(wanted, abs=0.12 * np.ptp(wanted))
    unpaired = np.sqrt(sum(np.var([mious(e[rng.integers(0, 12, 12)].sum(0)[None])[0]
                                   for _ in range(500)]) for e in (one, other)))  # fmt: skip
    assert np.std(draws) < unpaired  # pairing removes what both networks find hard


def test_files_join_by_network_and_arms_by_pattern(tmp_path: Path, monkeypatch) -> None:
    noise = {"a_0": 0.3, "b_0": 0.2}
    scores = tmp_path / "scores"
    one = write_scores(scores / "one.json", noise, ("acdc",))
    two = write_scores(scores / "two.json", noise, ("bdd100k",))
    output = tmp_path / "c.json"
    arms = ("--arms", "second=b_*", "first=a_*", "--baseline", "first")
    call(monkeypatch, one, two, "--output", output, "--resamples", 100, *arms)
    found = json.loads(output.read_text())
    assert found["order"] == ["second", "first"] and found["baseline"] == "first"
    assert found["columns"] == ["acdc_val", "bdd100k_val", "mean"]
    call(monkeypatch, scores, "--output", tmp_path / "d.json", "--resamples", 100, *arms)
    assert json.loads((tmp_path / "d.json").read_text()) == found


def test_networks_of_one_name_in_files_of_one_name_stay_apart(tmp_path: Path, monkeypatch) -> None:
    folders = [tmp_path / name for name in ("a", "b", "c")]
    for folder in folders:
        folder.mkdir()
    files = [write_scores(folder / "scores.json", {"source": 0.3}, ("acdc",)) for folder in folders]
    output = tmp_path / "c.json"
    call(monkeypatch, *files, "--output", output, "--resamples", 100)
    others = [str(folder / "scores/source") for folder in folders[1:]]
    assert json.loads(output.read_text())["order"] == ["source", *others]


def test_every_table_says_that_a_target_chose_the_network(tmp_path, monkeypatch, capsys) -> None:
    chosen = {"rule": "best", "on": "acdc_val", "candidates": {"a": 1, "b": 2}, "is_target": True}
    scores = write_scores(tmp_path / "s.json", {"a": 0.3}, ("acdc",), chosen)
    call(monkeypatch, scores, "--output", tmp_path / "c.json", "--resamples", 100)
    text = capsys.readouterr().out
    assert "**Not target-blind**" in text
    assert re.search("best of 2 on acdc.*_val, which is a target", text)
    assert "Not target-blind" in (tmp_path / "c.tex").read_text()
    assert json.loads((tmp_path / "c.json").read_text())["selection"]["a"]["is_target"]


def replace_rows(path: Path, text: str) -> None:
    """Give a score file other rows as if it had been computed from them."""
    rows.rows_file(path).write_text(text)
    document = json.loads(path.read_text())
    document["rows_sha256"] = file_digest(rows.rows_file(path))
    path.write_text(json.dumps(document))


def other_images(path: Path) -> None:
    text = rows.rows_file(path).read_text()
    replace_rows(path, text.replace('"label": "', '"label": "0', 1))


def change_first_row(path: Path, **values: object) -> None:
    first, *rest = rows.rows_file(path).read_text().splitlines()
    lines = [json.dumps(json.loads(first) | values), *rest]
    replace_rows(path, "".join(f"{line}\n" for line in lines))


def no_class(path: Path) -> None:
    lines = [json.loads(line) for line in rows.rows_file(path).read_text().splitlines()]
    lines = [line | {"confusion": [], "boundary": [], "objects": []} for line in lines]
    replace_rows(path, "".join(f"{json.dumps(line)}\n" for line in lines))


def change_network(path: Path, **values: object) -> None:
    document = json.loads(path.read_text())
    document["checkpoints"][0] |= values
    path.write_text(json.dumps(document))


def other_run(path: Path) -> None:
    rows.rows_file(path).write_text(rows.rows_file(path).read_text() + "\n")


FAULTS = {
    "rows of another run": other_run,
    "no rows": lambda path: path.with_suffix(".rows.jsonl").unlink(),
    "broken rows": lambda path: replace_rows(path, "{}\n"),
    "empty rows": lambda path: replace_rows(path, ""),
    "other labels": other_images,
    "other conditions": lambda path: change_first_row(path, condition="snow"),
    "labels without a class": no_class,
    "a choice among nothing": lambda path: change_network(path, selection={"rule": "best"}),
    "a choice among a number": lambda path: change_network(
        path, selection={"rule": "best", "on": "dev", "candidates": 3}
    ),
    "no network": lambda path: path.write_text(
        json.dumps(json.loads(path.read_text()) | {"checkpoints": []})
    ),
    "no JSON": lambda path: path.write_text("["),
    "a list": lambda path: path.write_text("[]"),
    "an earlier version": lambda path: path.write_text('{"checkpoints": [], "targets": []}'),
    "text for classes": lambda path: path.write_text(
        path.read_text().replace('"classes": [', '"classes": 3, "x": [')
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_damaged_score_files_end_in_one_line(fault, tmp_path, monkeypatch, capsys) -> None:
    scores = write_scores(tmp_path / "s.json", {"a": 0.3, "b": 0.2}, ("acdc",), images=2)
    FAULTS[fault](scores)
    monkeypatch.setattr("sys.argv", ["compare.py", str(scores), "--output", "c.json"])
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        guard(compare.main)
    error = capsys.readouterr().err.strip()
    named = any(text in error for text in ("s.", "labels of", "acdc_val: no pixel"))
    assert stopped.value.code == 2 and "\n" not in error and named
    assert not (tmp_path / "c.json").exists()


@pytest.mark.parametrize("suffix", [".md", ".tex", ".csv"])
def test_tables_of_others_are_not_replaced(suffix, tmp_path, monkeypatch) -> None:
    scores = write_scores(tmp_path / "s.json", {"a": 0.3, "b": 0.2}, ("acdc",), images=2)
    output, table = tmp_path / "c.json", tmp_path / f"c{suffix}"
    table.write_text("mine")
    with pytest.raises(UserError, match=rf"c{suffix}: exists and is not a table"):
        compare.check(compare.Config(scores=(scores,), output=output))
    with pytest.raises(UserError, match=r"is the name of its own table; .* ends in \.json"):
        compare.check(compare.Config(scores=(scores,), output=tmp_path / f"new{suffix}"))
    assert table.read_text() == "mine" and not output.exists()
    table.unlink()
    for _ in range(3):  # its own tables it replaces, as pipeline/run.py needs it
        call(monkeypatch, scores, "--output", output, "--resamples", 100)
        output.unlink()
    output.write_text('{"arms": {}}')
    table.unlink()
    table.symlink_to(scores)
    with pytest.raises(UserError, match=f"c{suffix}: exists and is not a table"):
        compare.check(compare.Config(scores=(scores,), output=output))


def test_published_rows_are_for_prepared_datasets_alone(tmp_path: Path, monkeypatch) -> None:
    scores = write_scores(tmp_path / "s.json", {"a": 0.3}, images=2)
    text = scores.read_text().replace('"dataset"', '"of"').replace("mapillary_v1_2", "mapillary")
    scores.write_text(text.replace("_val", ""))  # as Pocket City calls its targets
    text = rows.rows_file(scores).read_text()
    replace_rows(scores, text.replace("mapillary_v1_2", "mapillary").replace("_val", ""))
    words = ("--output", tmp_path / "c.json", "--published", "gta_mit_b5", "gta_diff")
    call(monkeypatch, scores, *words, "--resamples", 100)
    found = json.loads((tmp_path / "c.json").read_text())
    assert found["columns"][-1] == "Avg5"
    assert not any(row["scores"] for row in found["published"])
    assert "over the best before" not in (tmp_path / "c.md").read_text()


def test_bad_settings_are_named(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    scores = write_scores(tmp_path / "s.json", {"a": 0.3}, ("acdc",), images=2)
    for changes, text in (
        ({"scores": ()}, "no score file given"),
        ({"scores": (tmp_path / "empty",)}, "empty: contains no score file"),
        ({"baseline": "x"}, "--baseline x: is not an arm; known: a"),
        ({"arms": ("x=b*",)}, "--arms x=b.*known: a"),
        ({"published": ("x",)}, "--published x: not known; use some of gta_mit_b5"),
        ({"output": scores}, "exists and is not a comparison"),
        ({"scores": (scores, scores)}, "scores a on acdc_val again"),
        ({"resamples": 3}, "--resamples 3"),
    ):
        with pytest.raises(UserError, match=text):
            compare.check(compare.Config(**{"scores": (scores,), "output": tmp_path / "c.json",
                                            **changes}))  # fmt: skip


def test_published_averages_are_those_that_papers_quote() -> None:
    groups = published.read_published()
    rows_of = {row.method: row for row in groups["gta_mit_b5"].rows}
    quoted = {"DAFormer": (51.73, 42.18), "HRDA": (55.89, 46.54),
              "DAFormer + DGInStyle": (54.25, 46.47), "HRDA + DGInStyle": (57.78, 48.99),
              "HRDA + DGInStyle + FLEX-Seg": (57.89, 50.07)}  # fmt: skip
    for method, (three, five) in quoted.items():
        assert rows_of[method].value("Avg3") == pytest.approx(three, abs=0.006)
        assert rows_of[method].value("Avg5") == pytest.approx(five, abs=0.006)
    assert rows_of["DAFormer + DGInStyle + FLEX-Seg"].value("Avg5") == 48.58
    assert all(row.method and row.paper and row.table for g in groups.values() for row in g.rows)
