"""One strict reader for JSON and other small files that somebody hands in."""

import json
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import reading
from pipeline.errors import UserError
from pipeline.reading import read_json

LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"a" * 64 + b"\nsize 12345\n"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "broken JSON"),
        (b'{"a": 1', "broken JSON"),
        (b'{"a": "\xe9"}', "not UTF-8"),
        ('{"a": 1}'.encode("utf-16"), "not UTF-8"),
        (b"\x00\x01\x02", "broken JSON"),
        (b"[" * 100_000, "nested more than"),
        (b'{"a": ' * 900 + b"1" + b"}" * 900, "nested more than"),
        (b"[" * 65 + b"]" * 65, "nested more than"),
        (b'{"a": "\\ud800"}', "half of a character"),
        (b'{"\\udfff": 1}', "half of a character"),
        (b'{"a": 1, "a": 2}', "'a' occurs twice"),
        (b'{"a": ' + b"9" * 5000 + b"}", "broken JSON"),
        (b"[1]", "holds list, not a mapping"),
        (b"null", "holds NoneType, not a mapping"),
        (b'"text"', "holds str, not a mapping"),
        (LFS, "is a Git LFS pointer.*git lfs pull"),
        (b"/annex/objects/MD5E-s1--d41d8cd98f00b204e9800998ecf8427e\n", "is a git-annex pointer"),
    ],
    ids=lambda value: repr(value[:24]),
)
def test_bad_json_is_one_line_that_names_the_file(
    tmp_path: Path, data: bytes, message: str
) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(data)
    with pytest.raises(UserError, match=message) as error:
        read_json(path, dict)
    assert str(error.value).startswith(f"{path}: ") and "\n" not in str(error.value)


def test_sound_json_is_read_with_a_byte_order_mark_and_behind_a_link(tmp_path: Path) -> None:
    value = {"a": [1, 2.5, None, True, "\u00e9\U0001f600"], "b": float("inf")}
    path = tmp_path / "a.json"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(value, ensure_ascii=False).encode())
    (tmp_path / "link.json").symlink_to(path)
    assert read_json(path, dict) == read_json(tmp_path / "link.json") == value
    deep = "[" * 63 + "1" + "]" * 63
    (tmp_path / "deep.json").write_text(deep)
    assert json.dumps(read_json(tmp_path / "deep.json", list)) == deep


def test_only_regular_files_are_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "to_pipe").symlink_to("pipe")
    (tmp_path / "gone").symlink_to("nowhere")
    (tmp_path / "loop").symlink_to("loop")
    messages = {
        tmp_path / "pipe": "pipe",
        tmp_path / "to_pipe": "pipe",
        Path("/dev/zero"): "device",
        tmp_path: "a folder",
        tmp_path / "gone": "link whose file is gone",
        tmp_path / "loop": "cannot be read",
        tmp_path / "absent": "no such file",
        tmp_path / ("x" * 300): "cannot be read",
        tmp_path / "a\0b": "cannot be read",
    }
    for path, words in messages.items():
        with pytest.raises(UserError, match=words) as error:
            read_json(path)
        assert len(str(error.value)) < 600 and str(error.value).isprintable()


def test_sizes_are_bounded(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps("x" * 2000))
    with pytest.raises(UserError, match="larger than"):
        read_json(path, limit=1000)


def test_a_number_is_no_truth_value(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text("true")
    with pytest.raises(UserError, match="holds bool, not a whole number"):
        read_json(path, int)
    assert read_json(path, bool) is True


def test_pointers_are_distinguished_from_files(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(LFS)
    with pytest.raises(UserError, match="git lfs pull"):
        reading.refuse_pointer(path)
    path.write_bytes(LFS + bytes(2000))  # too long for one
    reading.refuse_pointer(path)
    reading.refuse_pointer(tmp_path)
    reading.refuse_pointer(tmp_path / "absent")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3)
    ),
    max_leaves=20,
)


@settings(max_examples=200, deadline=None)
@given(value=JSON)
def test_any_value_comes_back_as_it_was_written(value: object) -> None:
    assert repr(reading.parse_json(json.dumps(value))) == repr(value)  # repr: nan is not nan


@settings(max_examples=300, deadline=None)
@given(data=st.binary(max_size=40) | st.text('[]{}":,0e-.\\ud8tfn ', max_size=40).map(str.encode))
def test_any_bytes_are_json_or_one_reason(data: bytes) -> None:
    try:
        value = reading.parse_json(data)
    except ValueError as error:
        assert type(error) is ValueError and "\n" not in str(error)
    else:
        assert repr(json.loads(data.decode("utf-8-sig"))) == repr(value)
