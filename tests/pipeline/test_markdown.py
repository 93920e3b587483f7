"""Foreign text in cards and tables stays text, by the rules of a real Markdown reader."""

import html
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from pipeline import markdown

READER = MarkdownIt("gfm-like", {"linkify": False, "html": True})
ATTACKS = [
    "[click](javascript:alert(1))", "![x](https://example.org/t.png)", "<img src=x onerror=a()>",
    "<script>a()</script>", "# heading", "a | b | c", "`` ` ``", "ends with `", "`begins",
    "a\n\n# b", "a\r\n---\nlicense: mit", "https://example.org", "www.example.org", "&lt;b&gt;",
    "**bold** _it_ ~~gone~~", "- item", "1. item", "1) item", "=== ", "\\[x\\](y)", "<!-- x", "$x$",
    "@user #12", "\u202egnp.exe", "\ud800", "> quote", "+ plus", "| - |", "\tcode", "    code",
    "{{ 7*7 }}", "--- ", "*", "_", "a\\", "![[x]]", "[^1]", "\x00\x1b[31m", "",
]  # fmt: skip


def shown(source: str) -> str:
    """Return the text that a reader sees, and fail if it sees anything but text and code."""
    page = READER.render(source)
    tags = set(re.findall(r"</?([a-z0-9]+)", page))
    assert tags <= {"p", "code"}, page
    return html.unescape(re.sub(r"<[^>]*>", "", page)).removesuffix("\n")


@pytest.mark.parametrize("value", ATTACKS)
@pytest.mark.parametrize("quote", [markdown.plain, markdown.code])
def test_attacks_are_shown_as_they_are(quote, value: str) -> None:
    expected = f"begins {markdown.one_line(value)} ends".split()
    assert shown(f"begins {quote(value)} ends").split() == expected
    if value.strip():
        assert shown(quote(value)).strip() == markdown.one_line(value).strip()


@given(st.text(max_size=60))
def test_any_text_is_shown_as_it_is(value: str) -> None:
    for quote in (markdown.plain, markdown.code):
        assert shown(f"a {quote(value)} b").split() == f"a {markdown.one_line(value)} b".split()


@given(st.lists(st.text(max_size=20), min_size=2, max_size=4))
def test_a_cell_stays_a_cell(values: list[str]) -> None:
    row = " | ".join(f"x{markdown.plain(value)}" for value in values)
    page = READER.render(f"| {row} |\n|{'---|' * len(values)}\n")
    assert page.count("<th>") == len(values) and "<a" not in page and "<img" not in page


def test_text_is_one_line_and_not_endless() -> None:
    assert markdown.one_line("a\n\tb\u2028c") == "a b c"
    assert len(markdown.one_line("x" * 10**6)) == markdown.LONGEST
    assert "\\//" in markdown.plain("https://example.org")
