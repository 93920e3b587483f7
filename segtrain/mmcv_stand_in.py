"""Makes mmsegmentation importable without mmcv's compiled operators.

`mmcv-lite` lacks `mmcv._ext`, and `import mmseg.models` then fails although most models need none
of its operators. A stand-in takes its place: it has every function that is asked for, and each
raises a clear error when called. With full mmcv installed nothing is replaced.
"""

import importlib.machinery
import importlib.util
import sys
import types
from typing import Any

from pipeline.errors import UserError

EXTENSION = "mmcv._ext"


class _Absent(types.ModuleType):
    """Has any public attribute; each is a function that names the missing operator."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)

        def missing(*_: Any, **__: Any) -> None:
            raise UserError(
                f"mmcv operator {name!r} is compiled code that mmcv-lite lacks; install full mmcv "
                "2.1, or choose a recipe without it"
            )

        return missing


def install_stand_in() -> bool:
    """Put the stand-in for `mmcv._ext` in place if the real one is absent; True if it is in use.

    mmcv is looked for, not imported, so this costs next to nothing.
    """
    present = sys.modules.get(EXTENSION)
    if present is None and _lacks_extension():
        present = _Absent(EXTENSION)
        # loader=None: mmengine looks for a loader to tell full mmcv from mmcv-lite
        present.__spec__ = importlib.machinery.ModuleSpec(EXTENSION, loader=None)
        sys.modules[EXTENSION] = present
    absent = isinstance(present, _Absent)
    if absent and "mmcv" in sys.modules:
        sys.modules["mmcv"]._ext = present  # type: ignore[attr-defined]
    return absent


def _lacks_extension() -> bool:
    """Tell whether mmcv is installed without its compiled operators."""
    package = importlib.util.find_spec("mmcv")
    folders = package.submodule_search_locations if package else None
    return bool(folders) and importlib.machinery.PathFinder.find_spec(EXTENSION, folders) is None
