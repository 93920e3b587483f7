"""Pickled weights become safetensors that the stock classes load; nothing in a pickle ever runs."""

import json
import os
import pickle
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline import convert_weights
from pipeline.errors import UserError
from pipeline.torch_pickle import StateDict

Convert = Callable[..., Path]


@pytest.fixture
def convert(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Convert:
    """Run the program on a file and a config."""

    def call(weights: Path, config: dict[str, Any] | None = None, *flags: str) -> Path:
        (tmp_path / "in.json").write_text(json.dumps(config or {}))
        paths = ["--weights", weights, "--config-file", tmp_path / "in.json"]
        output = tmp_path / "converted"
        monkeypatch.setattr(
            sys, "argv", ["convert_weights.py", *map(str, paths), "--output", str(output), *flags]
        )
        assert convert_weights.main() == 0
        return output

    return call


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_controlnet_without_condition_channels_loads_in_stock_diffusers(
    dtype: torch.dtype, tiny_controlnet: Path, tmp_path: Path, convert: Convert
) -> None:
    from diffusers import ControlNetModel

    net = ControlNetModel.from_pretrained(tiny_controlnet, torch_dtype=dtype)
    weights = tmp_path / "diffusion_pytorch_model.bin"
    torch.save(net.state_dict(), weights)
    config = json.loads((tiny_controlnet / "config.json").read_text())
    assert config.pop("conditioning_channels") == 20
    output = convert(weights, config)
    assert sorted(p.name for p in output.iterdir()) == [
        "config.json",
        "diffusion_pytorch_model.safetensors",
    ]
    loaded = ControlNetModel.from_pretrained(output, torch_dtype=dtype, use_safetensors=True)
    assert loaded.config.conditioning_channels == 20
    assert set(loaded.state_dict()) == set(net.state_dict())
    for name, tensor in net.state_dict().items():
        assert loaded.state_dict()[name].dtype == dtype
        assert torch.equal(loaded.state_dict()[name], tensor), name


def test_all_kinds_of_tensors(tmp_path: Path, convert: Convert) -> None:
    from safetensors.torch import load_file

    base = torch.arange(24, dtype=torch.float32)
    state = OrderedDict(
        plain=base,
        view=base[4:16].view(3, 4).t(),
        channels_last=torch.rand(2, 3, 4, 5).to(memory_format=torch.channels_last),
        expanded_once=torch.rand(1, 3),
        scalar=torch.tensor(3.5, dtype=torch.float64),
        empty=torch.zeros(0, 4),
        ids=torch.arange(70_000),
        half=torch.rand(3).half(),
        flags=torch.tensor([True, False, True]),
        small=torch.tensor([-1, 2], dtype=torch.int8),
        **{"grad": torch.nn.Parameter(torch.rand(2)).detach(), "name.with \u00fc": base[:1]},
    )
    state.update({f"many.{i}": torch.tensor([i]) for i in range(300)})
    torch.save(state, tmp_path / "pytorch_model.bin")
    found = load_file(convert(tmp_path / "pytorch_model.bin") / "model.safetensors")
    assert set(found) == set(state)
    for name, tensor in state.items():
        assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor), name


def test_dry_run_writes_nothing_and_a_wrong_config_is_refused(
    tmp_path: Path, convert: Convert, capsys: pytest.CaptureFixture[str]
) -> None:
    state = {convert_weights.CONDITION_ENTRY: torch.zeros(4, 20, 3, 3)}
    torch.save(state, tmp_path / "x.bin")
    assert not convert(tmp_path / "x.bin", {}, "--dry-run").exists()
    assert "1 tensors" in capsys.readouterr().out
    with pytest.raises(UserError, match="not the 20 of the weights"):
        convert(tmp_path / "x.bin", {"conditioning_channels": 3})
    assert not (tmp_path / "converted").exists()


class Evil:
    """Leaves a file when it is unpickled."""

    def __init__(self, path: Path, function: Any = os.system) -> None:
        self.path, self.function = path, function

    def __reduce__(self) -> tuple[Any, ...]:
        if self.function is os.system:
            return os.system, (f"touch {self.path}",)
        return self.function, (f"open({str(self.path)!r}, 'w')",)


