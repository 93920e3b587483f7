"""Read the state dict of a file of `torch.save` without executing its pickle.

A pickle is a program. Here its opcodes are walked, and only the handful that `torch.save` writes
for a flat dict of tensors, or for one under the key `state_dict`, is understood: everything else is
refused, so nothing can run. Two forms of file are read: the zip file of today, and what torch wrote
before version 1.6, which is five parts one after another: three pickles (a magic number, a version,
the byte order), the pickle of the dict, the pickle of the list of storages, then each storage as an
8-byte count and its items.
"""

import io
import math
import pickletools
import re
import struct
import zipfile
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from pipeline.errors import UserError
from pipeline.reading import open_regular, refuse_pointer

LARGEST_PICKLE = 64 << 20
MAX_DIMENSIONS = 16  # numpy reads 64, torch writes more, no network has ten
LARGEST = 1 << 40  # items of a tensor, or steps of a stride
NAME_CHARACTERS = 500
LEGACY_START = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # the pickled magic number
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
    """An open file of weights: `tensors` says what is in it, `read` brings one tensor.

    `remarks` are what a checkpoint of mmsegmentation says beside its weights: any plain values.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        refuse_pointer(path)
        handle = open_regular(path, "check --weights")
        try:
            is_legacy = handle.read(len(LEGACY_START)) == LEGACY_START
            handle.seek(0)
            self._file = _LegacyFile(handle) if is_legacy else _ZipFile(handle)
            self.tensors, self.remarks = self._file.tensors, self._file.remarks
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror}); check --weights") from None
        except DAMAGE as error:
            raise UserError(
                f"{path}: is not the file of a plain state dict ({error}); it was not "
                "executed: ask its author for safetensors"
            ) from None

    def read(self, name: str) -> np.ndarray:
        """Return one tensor, dense, as unsigned integers of its items' width."""
        tensor = self.tensors[name]
        num_bytes = tensor.storage.num_items * tensor.item_bytes
        try:
            data = self._file.storage(tensor.storage.key, num_bytes)
            items = np.ndarray(tensor.storage.num_items, f"<u{tensor.item_bytes}", data)
        except (OSError, *DAMAGE) as error:
            raise UserError(
                f"{self.path}: {name} is damaged ({error}); download the file again"
            ) from None
        strides = [step * tensor.item_bytes for step in tensor.strides]
        view = np.lib.stride_tricks.as_strided(items[tensor.start :], tensor.shape, strides)
        return np.ascontiguousarray(view)


class _ZipFile:
    """The form since torch 1.6: a member for the pickle and one for each storage."""

    def __init__(self, handle: BinaryIO) -> None:
        self._zip = zipfile.ZipFile(handle)
        (name,) = [n for n in self._zip.namelist() if re.fullmatch(r"[^/]+/data\.pkl", n)]
        self._prefix = name.removesuffix("data.pkl")
        order = f"{self._prefix}byteorder"
        if order in self._zip.namelist() and self._member(order, 16) != b"little":
            raise ValueError("its bytes are not in little-endian order")
        content = _read_pickle(io.BytesIO(self._member(name, LARGEST_PICKLE)))
        self.tensors, self.remarks = _require_tensors(content), _remarks_of(content)

    def storage(self, key: str, num_bytes: int) -> bytes:
        """Return the bytes of a storage."""
        return self._member(f"{self._prefix}data/{key}", num_bytes)

    def _member(self, name: str, largest: int) -> bytes:
        info = self._zip.getinfo(name)
        if info.compress_type != zipfile.ZIP_STORED or info.file_size > largest:
            raise ValueError(f"{name} is compressed or too large")
        return self._zip.read(info)


class _LegacyFile:
    """The form before torch 1.6."""

    def __init__(self, handle: BinaryIO) -> None:
        self._handle = handle
        head = io.BytesIO(handle.read(LARGEST_PICKLE))
        _read_pickle(head)  # the magic number, checked already
        _read_pickle(head)  # the version of the protocol
        system = _read_pickle(head)
        if not isinstance(system, dict) or system.get("little_endian") is not True:
            raise ValueError("its bytes are not in little-endian order")
        content = _read_pickle(head)
        self.tensors, self.remarks = _require_tensors(content), _remarks_of(content)
        keys = _read_pickle(head)
        items = {tensor.storage.key: tensor.item_bytes for tensor in self.tensors.values()}
        self._starts: dict[str, int] = {}
        size, start = handle.seek(0, io.SEEK_END), head.tell()
        for key in keys:
            handle.seek(start)
            count = int.from_bytes(handle.read(8), "little")
            self._starts[key] = start + 8
            start += 8 + count * items[key]
            if start > size:
                raise ValueError("it is cut off")

    def storage(self, key: str, num_bytes: int) -> bytes:
        """Return the bytes of a storage."""
        self._handle.seek(self._starts[key])
        return self._handle.read(num_bytes)


