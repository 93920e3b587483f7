"""What a dry run says is what the run does; rows say where each sample came from."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest

from generation import dry_run, plan_file
from generation.inputs import read_inputs
from generation.sampler.sampler import Sampler
from generation.worker import SampleMaker
from pipeline import files, labels
from pipeline.dataset import open_dataset
from pipeline.dataset_writer import DatasetWriter
from pipeline.errors import UserError
from pipeline.reading import read_json
from pipeline.rows import sample_id
from pipeline.size_grid import SizeGrid

PROVENANCE = {
    "prompt", "negative_prompt", "seed", "attempt", "condition", "time", "place", "rare_class",
    "rare_share", "source_label", "source_size", "crop", "revisions", "digest", "seconds",
    "generated_at", "tiles", "evaluations", "image_sha256", "label_sha256",
}  # fmt: skip


@pytest.fixture(scope="module")
def inputs(tmp_path_factory, tiny_config):
    """(reader of samples, plan of twelve) of the tiny settings."""
    found = read_inputs(replace(tiny_config, n=12, output=tmp_path_factory.mktemp("none")))
    return found.specs, found.plan


@pytest.fixture(scope="module")
def generated(tmp_path_factory, loaded, tiny_config, inputs):
    """(settings, rows) of a set of the plan's first two samples."""
    specs, plan = inputs
    config = replace(tiny_config, output=tmp_path_factory.mktemp("generated"))
    writer = DatasetWriter(config.output, config={"seed": 0})
    revisions = {"base": "a", "unet": "b", "controlnet": "c"}
    provenance = {"digest": writer.digest, "revisions": revisions}
    loaded.set_scheduler(config)
    maker = SampleMaker(Sampler(loaded, config), specs, provenance)
    for pending in maker.make(plan[:1]) + maker.make(plan[1:2]):
        sample = pending.result()
        writer.write(sample.spec.index, sample.image, sample.spec.label, sample.row)
    return config, [sample.row for sample in open_dataset(config.output, labelled=True)]


def test_rows_say_where_a_sample_came_from(generated):
    config, rows = generated
    for row in rows:
        assert set(row) >= PROVENANCE, PROVENANCE - set(row)
        assert row["digest"] == read_json(config.output / "run.json")["digest"]
        for kind in ("image", "label"):
            data = (config.output / row[f"{kind}_file_name"]).read_bytes()
            assert files.sha256(data) == row[f"{kind}_sha256"]
        label = labels.read_label(config.output / row["label_file_name"])
        class_id = labels.CLASS_NAMES.index(row["rare_class"])
        assert (label == class_id).mean() == pytest.approx(row["rare_share"], abs=1e-4)
        assert row["seconds"] > 0 and row["generated_at"].endswith("+00:00")


def test_void_is_saved_as_255(generated):
    config, rows = generated
    found = {int(i) for r in rows for i in
             np.unique(labels.read_label(config.output / r["label_file_name"]))}  # fmt: skip
    assert 255 in found and 19 not in found


def test_written_plan_is_what_the_run_does(generated, inputs, tmp_path):
    config, rows = generated
    specs, plan = inputs
    path = tmp_path / "new" / "plan.jsonl"
    plan_file.write_plan(path, plan, specs)
    planned = [json.loads(line) for line in path.read_text().splitlines()]
    assert [row["id"] for row in planned] == [sample_id(i) for i in range(12)]
    for before, after in zip(planned, rows, strict=False):
        assert before == {key: after[key] for key in before}
    with pytest.raises(UserError, match="is a folder"):
        plan_file.write_plan(tmp_path, plan, specs)


def test_forecast_counts_the_tiles_that_will_be_evaluated(generated, inputs):
    config, rows = generated
    specs, plan = inputs
    text = dry_run.forecast(plan[:2], specs, config)
    mean = np.mean([row["evaluations"] for row in rows])
    assert f"network evaluations: {mean:.0f} an image" in text
    seconds = sum(row["seconds"] for row in rows) / 2
    hours, each = re.search(r"about ([\d.]+) h .*, ([\d.]+) s an image, by the 2", text).groups()
    assert float(each) == pytest.approx(seconds, abs=0.01)
    assert rows[0]["prompt"] in text
    assert float(hours) == pytest.approx(seconds * 2 / 3600, abs=0.01)


def test_forecast_without_an_image_says_how_to_get_the_time(tiny_config, inputs, tmp_path):
    specs, plan = inputs
    config = replace(tiny_config, output=tmp_path / "none", base="owner/name@" + "0" * 40)
    text = dry_run.forecast(plan, specs, config)
    assert "time: not known" in text and "small --n" in text
    assert dry_run.forecast([], specs, config) == "nothing is missing"


@pytest.mark.parametrize(("fusion", "cover", "counts"), [
    ("none", "uncovered", (0, 0)), ("aligned", "all", (9, 9)), ("aligned", "uncovered", (6, 9)),
    ("aligned", "greedy", (2, 9)),
])  # fmt: skip
def test_count_of_tiles(tiny_config, fusion, cover, counts):
    label = np.full((32, 64), 255, dtype=np.uint8)
    label[:16] = 10  # the first row of tiles is covered
    config = replace(tiny_config, fusion=fusion, tile_selection=cover)
    assert dry_run.count_tiles(label, config.sizes, config.region_rules, SizeGrid(4, 8)) == counts


@pytest.mark.parametrize("dry", [True, False])
def test_prompts_beyond_the_text_window_are_said(flags, tmp_path, monkeypatch, capfd, dry):
    import sys

    from generation import run

    long = tmp_path / "long.yaml"
    long.write_text('prompt: {template: "' + "a city street " * 9 + '{classes}, {condition}"}\n')
    words = [*flags, "--config", str(long), "--n", "2", "--steps", "1", "--fusion", "none"]
    words += ["--output", str(tmp_path / "set"), *(["--dry-run"] if dry else [])]
    monkeypatch.setattr(sys, "argv", ["run.py", *words])
    assert not run.main()
    out, err = capfd.readouterr()
    said = out if dry else err
    assert "prompts are cut after 24 tokens" in said and "prompt.template" in said
    assert "indexing errors" not in out + err
