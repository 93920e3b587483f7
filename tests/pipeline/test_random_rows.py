"""Random rows, names and metadata files: sound, or refused in one line."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline import rows
from pipeline.dataset import open_dataset
from pipeline.errors import UserError
from pipeline.paths import Enclosure, check_relative
from tests.pipeline.row_files import folder as folder

NAMES = st.one_of(
    st.text(max_size=12),
    st.sampled_from(["..", ".", "", "/", "a/b.png", "../x", "a/../../x", "images/00000000.png"]),
    st.lists(st.sampled_from(["..", "a", "", "images", "\\", "~"]), max_size=4).map("/".join),
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | NAMES,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=6,
)
KEYS = ("id", "status", "image_file_name", "label_file_name", *rows.FIELDS)
RANDOM_ROWS = st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=6)


@settings(max_examples=300, deadline=None)
@given(row=RANDOM_ROWS, sound=st.booleans())
def test_random_rows_are_sound_or_refused(row: dict[str, Any], sound: bool) -> None:
    row = {"id": "a", "image_file_name": "images/a.png", **row} if sound else row
    try:
        found = rows.parse_row(json.dumps(row).encode())
    except ValueError as error:
        assert "\n" not in str(error)
        return
    assert isinstance(found["id"], str) and "/" not in found["id"] and len(found["id"]) <= 150
    for key in ("image_file_name", "label_file_name"):
        if found.get(key) is not None:
            path = os.path.normpath(os.path.join("/set", found[key]))
            assert path.startswith("/set/")
    assert rows.is_sealed(rows.seal(found))


LINES = RANDOM_ROWS.map(lambda row: json.dumps(row).encode()) | st.binary(max_size=40)


@settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(lines=st.lists(LINES, max_size=4))
def test_random_metadata_opens_inside_the_folder_or_is_one_line(
    lines: list[bytes], folder: Path
) -> None:
    (folder / "metadata.jsonl").write_bytes(b"\n".join(lines))
    try:
        samples = open_dataset(folder, labelled=False)
    except UserError as error:
        assert len(str(error)) < 2000 and str(folder) in str(error)
        return
    for sample in samples:
        assert sample.image.resolve().is_relative_to(folder.resolve()) and sample.image.is_file()


@settings(deadline=None)
@given(NAMES)
def test_random_names_never_leave(name: str) -> None:
    try:
        check_relative(name)
    except ValueError:
        return
    assert os.path.normpath(os.path.join("/set", name)).startswith("/set/")
    with pytest.raises(UserError):
        Enclosure(Path("/nowhere")).find(name)