def _require_tensors(content: Any) -> dict[str, StoredTensor]:
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]  # a checkpoint of mmsegmentation, with remarks beside it
    if not isinstance(content, dict):
        raise ValueError("it holds no dict")
    if not all(type(value) is StoredTensor for value in content.values()):
        raise ValueError("it holds more than tensors")
    for key in content:  # the last is how safetensors calls its own remarks
        if not 0 < len(key) <= NAME_CHARACTERS or key == "__metadata__":
            raise ValueError("a tensor has no name that safetensors can keep")
        key.encode()
    return content


def _remarks_of(content: dict[str, Any]) -> dict[str, Any]:
    remarks = content.get("meta") if isinstance(content.get("state_dict"), dict) else None
    return remarks if isinstance(remarks, dict) else {}


def _read_pickle(stream: io.BytesIO) -> Any:
    """Walk the opcodes of the next pickle and return the value that it describes."""
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[Any, Any] = {}
    for opcode, argument, _ in pickletools.genops(stream):
        match opcode.name:
            case "PROTO":
                continue
            case "MARK":
                marks.append(len(stack))
            case "BINUNICODE" | "BININT" | "BININT1" | "BININT2" | "LONG1" | "BINFLOAT":
                stack.append(argument)
            case "NEWTRUE" | "NEWFALSE" | "NONE" | "EMPTY_TUPLE":
                stack.append(CONSTANTS[opcode.name])
            case "EMPTY_DICT":
                stack.append({})
            case "EMPTY_LIST":
                stack.append([])
            case "APPEND" | "APPENDS":
                start = marks.pop() if opcode.name == "APPENDS" else len(stack) - 1
                items = stack[start:]
                del stack[start:]
                stack[-1].extend(items)
            case "TUPLE" | "TUPLE1" | "TUPLE2" | "TUPLE3":
                start = len(stack) - int(opcode.name[5:]) if opcode.name[5:] else marks.pop()
                stack[start:] = [tuple(stack[start:])]
            case "SETITEM" | "SETITEMS":
                start = marks.pop() if opcode.name == "SETITEMS" else len(stack) - 2
                items = stack[start:]
                del stack[start:]
                if not all(isinstance(key, str) for key in items[::2]):
                    raise ValueError("a dict has a key that is not text")
                stack[-1].update(zip(items[::2], items[1::2], strict=True))
            case "BINPUT" | "LONG_BINPUT":
                memo[argument] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(memo[argument])
            case "GLOBAL":
                if argument not in (DICT, REBUILD, *STORAGES):
                    raise ValueError(f"it names {str(argument)[:100]!r}")
                stack.append(_Global(argument))
            case "BINPERSID":
                stack.append(_storage(*stack.pop()))
            case "REDUCE":
                arguments = stack.pop()
                stack.append(_call(stack.pop(), arguments))
            case "BUILD":
                stack.pop()  # `_metadata`: the versions of the modules
            case "STOP":
                return stack[-1]
            case name:
                raise ValueError(f"it has the opcode {name}")
    raise ValueError("it has no end")


def _storage(word: Any, kind: Any, key: str, _: Any, num_items: int, view: None = None) -> _Storage:
    """Check the persistent id that stands for a storage."""
    if word != "storage" or type(kind) is not _Global or kind.name not in STORAGES:
        raise ValueError("a storage has an unknown type")
    if view is not None:  # of the old form: a storage that is a part of another one
        raise ValueError("a storage is a part of another")
    if not re.fullmatch("[0-9]{1,20}", key) or not 0 <= num_items < 1 << 40:
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
    outside = start > storage.num_items or (0 not in shape and last >= storage.num_items)
    if outside or math.prod(shape) > storage.num_items:
        raise ValueError("a tensor is larger than its storage")
    return StoredTensor(*STORAGES[storage.kind], storage, start, shape, strides)
