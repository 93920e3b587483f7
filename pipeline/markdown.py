"""Foreign text in Markdown: names, captions and paths that stay what they are.

Cards and score tables quote settings, captions and names of folders. A reader of the file, such as
GitHub or the Hugging Face hub, must see them as text: no link, image, HTML, heading or table cell
comes out of them. Rules: CommonMark 0.31, sections 2.4 (backslash escapes) and 6.1 (code spans).
"""

import re
from collections.abc import Sequence

LONGEST = 300  # characters of one value
_ACTIVE = re.compile(r"([\\`*{}\[\]<>#|~!&$@]|(?<!\w)_|_(?!\w))")  # no emphasis within words
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u200e\u200f\u202a-\u202e\u2066-\u2069]+")


def one_line(value: object) -> str:
    """Return a value as one line without control or direction characters, cut to LONGEST."""
    text = " ".join(_CONTROL.sub(" ", str(value)).split())
    text = text.encode(errors="replace").decode()  # half a surrogate pair has no UTF-8
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 3]}..."


def plain(value: object) -> str:
    """Return a value as Markdown that shows exactly its text, also within a table cell."""
    text = _ACTIVE.sub(r"\\\1", one_line(value))
    text = text.replace("://", ":\\//").replace("www.", "www\\.")  # GitHub links bare addresses
    return re.sub(r"^(\d*)([-+=.)])", r"\1\\\2", text)  # lists and underlines of headings


def code(value: object) -> str:
    """Return a value as a Markdown code span that shows exactly its text."""
    text = one_line(value)
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * (longest + 1)
    padding = " " if not text or text[0] in "` " or text[-1] in "` " else ""
    return f"{fence}{padding}{text}{padding}{fence}"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table of cells that are Markdown already."""
    lines = [" | ".join(header), " | ".join(["---"] * len(header)), *map(" | ".join, rows)]
    return "\n".join(f"| {line} |" for line in lines) + "\n"