def pickled(data: bytes) -> Callable[[Path, Path], None]:
    """Write a torch zip file around a hand-made pickle."""

    def write(path: Path, _: Path) -> None:
        with zipfile.ZipFile(path, "w") as file:
            file.writestr("x/data.pkl", data)
            file.writestr("x/data/0", b"\0" * 16)

    return write


def tensor_pickle(arguments: str, numel: int = 4, key: str = "0") -> bytes:
    """The pickle of {'w': tensor}; `arguments` are opcodes for start, shape and strides."""
    storage = f"(X\7\0\0\0storagectorch\nFloatStorage\nX{chr(len(key))}\0\0\0{key}X\3\0\0\0cpuK"
    head = "\x80\2}X\1\0\0\0wctorch._utils\n_rebuild_tensor_v2\n("
    text = f"{head}{storage}{chr(numel)}tQ{arguments}\x89ccollections\nOrderedDict\n)RtRs."
    return text.encode("latin-1")


HUGE = "\x8a\x0a" + "\xff" * 9 + "\x7f"  # opcode LONG1 of a number of ten bytes


def save(state: Callable[[Path], Any], **options: Any) -> Callable[[Path, Path], None]:
    return lambda path, canary: torch.save(state(canary), path, **options)


BAD: dict[str, tuple[Callable[[Path, Path], None], str]] = {
    "system call": (save(lambda c: Evil(c)), "names 'posix system'"),
    "in the dict": (save(lambda c: {"w": torch.zeros(2), "e": Evil(c)}), "posix system"),
    "nested": (save(lambda c: {"w": {"a": [Evil(c, eval)]}}), "names '__builtin__ eval'"),
    "exec": (save(lambda c: {"w": Evil(c, exec)}), "names '__builtin__ exec'"),
    "as a key": (save(lambda c: {Evil(c, eval): 1}), "names '__builtin__ eval'"),
    "protocol 4": (save(lambda c: {"w": Evil(c)}, pickle_protocol=4), "opcode FRAME"),
    "legacy file": (
        save(lambda c: {"w": Evil(c)}, _use_new_zipfile_serialization=False),
        "it names 'posix system'",
    ),
    "bare pickle": (lambda p, c: p.write_bytes(pickle.dumps(Evil(c))) and None, "not a zip file"),
    "allowed global, called wrongly": (
        pickled(b"\x80\2ctorch._utils\n_rebuild_tensor_v2\n(X\1\0\0\0atR."), "not the file"
    ),
    "getattr": (pickled(b"\x80\2c__builtin__\ngetattr\n."), "names '__builtin__ getattr'"),
    "instance": (pickled(b"(ios\nsystem\n."), "opcode INST"),
    "object": (pickled(b"\x80\2(cos\nsystem\nX\1\0\0\0ao."), "names 'os system'"),
    "newobj": (pickled(b"\x80\2ccollections\nOrderedDict\n)\x81."), "opcode NEWOBJ"),
    "extension": (pickled(b"\x80\2\x82\1."), "opcode EXT1"),
    "text persistent id": (pickled(b"Pstorage\n."), "opcode PERSID"),
    "no dict": (pickled(b"\x80\2K\1."), "not the file of a plain state dict"),
    "not only tensors": (save(lambda c: {"epoch": 3}), "more than tensors"),
    "without end": (pickled(b"\x80\2}"), "not the file"),
    "empty stack": (pickled(b"\x80\2R."), "not the file"),
    "missing memo": (pickled(b"\x80\2h\7."), "not the file"),
    "storage key with a path": (
        pickled(tensor_pickle("K\0K\4\x85K\1\x85", key="../0")), "valid key"
    ),
    "beyond the storage": (pickled(tensor_pickle("K\1K\4\x85K\1\x85")), "larger than"),
    "huge by stride 0": (pickled(tensor_pickle("K\0J\0\0\0\x40\x85K\0\x85")), "larger than"),
    "negative start": (pickled(tensor_pickle("J\xff\xff\xff\xffK\1\x85K\1\x85")), "no tensor"),
    "ranks differ": (pickled(tensor_pickle("K\0K\4\x85K\1K\1\x86")), "not the file"),
    "no data": (pickled(tensor_pickle("K\0K\4\x85K\1\x85", key="7")), "w is damaged"),
    "cut data": (pickled(tensor_pickle("K\0K\4\x85K\1\x85", numel=5)), "w is damaged"),
    "other zip": (lambda p, _: zipfile.ZipFile(p, "w").writestr("a/b", "x"), "not the file"),
    "missing": (lambda p, _: None, "no such file; check --weights"),
    "pipe": (lambda p, _: os.mkfifo(p), "is a pipe.*check --weights"),
    "folder": (lambda p, _: p.mkdir(), "is a folder.*check --weights"),
    "pointer": (
        lambda p, _: p.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid x\n") and None,
        "Git LFS pointer.*git lfs pull",
    ),
    "no tensors": (save(lambda c: {}), "holds no tensor"),
    "70 dimensions": (
        pickled(tensor_pickle("K\0(" + "K\1" * 70 + "t(" + "K\1" * 70 + "t")), "no tensor"
    ),
    "17 dimensions": (
        pickled(tensor_pickle("K\0(" + "K\1" * 17 + "t(" + "K\1" * 17 + "t")), "no tensor"
    ),
    "huge empty": (
        pickled(tensor_pickle(f"K\0K\0{HUGE}\x86K\1K\1\x86")), "no tensor"
    ),
    "huge stride of one item": (pickled(tensor_pickle(f"K\0K\1\x85{HUGE}\x85")), "no tensor"),
    "huge start of nothing": (
        pickled(tensor_pickle("J\xff\xff\xff\x7fK\0\x85K\1\x85")), "larger than its storage"
    ),
    "stride that leaves the storage": (
        pickled(tensor_pickle("K\0K\2\x85K\4\x85")), "larger than its storage"
    ),
    "shape of text": (pickled(tensor_pickle("K\0X\1\0\0\0a\x85K\1\x85")), "no tensor"),
    "shape of truth": (pickled(tensor_pickle("K\0\x88\x85K\1\x85")), "no tensor"),
    "shape is a number": (pickled(tensor_pickle("K\0K\4K\1\x85")), "not the file"),
    "name of safetensors": (
        pickled(tensor_pickle("K\0K\4\x85K\1\x85").replace(
            b"X\1\0\0\0w", b"X\x0c\0\0\0__metadata__")), "no name that safetensors can keep"
    ),
    "empty name": (
        pickled(tensor_pickle("K\0K\4\x85K\1\x85").replace(b"X\1\0\0\0w", b"X\0\0\0\0")),
        "no name that safetensors can keep",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_other_pickles_are_refused_and_not_executed(
    name: str, tmp_path: Path, convert: Convert
) -> None:
    write, reason = BAD[name]
    canary, weights = tmp_path / "executed", tmp_path / "x.bin"
    write(weights, canary)
    with pytest.raises(UserError, match=reason) as caught:
        convert(weights)
    assert str(weights) in str(caught.value) and "\n" not in str(caught.value)
    assert not canary.exists() and not list(tmp_path.rglob("*.safetensors*"))


@pytest.mark.parametrize("shape", [(), (4,), (20, 4)])
def test_a_condition_kernel_of_another_rank_is_one_line(
    shape: tuple[int, ...], tmp_path: Path, convert: Convert
) -> None:
    torch.save({convert_weights.CONDITION_ENTRY: torch.zeros(shape)}, tmp_path / "x.bin")
    with pytest.raises(UserError, match="is not a kernel of a ControlNet"):
        convert(tmp_path / "x.bin")


def test_another_model_in_the_output_is_never_overwritten(tmp_path: Path, convert: Convert) -> None:
    torch.save({"w": torch.zeros(2)}, tmp_path / "x.bin")
    output = convert(tmp_path / "x.bin", {"_class_name": "A"})
    before = {p.name: p.read_bytes() for p in output.iterdir()}
    with pytest.raises(UserError, match="holds another model .*choose another --output"):
        convert(tmp_path / "x.bin", {"_class_name": "B"})
    assert {p.name: p.read_bytes() for p in output.iterdir()} == before


@pytest.mark.parametrize("other", [torch.ones(2), torch.zeros(3), torch.zeros(0)])
def test_other_weights_of_the_same_config_are_never_overwritten(
    other: torch.Tensor, tmp_path: Path, convert: Convert
) -> None:
    torch.save({"w": torch.zeros(2)}, tmp_path / "x.bin")
    output = convert(tmp_path / "x.bin")
    before = {p.name: p.read_bytes() for p in output.iterdir()}
    torch.save({"w": other}, tmp_path / "x.bin")
    for flags in ((), ("--dry-run",)):
        with pytest.raises(UserError, match="^.*x.safetensors: exists and holds other weights; "):
            convert(tmp_path / "x.bin", None, *flags)
    assert {p.name: p.read_bytes() for p in output.iterdir()} == before


def test_the_same_conversion_again_writes_nothing(
    tmp_path: Path, convert: Convert, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save({"w": torch.zeros(2)}, tmp_path / "x.bin")
    output = convert(tmp_path / "x.bin")
    before = {p.name: (p.read_bytes(), p.stat().st_mtime_ns) for p in output.iterdir()}
    convert(tmp_path / "x.bin")
    assert "x.safetensors: exists already, nothing to do" in capsys.readouterr().out
    assert {p.name: (p.read_bytes(), p.stat().st_mtime_ns) for p in output.iterdir()} == before
    (output / "config.json").unlink()  # as a kill before the end leaves the folder
    convert(tmp_path / "x.bin")
    assert {p.name: p.read_bytes() for p in output.iterdir()} == {
        name: data for name, (data, _) in before.items()
    }


def test_the_canary_would_notice(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Evil(tmp_path / "executed")))
    assert (tmp_path / "executed").exists()


def test_hand_made_pickle_is_read_when_it_is_sound(tmp_path: Path, convert: Convert) -> None:
    from safetensors.torch import load_file

    pickled(tensor_pickle("K\0K\4\x85K\1\x85"))(tmp_path / "x.bin", tmp_path)
    assert torch.equal(
        load_file(convert(tmp_path / "x.bin") / "x.safetensors")["w"], torch.zeros(4)
    )


def test_no_unpickler_in_the_reader(root: Path) -> None:
    for name in ("torch_pickle", "convert_weights"):
        text = (root / "pipeline" / f"{name}.py").read_text()
        for word in (
            "import pickle\n",
            "torch.load",
            "import torch",
            "Unpickler",
            "getattr(",
            "exec(",
        ):
            assert word not in text


def test_files_of_old_torch_are_read_as_torch_reads_them(tmp_path):
    shared = torch.arange(12.0)
    state = OrderedDict(
        half=torch.randn(3, 5).half(),
        counts=torch.tensor(7),
        part=shared[2:8].view(2, 3),
        turned=shared.view(3, 4).t(),
        empty=torch.zeros(0, 4),
        flags=torch.tensor([True, False]),
    )
    path = tmp_path / "old.pth"
    torch.save(state, path, _use_new_zipfile_serialization=False)
    ours = StateDict(path)
    theirs = torch.load(path, weights_only=True)
    assert ours.tensors.keys() == theirs.keys()
    for name, tensor in theirs.items():
        raw = tensor.contiguous().numpy()
        assert ours.tensors[name].shape == tensor.shape
        assert ours.read(name).tobytes() == raw.tobytes()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ({"a": torch.zeros(3), "b": 5}, "more than tensors"),
        ([torch.zeros(3)], "no dict"),
        ({"a": torch.nn.Linear(2, 2)}, "it names|opcode"),
    ],
)
def test_old_files_with_anything_else_are_refused(tmp_path, content, reason):
    path = tmp_path / "old.pth"
    torch.save(content, path, _use_new_zipfile_serialization=False)
    with pytest.raises(UserError, match=reason):
        StateDict(path)


def test_an_old_file_that_is_cut_off_is_refused(tmp_path):
    path = tmp_path / "old.pth"
    torch.save({"a": torch.zeros(1000)}, path, _use_new_zipfile_serialization=False)
    data = path.read_bytes()
    for length in (20, 60, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:length])
        with pytest.raises(UserError, match="state dict"):
            StateDict(path)
