"""Read the state dict of a torch zip file without executing its pickle.

A pickle is a program. Here its opcodes are walked, and only the handful that `torch.save` writes
for a flat dict of tensors is understood: everything else is refused, so nothing can run.
"""

import math
import pickletools
import re
import struct
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pipeline.errors import UserError
from pipeline.reading import open_regular, refuse_pointer

LARGEST_PICKLE = 64 << 20
MAX_DIMENSIONS = 16  # numpy reads 64, torch writes more, no network has ten
LARGEST = 1 << 40  # items of a tensor, or steps of a stride
NAME_CHARACTERS = 500
STORAGES = {
    "torch DoubleStorage": ("F64", 8), "torch FloatStorage": ("F32", 4),
    "torch HalfStorage": ("F16", 2), "torch BFloat16Storage": ("BF16", 2),
    "torch LongStorage": ("I64", 8), "torch IntStorage": ("I32", 4),
    "torch ShortStorage": ("I16", 2), "torch CharStorage": ("I8", 1),
    "torch ByteStorage": ("U8", 1), "torch BoolStorage": ("BOOL", 1),
}  # fmt: skip
REBUILD = "torch._utils _rebuild_tensor_v2"
DICT = "collections OrderedDict"
DAMAGE = (zipfile.BadZipFile, LookupError, ValueError, TypeError, AttributeError, RuntimeError,
          ArithmeticError, EOFError, struct.error)  # fmt: skip
CONSTANTS = {"NEWTRUE": True, "NEWFALSE": False, "NONE": None, "EMPTY_TUPLE": ()}


class _Global(NamedTuple):
    name: str


class _Storage(NamedTuple):
    kind: str
    key: str
    num_items: int


class StoredTensor(NamedTuple):
    """Where a tensor lies; `start` and `strides` count items."""

    dtype: str
    """As safetensors calls it."""
    item_bytes: int
    storage: _Storage
    start: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        """Bytes of the dense tensor."""
        return math.prod(self.shape) * self.item_bytes


class StateDict:
    """An open torch zip file: `tensors` says what is in it, `read` brings one tensor."""

    def __init__(self, path: Path) -> None:
        self.path = path
        refuse_pointer(path)
        handle = open_regular(path, "check --weights")
        try:
            self._zip = zipfile.ZipFile(handle)
            (name,) = [n for n in self._zip.namelist() if re.fullmatch(r"[^/]+/data\.pkl", n)]
            self._prefix = name.removesuffix("data.pkl")
            order = f"{self._prefix}byteorder"
            if order in self._zip.namelist() and self._member(order, 16) != b"little":
                raise ValueError("its bytes are not in little-endian order")
            self.tensors = _read_pickle(self._member(name, LARGEST_PICKLE))
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror}); check --weights") from None
        except DAMAGE as error:
            raise UserError(
                f"{path}: is not the zip file of a plain state dict ({error}); it was not "
                "executed: ask its author for safetensors"
            ) from None

    def _member(self, name: str, largest: int) -> bytes:
        info = self._zip.getinfo(name)
        if info.compress_type != zipfile.ZIP_STORED or info.file_size > largest:
            raise ValueError(f"{name} is compressed or too large")
        return self._zip.read(info)

    def read(self, name: str) -> np.ndarray:
        """Return one tensor, dense, as unsigned integers of its items' width."""
        tensor = self.tensors[name]
        num_bytes = tensor.storage.num_items * tensor.item_bytes
        try:
            data = self._member(f"{self._prefix}data/{tensor.storage.key}", num_bytes)
            items = np.ndarray(tensor.storage.num_items, f"<u{tensor.item_bytes}", data)
        except (OSError, *DAMAGE) as error:
            raise UserError(
                f"{self.path}: {name} is damaged ({error}); download the file again"
            ) from None
        strides = [step * tensor.item_bytes for step in tensor.strides]
        view = np.lib.stride_tricks.as_strided(items[tensor.start :], tensor.shape, strides)
        return np.ascontiguousarray(view)


