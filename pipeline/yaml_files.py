"""Settings, catalogue entries, label spaces and recipes as YAML, read strictly.

PyYAML's safe loader builds plain values only. Here it also refuses what would hold a program up or
be wrong in silence: a key that stands twice, aliases that multiply, nesting without end, files of
other encodings, pipes and devices.
"""

from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from pipeline.errors import UserError
from pipeline.reading import MAX_DEPTH, check_plain, read_text, shortened

MAX_YAML_BYTES = 2 << 20
MAX_VALUES = 200_000  # aliases counted as often as they stand
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
    try:
        value = yaml.load(text, Loader=_Loader)
        check_plain(value)
    except RecursionError:
        raise UserError(
            f"{path}: is nested more than {MAX_DEPTH} levels deep; mend the file"
        ) from None
    except (yaml.YAMLError, *MISFITS) as error:
        reason = shortened(" ".join(str(error).split()), 300)
        raise UserError(f"{path}: not valid YAML ({reason}); mend the file") from None
    return {} if value is None else value
