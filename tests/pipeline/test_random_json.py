"""Every reader of a JSON file takes any JSON: it reads it, or says in one line what is wrong.

The input is random documents, damaged bytes, and sound documents with one part replaced, since
a random document seldom gets past the first check.
"""

import copy
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline import (
    errors,
    label_spaces,
    labels,
    model_files,
    origins,
    output_folders,
    reading,
    report,
    runs,
    stage_records,
    verify,
)
from pipeline.errors import UserError
from pipeline.metadata import scan_rows
from pipeline.output_folders import require_same, stored_config
from pipeline.reporting import scores as report_scores

LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(-3, 3),
    st.integers(10**15, 10**30),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=8),
    st.sampled_from(
        ["../x", "os.system", "", "UNet2DConditionModel", "epsilon", "<b>", "\x1b[31m"]
    ),
)
DOCUMENTS = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3)
    ),
    max_leaves=8,
)
JSON_LETTERS = '[]{}:,"\\0123456789eE+-.ntfu \n'
ODD_BYTES = st.binary(max_size=60) | st.text(alphabet=JSON_LETTERS, max_size=60)
RANDOM = settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def one_line(error: UserError, path: Path) -> None:
    text = errors.one_line(str(error))  # as `guard` prints it
    assert "\n" not in text and text.isprintable() and len(text) < 1000, text
    assert str(path.parent) in text, text


def places(value: Any, prefix: tuple = ()) -> list[tuple]:
    """Return the ways to all parts of a document."""
    parts = (
        value.items()
        if isinstance(value, dict)
        else (enumerate(value) if isinstance(value, list) else ())
    )
    return [prefix, *(p for key, part in parts for p in places(part, (*prefix, key)))]


@st.composite
def damaged(draw: Callable, sound: Any) -> bytes:
    """Draw the bytes of a file: any document, odd bytes, or `sound` with one part replaced."""
    kind = draw(st.sampled_from(["part", "part", "part", "removed", "any", "bytes", "cut"]))
    if kind == "any":
        return json.dumps(draw(DOCUMENTS)).encode()
    if kind == "bytes":
        data = draw(ODD_BYTES)
        return data if isinstance(data, bytes) else data.encode()
    if kind == "cut":
        data = json.dumps(sound).encode()
        return data[: draw(st.integers(0, len(data)))]
    found = copy.deepcopy(sound)
    *way, last = draw(st.sampled_from(places(sound)[1:]))
    holder = found
    for key in way:
        holder = holder[key]
    if kind == "removed":
        del holder[last]
    else:
        holder[last] = draw(DOCUMENTS)
    return json.dumps(found).encode()


@RANDOM
@given(data=ODD_BYTES | DOCUMENTS.map(json.dumps))
def test_a_value_is_that_of_the_standard_library_or_refused(data: bytes | str) -> None:
    try:
        expected = json.loads(data)
    except (ValueError, RecursionError):
        with pytest.raises(ValueError):
            reading.parse_json(data)
        return
    try:
        found = reading.parse_json(data)
    except ValueError:
        return  # stricter: double keys, NaN, halves of characters
    assert json.dumps(found) == json.dumps(expected)


SCORES = {"targets": ["a"], "checkpoints": [{
    "name": "source_only", "mean_miou": 33.0,
    "targets": {"a": {"miou": 33.0, "num_classes": 19, "images": 4,
                      "iou": dict.fromkeys(labels.CLASS_NAMES[:3], 33.0),
                      "conditions": {"fog": {"miou": 1.0, "iou": {"road": None}}}}},
}]}  # fmt: skip
TIMINGS = {"stages": {"first": {"seconds": 1.5, "peak_mb": 3, "finished_at": "now", "digest": "d",
                                "inputs": {}, "command": "python a.py"}}}  # fmt: skip


@RANDOM
@given(scores=damaged(SCORES), timings=damaged(TIMINGS))
def test_the_report_shows_any_scores_and_timings(
    scores: bytes, timings: bytes, tmp_path: Path
) -> None:
    (tmp_path / "scores.json").write_bytes(scores)
    (tmp_path / "timings.json").write_bytes(timings)
    try:
        page = report.render(report.gather(tmp_path, 1))
    except UserError as error:
        one_line(error, tmp_path / "scores.json")
    else:
        assert "<b>" not in page.replace("<b>{", "").split("</style>")[0]


RUN = {"config": {"steps": 3, "base": "pocket", "nested": {"a": [1, 2]}}, "digest": "0" * 64,
       "classes": {"road": ["road"], "rest": ["sky", "car"]}}  # fmt: skip
READERS: dict[str, tuple[str, Any, Callable[[Path], object]]] = {
    "timings of a run": ("timings.json", TIMINGS, stage_records.read_record),
    "scores": ("scores.json", SCORES, report_scores.read_scores),
    "config of a training": (
        "config.json", RUN,
        lambda path: require_same(path.parent, output_folders.RUN, RUN["config"])),
    "mark of a finished training": (
        "finished.json", {"steps": 3}, lambda path: runs.is_finished(path.parent, 3)),
    "classes of a folder": (
        "run.json", RUN, lambda path: label_spaces.classes_of_folder(path.parent)),
    "origin of a folder": (
        "run.json", {**RUN, "role": "target"}, lambda path: origins.origin_of(path.parent)),
    "a dataset's run": ("run.json", RUN, lambda path: [
        str(fault) for fault in verify.read_run_digest(path.parent, scan_rows(path.parent))[1]]),
    "a dataset's classes": (
        "classes.json", {"names": ["road"], "palette": [[1, 2, 3]]},
        lambda path: [str(fault) for fault in verify.check_classes(path.parent)]),
    "a generated set's run": (
        "run.json", RUN, lambda path: stored_config(path.parent, output_folders.DATASET)),
}  # fmt: skip


@pytest.mark.parametrize("name", READERS)
@RANDOM
@given(data=st.data())
def test_any_file_is_read_or_refused_in_one_line(
    name: str, data: st.DataObject, tmp_path: Path
) -> None:
    file_name, sound, read = READERS[name]
    path = tmp_path / file_name
    path.write_bytes(data.draw(damaged(sound)))
    try:
        read(path)
    except UserError as error:
        one_line(error, path)


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder", "scheduler", "tokenizer", "index"])
def test_any_config_of_a_base_is_read_or_refused_in_one_line(
    part: str, tiny_base: Path, tmp_path: Path
) -> None:
    base = shutil.copytree(tiny_base, tmp_path / "base")
    found = {"scheduler": "scheduler_config.json", "tokenizer": "tokenizer_config.json"}
    path = base / part / found.get(part, "config.json")
    path = base / "model_index.json" if part == "index" else path
    sound = json.loads(path.read_text())

    @RANDOM
    @given(damaged(sound))
    def check(data: bytes) -> None:
        path.write_bytes(data)
        try:
            model_files.check_base(base)
        except UserError as error:
            one_line(error, base / "model_index.json")

    path.write_text(json.dumps(sound))
    model_files.check_base(base)
    check()
