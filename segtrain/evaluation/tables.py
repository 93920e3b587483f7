"""Tables of text cells, written as Markdown, LaTeX (with booktabs) and CSV."""

import csv
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.markdown import one_line, plain

_LATEX = re.compile(r"[\\{}$&#^_%~<>|]")
_LATEX_TEXT = {
    "\\": r"\textbackslash{}", "^": r"\textasciicircum{}", "~": r"\textasciitilde{}",
    "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}",
}  # fmt: skip
_FORMULA = ("=", "+", "-", "@", "\t", "\r")  # how spreadsheets recognise a formula


@dataclass(frozen=True)
class Table:
    """A header and rows of text; the first column holds names, the others numbers."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]

    def markdown(self) -> str:
        """Return a padded Markdown table; names, first in rows and columns, stay text."""
        rows = [list(map(plain, self.header)), *([plain(row[0]), *row[1:]] for row in self.rows)]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = [_line(row, widths) for row in rows]
        rule = "|".join("-" * (w + 1) + (":" if i else "-") for i, w in enumerate(widths))
        return "\n".join([lines[0], f"|{rule}|", *lines[1:]])

    def latex(self) -> str:
        """Return a `tabular` for a document that loads booktabs."""
        columns = "l" + "r" * (len(self.header) - 1)
        lines = [" & ".join(map(latex_text, row)) + r" \\" for row in (self.header, *self.rows)]
        body = [r"\toprule", lines[0], r"\midrule", *lines[1:], r"\bottomrule"]
        title = f"% {latex_text(self.title)}\n" if self.title else ""
        return "\n".join([f"{title}\\begin{{tabular}}{{{columns}}}", *body, r"\end{tabular}"])

    def csv(self) -> str:
        """Return comma-separated values; no cell is a formula for a spreadsheet."""
        buffer = io.StringIO()
        writer = csv.writer(buffer, lineterminator="\n")
        for row in (self.header, *self.rows):
            writer.writerow([_no_formula(one_line(cell)) for cell in row])
        return buffer.getvalue()


def _line(row: Sequence[str], widths: Sequence[int]) -> str:
    first = row[0].ljust(widths[0])
    rest = [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
    return "| " + " | ".join([first, *rest]) + " |"


def latex_text(text: str) -> str:
    """Return text as LaTeX that shows exactly it."""
    escaped = _LATEX.sub(lambda found: _LATEX_TEXT.get(found[0], f"\\{found[0]}"), one_line(text))
    return escaped.replace("\u00b1", r"$\pm$")


def _no_formula(cell: str) -> str:
    number = re.fullmatch(r"[+-]?[\d.]+", cell)
    return f"'{cell}" if cell.startswith(_FORMULA) and not number and cell != "-" else cell


def number(value: float | None, digits: int = 1, *, sign: bool = False) -> str:
    """Return a number as a cell; a dash for None."""
    if value is None:
        return "-"
    return f"{value:+.{digits}f}" if sign else f"{value:.{digits}f}"


def interval(bounds: Sequence[float] | None, digits: int = 1) -> str:
    """Return an interval as a cell; a dash for None."""
    return "-" if bounds is None else f"{bounds[0]:.{digits}f} to {bounds[1]:.{digits}f}"
