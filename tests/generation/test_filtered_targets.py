"""A filtered target is test data still, and is scored like the target."""

import json
from pathlib import Path

import pytest

from pipeline.errors import UserError
from pipeline.origins import refuse_test_data
from segtrain.protocol import protocol_of
from tests.generation.test_filter import call as call  # a fixture
from tests.generation.test_filter import scored as scored  # a fixture


def test_a_filtered_target_keeps_role_sizes_and_classes(call, scored: Path, tmp_path: Path) -> None:
    run = json.loads((scored / "run.json").read_text())
    sizes, classes = {"eval_low_px": [16, 32]}, [["road", [0, 1]], ["car", [13]]]
    kept = {"role": "target", "protocol": sizes, "classes": classes}
    (scored / "run.json").write_text(json.dumps({**run, **kept}))
    out = tmp_path / "out"
    assert call("--data", scored, "--output", out, "--preset", "none") == 0
    with pytest.raises(UserError, match="is a target that networks are scored on"):
        refuse_test_data(out)
    assert protocol_of(out) == protocol_of(scored)
    assert protocol_of(out).class_names == ("road", "car")


def test_a_target_of_damaged_classes_is_not_filtered_into_a_training_set(
    call, scored: Path, tmp_path: Path
) -> None:
    run = json.loads((scored / "run.json").read_text())
    (scored / "run.json").write_text(json.dumps({**run, "role": "target", "classes": 5}))
    out = tmp_path / "out"
    with pytest.raises(UserError, match="run.json: classes is a list .* prepare again"):
        call("--data", scored, "--output", out, "--preset", "none")
    assert not (out / "run.json").exists()
