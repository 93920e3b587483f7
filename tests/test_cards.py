"""Cards, score tables and the report show foreign text and nothing that it asks for."""

import html
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import yaml
from markdown_it import MarkdownIt

from generation import card
from generation.prompts import Condition, Grammar
from generation.settings import Config
from pipeline import dataset_writer, labels, report
from segtrain.evaluation import score_tables

HOSTILE = (
    '"><img src=x onerror=a()>', "<script>a()</script>", "[x](javascript:a())", "a | b",
    "x\n# heading\n---\nlicense: mit", "`<svg/onload=a()>`", "![x](//example.org/t.png)",
)  # fmt: skip


class Elements(HTMLParser):
    """The names of the elements of a page, and of their attributes."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.sources: set[str] = set()
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}
        self.sources |= {str(value) for name, value in attrs if name in ("src", "href")}


def rendered(text: str) -> str:
    """Return a card as a reader of Markdown shows it, without its YAML header."""
    body = re.sub(r"\A---\n.*?\n---\n", "", text, flags=re.S)
    return MarkdownIt("gfm-like", {"linkify": False, "html": True}).render(body)


@pytest.mark.parametrize("words", HOSTILE)
def test_the_card_of_a_generated_set_quotes_its_settings(words: str, tmp_path: Path) -> None:
    grammar = Grammar(conditions={words: Condition(phrase="in fog", share=1.0)})
    config = Config(output=tmp_path, base=words, unet=words, controlnet=words, prompt=grammar)
    card.write_dataset_card(config, {words: words}, 3)
    page = rendered((tmp_path / "README.md").read_text())
    assert Elements(page).tags <= {"h1", "p", "ul", "li", "code"}, page
    seen = html.unescape(re.sub(r"<[^>]*>", "", page))
    assert seen.count(" ".join(words.split())) == 6, seen


@pytest.mark.parametrize("words", HOSTILE)
def test_a_title_is_one_heading_and_one_yaml_value(words: str, tmp_path: Path) -> None:
    dataset_writer.write_card(tmp_path, words, "Text.")
    text = (tmp_path / "README.md").read_text()
    assert text.startswith("---\n")
    header = yaml.safe_load(text.split("\n---\n")[0].removeprefix("---\n"))
    assert header["license"] == "other" and header["pretty_name"].split() == words.split()
    page = rendered(text)
    assert Elements(page).tags == {"h1", "p"} and page.count("<h1>") == 1
    shown = html.unescape(re.search("<h1>(.*)</h1>", page)[1])
    assert shown.split() == words.split()


@pytest.mark.parametrize("words", HOSTILE)
def test_a_score_table_keeps_its_cells(words: str) -> None:
    iou = dict.fromkeys(labels.CLASS_NAMES, 50.0)
    entry = {"miou": 50.0, "num_classes": 19, "iou": iou, "absent": [], "images": 1}
    scores = {
        "targets": [words],
        "checkpoints": [{"name": words, "targets": {words: entry}, "mean_miou": entry["miou"]}],
    }
    page = rendered(score_tables.score_tables(scores))
    assert Elements(page).tags <= {"table", "thead", "tbody", "tr", "th", "td", "p"}, page
    assert page.count("<th") - page.count("<thead") == 3 + 2


def test_the_report_escapes_rows_scores_timings_and_names(tmp_path: Path) -> None:
    image = np.zeros((32, 64, 3), dtype=np.uint8)
    workspace = tmp_path / "<script>a()<"
    for name in ("generated", "data/source", "variants/recolored", "data/targets/acdc"):
        writer = dataset_writer.DatasetWriter(workspace / name, config={})
        for index, words in enumerate(HOSTILE):
            row = {"condition": words, "prompt": words, "look": words}
            writer.write(index, image, np.zeros((32, 64), dtype=np.uint8), row)
    iou = dict.fromkeys(labels.CLASS_NAMES, 50.0)
    entry = {"miou": 50.0, "num_classes": 19, "iou": iou, "images": 1}
    bad = HOSTILE[0]
    arms = [{"name": name, "targets": {bad: {**entry, "conditions": {bad: entry, "b": entry}}},
             "mean_miou": 50.0} for name in ("source_only", bad)]  # fmt: skip
    (workspace / "scores.json").write_text(json.dumps({"targets": [bad], "checkpoints": arms}))
    stage = {"seconds": 1.5, "peak_mb": 9, "finished_at": "now", "command": bad, "digest": "",
             "inputs": {}}  # fmt: skip
    (workspace / "timings.json").write_text(json.dumps({"stages": {"first": stage}}))
    page = report.render(report.gather(workspace, 2))
    found = Elements(page)
    assert not found.tags & {"script", "svg/onload", "iframe"}, found.tags
    assert not {name for name in found.attributes if name.startswith("on")}
    assert found.sources and all(
        source.startswith(("data:image/", "#")) for source in found.sources
    )
    for words in HOSTILE[:3]:
        assert html.escape(words).replace("&#x27;", "&#39;").replace("&quot;", "&#34;") in page
