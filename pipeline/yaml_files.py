"""Settings, catalogue entries, label spaces and recipes as YAML, read strictly.

PyYAML's safe loader builds plain values only. Here it also refuses what would hold a program up or
be wrong in silence: a key that stands twice, aliases that multiply, nesting without end, files of
other encodings, pipes and devices.
"""

from collections.abc import Hashable
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from pipeline.errors import UserError
from pipeline.paths import check_relative
from pipeline.reading import MAX_DEPTH, check_plain, read_text, shortened

MAX_YAML_BYTES = 1 << 20
MAX_PARTS = 10_000  # lines and list items of a file; PyYAML parses this many in a second or two
MAX_BASES = 16  # that stand behind one preset
MAX_VALUES = 20_000  # aliases counted as often as they stand
REMEDY = "check the path of the YAML file"
# what PyYAML raises where a tag does not fit its text: `!!int ""`, `!!bool x`, a 13th month
MISFITS = (ValueError, LookupError, AttributeError, TypeError, ArithmeticError)


class _Loader(yaml.SafeLoader):
    """The safe loader, with depth, size and keys checked before anything is built."""

    def get_single_node(self) -> Any:
        node = super().get_single_node()
        if node is not None:
            _measure(node)
        return node

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, Hashable):
                raise yaml.constructor.ConstructorError(
                    None, None, "a key is a list or mapping", key_node.start_mark
                )
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"key {key!r} stands twice", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep=deep)


def _measure(root: yaml.nodes.Node) -> None:
    """Raise `ValueError` for too many values or levels, each alias counted where it stands."""
    count, layer = 0, [root]
    for _ in range(MAX_DEPTH):
        below: list[Any] = []
        for node in layer:
            if isinstance(node, yaml.nodes.MappingNode):
                below += [part for pair in node.value for part in pair]
            elif isinstance(node, yaml.nodes.SequenceNode):
                below += node.value
            if count + len(below) > MAX_VALUES:
                raise ValueError(f"holds more than {MAX_VALUES} values, aliases counted")
        count += len(below)
        if not below:
            return
        layer = below
    raise ValueError(f"is nested more than {MAX_DEPTH} levels deep")


def load_yaml(path: Path) -> Any:
    """Read a YAML file of one document; an empty one is an empty mapping.

    Whatever is wrong with it is one `UserError` that names the file: not there, no regular file,
    not UTF-8, no YAML, a key twice, too large, too deep.
    """
    text = read_text(path, MAX_YAML_BYTES, REMEDY)
    if text.count("\n") + text.count(",") > MAX_PARTS:  # counted before anything is parsed
        raise UserError(
            f"{path}: has more than {MAX_PARTS} lines and list items; is this the right file?"
        )
    try:
        value = yaml.load(text, Loader=_Loader)
        check_plain(value)
    except RecursionError:
        raise UserError(
            f"{path}: is nested more than {MAX_DEPTH} levels deep; correct the file"
        ) from None
    except (yaml.YAMLError, *MISFITS) as error:
        reason = shortened(" ".join(str(error).split()), 300)
        raise UserError(f"{path}: not valid YAML ({reason}); correct the file") from None
    return {} if value is None else value


class Layer(NamedTuple):
    """The settings that one file of a preset states."""

    path: Path
    settings: dict[str, Any]


def load_preset(path: Path) -> list[Layer]:
    """Read a preset and the files it builds on, the most basic one first.

    The key `_base_` names the file whose settings a preset changes, by a path relative to the
    preset's folder. Each layer states only what differs from the layers before it. Raises
    `UserError` for a base that is absent, lies elsewhere or builds on itself.
    """
    layers: list[Layer] = []
    next_path: Path | None = path
    while next_path is not None:
        if len(layers) > MAX_BASES:
            raise UserError(f"{path}: _base_: more than {MAX_BASES} files, or one builds on itself")
        stated = load_yaml(next_path)
        if not isinstance(stated, dict):
            shown = shortened(repr(stated), 80)
            raise UserError(f"{next_path}: expected a mapping of settings, got {shown}")
        layers.insert(0, Layer(next_path, {k: v for k, v in stated.items() if k != "_base_"}))
        next_path = _base_of(next_path, stated["_base_"]) if "_base_" in stated else None
    return layers


def _base_of(path: Path, name: Any) -> Path:
    try:
        check_relative(name)
    except ValueError as error:
        raise UserError(
            f"{path}: _base_: {error}; name a YAML file in the folder of this one"
        ) from None
    return path.parent / name
