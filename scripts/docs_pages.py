"""Add to the documentation site what is kept outside docs/: a hook of mkdocs.

The texts of the repository link to each other as files. This hook puts them at the same places
on the site, docs/ being its root, and turns their links so that they lead there. A link to a file
that is no page (a config, a script) becomes its path; a link to nothing stops the build. The pages
of the settings come from the code: one for each package, with every dataclass whose fields have
texts.
"""

import ast
import os
import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = {
    "finetune": "fine-tuning",
    "generation": "generation",
    "segtrain": "segmentation",
    "pipeline": "tools and shared settings",
}
GUIDE = ("pocket-city", "real-data", "generation", "performance", "scale", "quality", "inspection",
         "segmentation", "evaluation", "export", "release", "files")  # fmt: skip
TEXTS = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md", "datasets/README.md",
         "pipeline/pocket/weights/README.md")  # fmt: skip
RESULTS = {"Results": "experiments/results", "Performance": "benchmarks/results"}
SHOWN = (".md", ".png", ".jpg", ".svg")
SETTINGS_OPTIONS = (
    "{ heading_level: 2, show_root_heading: false, show_root_toc_entry: false, "
    "show_signature: false, show_labels: false }"
)
LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)")


def pages_outside_docs() -> list[str]:
    """Return the texts of the repository that become pages, as paths from its root."""
    folders = [ROOT / folder for folder in RESULTS.values()]
    found = [p for folder in folders for p in folder.rglob("*") if p.suffix in SHOWN]
    return [*TEXTS, *sorted(p.relative_to(ROOT).as_posix() for p in found)]


def site_path(source: str) -> str:
    """Return where a file of the repository lies on the site: docs/ is its root."""
    return "index.md" if source == "README.md" else source.removeprefix("docs/")


def source_path(page: str) -> str:
    """Return the file of the repository that a page of the site is made of."""
    if page == "index.md":
        return "README.md"
    return f"docs/{page}" if (ROOT / "docs" / page).exists() else page


def settings_classes() -> list[str]:
    """Return the dotted names of `Config` of every program and of the groups of settings in it."""
    classes = {}
    for path in sorted(p for package in PACKAGES for p in (ROOT / package).rglob("*.py")):
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ClassDef) and _is_dataclass(node) and _has_field_texts(node):
                classes[f"{module}.{node.name}"] = node
    groups = {name.rpartition(".")[2]: name for name in classes}
    found = [name for name in classes if name.endswith(".Config")]
    for name in found:  # grows as groups are found
        for field in classes[name].body:
            if isinstance(field, ast.AnnAssign):
                words = re.findall(r"\w+", ast.unparse(field.annotation))
                found += [groups[w] for w in words if w in groups and groups[w] not in found]
    return found


def _is_dataclass(node: ast.ClassDef) -> bool:
    return any("dataclass" in ast.unparse(decorator) for decorator in node.decorator_list)


def _has_field_texts(node: ast.ClassDef) -> bool:
    pairs = zip(node.body, node.body[1:], strict=False)
    return any(isinstance(a, ast.AnnAssign) and _is_text(b) for a, b in pairs)


def _is_text(node: ast.stmt) -> bool:
    value = node.value if isinstance(node, ast.Expr) else None
    return isinstance(value, ast.Constant) and isinstance(value.value, str)


def settings_page(package: str) -> str:
    """Return the page of a package's settings, for mkdocstrings."""
    lines = [
        f"# Settings: {PACKAGES[package]}",
        "",
        "Every field is a flag of its program (`--min-region-share`) and a key of its YAML files "
        "(`min_region_share`); a field of a group is `--group.field`.",
    ]
    for name in settings_classes():
        module, _, kind = name.rpartition(".")
        if module.startswith(f"{package}."):
            program = f"{module.replace('.', '/')}.py"
            title = f"`{kind}` in {program}"
            lines += ["", f"## {title}", "", f"::: {name}", f"    options: {SETTINGS_OPTIONS}"]
    return "\n".join(lines) + "\n"


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Write the navigation: guide, programming interface, results by date, project."""
    dated: dict[str, list[str]] = {}
    for title, folder in RESULTS.items():
        names = sorted((p.name for p in (ROOT / folder).glob("*.md")), reverse=True)
        dated[title] = [f"{folder}/{name}" for name in names]
    dated["Results"].insert(0, "results.md")
    known = {*GUIDE, "results"}
    if forgotten := {p.stem for p in (ROOT / "docs").glob("*.md")} - known:
        raise PluginError(f"docs/: name {sorted(forgotten)} in GUIDE of scripts/docs_pages.py")
    api: list[Any] = ["api/street_pipeline.md", "api/segmenter.md"]
    config.nav = [
        {"Start": "index.md"},
        {"Guide": [f"{name}.md" for name in GUIDE]},
        {"API": [*api, *(f"api/settings_{package}.md" for package in PACKAGES)]},
        *({title: pages} for title, pages in dated.items() if pages),
        {"Project": [site_path(text) for text in TEXTS[1:]]},
    ]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the texts outside docs/ and the pages of the settings."""
    for source in pages_outside_docs():
        files.append(File.generated(config, site_path(source), abs_src_path=str(ROOT / source)))
    for package in PACKAGES:
        name = f"api/settings_{package}.md"
        files.append(File.generated(config, name, content=settings_page(package)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn links between files of the repository into links between pages."""
    here = page.file.src_uri

    def turn(match: re.Match[str]) -> str:
        mark, text, target = match.groups()
        if re.match(r"[a-z]+:|#", target):
            return match[0]
        name, sign, anchor = target.partition("#")
        folder = posixpath.dirname(source_path(here))
        goal = posixpath.normpath(posixpath.join(folder, name))
        if not os.path.exists(ROOT / goal):
            raise PluginError(f"{source_path(here)}: links to {target}, which is not there")
        place = site_path(goal)
        found = files.get_file_from_path(place)
        if found is None or found.inclusion.is_excluded():
            return f"{text} (`{goal}`)" if text.strip("`") != goal else f"`{goal}`"
        relative = posixpath.relpath(place, posixpath.dirname(here) or ".")
        return f"{mark}[{text}]({relative}{sign}{anchor})"

    return LINK.sub(turn, markdown)