def _read_pickle(data: bytes) -> dict[str, StoredTensor]:
    """Walk the opcodes and return the dict that the pickle describes."""
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[int, Any] = {}
    for opcode, argument, _ in pickletools.genops(data):
        match opcode.name:
            case "PROTO":
                continue
            case "MARK":
                marks.append(len(stack))
            case "BINUNICODE" | "BININT" | "BININT1" | "BININT2" | "LONG1":
                stack.append(argument)
            case "NEWTRUE" | "NEWFALSE" | "NONE" | "EMPTY_TUPLE":
                stack.append(CONSTANTS[opcode.name])
            case "EMPTY_DICT":
                stack.append({})
            case "TUPLE" | "TUPLE1" | "TUPLE2" | "TUPLE3":
                start = len(stack) - int(opcode.name[5:]) if opcode.name[5:] else marks.pop()
                stack[start:] = [tuple(stack[start:])]
            case "SETITEM" | "SETITEMS":
                start = marks.pop() if opcode.name == "SETITEMS" else len(stack) - 2
                items = stack[start:]
                del stack[start:]
                if not all(isinstance(key, str) for key in items[::2]):
                    raise ValueError("a dict has a key that is no text")
                stack[-1].update(zip(items[::2], items[1::2], strict=True))
            case "BINPUT" | "LONG_BINPUT":
                memo[argument] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(memo[argument])
            case "GLOBAL":
                if argument not in (DICT, REBUILD, *STORAGES):
                    raise ValueError(f"it names {argument[:100]!r}")
                stack.append(_Global(argument))
            case "BINPERSID":
                stack.append(_storage(*stack.pop()))
            case "REDUCE":
                arguments = stack.pop()
                stack.append(_call(stack.pop(), arguments))
            case "BUILD":
                stack.pop()  # `_metadata`: the versions of the modules
            case "STOP":
                if not all(type(value) is StoredTensor for value in stack[-1].values()):
                    raise ValueError("it holds more than tensors")
                for key in stack[-1]:  # the last is how safetensors calls its own remarks
                    if not 0 < len(key) <= NAME_CHARACTERS or key == "__metadata__":
                        raise ValueError("a tensor has no name that safetensors can keep")
                    key.encode()
                return stack[-1]
            case name:
                raise ValueError(f"it has the opcode {name}")
    raise ValueError("it has no end")


def _storage(word: Any, kind: Any, key: str, _: Any, num_items: int) -> _Storage:
    """Check the persistent id that stands for a storage."""
    if word != "storage" or type(kind) is not _Global or kind.name not in STORAGES:
        raise ValueError("a storage has an unknown type")
    if not re.fullmatch("[0-9]{1,9}", key) or not 0 <= num_items < 1 << 40:
        raise ValueError("a storage has no valid key or size")
    return _Storage(kind.name, key, num_items)


def _call(function: Any, arguments: tuple[Any, ...]) -> Any:
    """Stand in for the two functions that a state dict calls."""
    if function == _Global(DICT) and arguments == ():
        return {}
    storage, start, shape, strides = arguments[:4]
    numbers = (start, *shape, *strides)
    sound = type(storage) is _Storage and all(type(n) is int and 0 <= n < LARGEST for n in numbers)
    sound = sound and len(shape) <= MAX_DIMENSIONS
    if function != _Global(REBUILD) or not sound:
        raise ValueError("it calls something that describes no tensor")
    last = start + sum((n - 1) * step for n, step in zip(shape, strides, strict=True))
    if start > storage.num_items or math.prod(shape) > storage.num_items or (0 not in shape and last >= storage.num_items):
        raise ValueError("a tensor is larger than its storage")
    return StoredTensor(*STORAGES[storage.kind], storage, start, shape, strides)
