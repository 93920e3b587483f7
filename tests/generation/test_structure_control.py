"""The second control's detectors: call signatures, results, device and weights of controlnet_aux.

The stand-ins have the signatures and return types of controlnet-aux 0.0.10; `make test-extras` runs
the same through the package itself.
"""

import inspect
import os
import pickle
import sys
import types
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

from generation import detectors
from generation.sampler import attention, sampler, structure_control
from generation.sampler import networks as loading
from generation.setting_groups import SecondControl
from pipeline.errors import UserError


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.gain = torch.nn.Parameter(torch.ones(1))


class Midas:
    """Gives back an array for an array, and a PIL image for anything else, unless asked."""

    file = "dpt_hybrid-midas-501f0c75.pt"

    def __init__(self, model):
        self.model, self.device = model, "cpu"

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_or_path,
        model_type="dpt_hybrid",
        filename=None,
        cache_dir=None,
        local_files_only=False,
    ):
        model = Net()
        path = os.path.join(pretrained_model_or_path, filename or cls.file)
        model.load_state_dict(torch.load(path, map_location="cpu"))
        return cls(model)

    def to(self, device):
        self.device = device
        return self

    def __call__(
        self,
        input_image,
        a=np.pi * 2.0,
        bg_th=0.1,
        depth_and_normal=False,
        detect_resolution=512,
        image_resolution=512,
        output_type=None,
    ):
        array = isinstance(input_image, np.ndarray)
        return self._answer(
            np.asarray(input_image), image_resolution, output_type or ("np" if array else "pil")
        )

    def _answer(self, image, resolution, output_type):
        factor = resolution / min(image.shape[:2])
        height, width = (round(n * factor / 64) * 64 for n in image.shape[:2])
        gain = float(self.model.gain.detach())
        grey = np.array(Image.fromarray(image).resize((width, height)).convert("L"))
        found = (grey * gain).clip(0, 255).astype(np.uint8)[..., None].repeat(3, 2)
        return Image.fromarray(found) if output_type == "pil" else found


class Hed(Midas):
    """Always a PIL image, unless asked."""

    file = "ControlNetHED.pth"

    @classmethod
    def from_pretrained(
        cls, pretrained_model_or_path, filename=None, cache_dir=None, local_files_only=False
    ):
        return super().from_pretrained(pretrained_model_or_path, filename=filename)

    def __call__(
        self,
        input_image,
        detect_resolution=512,
        image_resolution=512,
        safe=False,
        output_type="pil",
        scribble=False,
        **kwargs,
    ):
        return self._answer(np.asarray(input_image), image_resolution, output_type)


@pytest.fixture
def package(monkeypatch):
    """A module in place of controlnet_aux."""
    module = types.ModuleType("controlnet_aux")
    module.MidasDetector, module.HEDdetector = Midas, Hed
    monkeypatch.setitem(sys.modules, "controlnet_aux", module)


@pytest.fixture
def image() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (32, 64, 3), dtype=np.uint8)


@pytest.mark.parametrize(("kind", "stock"), [("depth", Midas), ("softedge", Hed)])
@pytest.mark.parametrize("size", [(32, 64), (128, 200), (65, 64)])
def test_condition_is_the_detectors_at_the_size_of_the_image(package, tmp_path, kind, stock, size):
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    torch.save({"gain": torch.tensor([0.5])}, tmp_path / stock.file)
    detector = structure_control.Detector(SecondControl(kind, "x", detector=str(tmp_path)), "meta")
    assert detector._model.device == "meta"  # where the networks are
    condition = detector(image)
    assert condition.shape == (1, 3, *size) and condition.dtype == torch.float32
    side = max(min(size), 64)
    found = stock.from_pretrained(str(tmp_path))(
        Image.fromarray(image), detect_resolution=side, image_resolution=side
    )
    expected = np.array(found.convert("RGB").resize(size[::-1])) / 255
    assert np.allclose(condition[0].movedim(0, -1).numpy(), expected, atol=1e-6)


def test_converted_weights_go_before_the_pickle(package, tmp_path, image):
    from safetensors.torch import save_file

    (tmp_path / Hed.file).write_bytes(b"never opened")
    save_file({"gain": torch.tensor([2.0])}, tmp_path / "ControlNetHED.safetensors")
    detector = structure_control.Detector(SecondControl("softedge", "x", detector=str(tmp_path)))
    assert float(detector._model.model.gain.detach()) == 2


@pytest.mark.parametrize("form", ["plain", "torch", "zip"])
def test_weights_that_would_run_code_are_refused_unread(package, tmp_path, form):
    path, marker = tmp_path / Hed.file, tmp_path / "was_here"
    payload = pickle.dumps({"gain": _Touch(str(marker))})
    if form == "plain":
        path.write_bytes(payload)
    elif form == "torch":
        torch.save({"gain": _Touch(str(marker))}, path)
    else:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("archive/data.pkl", payload)
    with pytest.raises(UserError, match=r"ControlNetHED\.pth: .*not\s+executed") as caught:
        structure_control.Detector(SecondControl("softedge", "x", detector=str(tmp_path)))
    assert "\n" not in str(caught.value) and not marker.exists()


class _Touch:
    """Creates a file when it is unpickled."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self):
        return open, (self.path, "w")


@pytest.mark.parametrize(
    ("detector", "message"),
    [
        ("lllyasviel/Annotators", "nor a hub id pinned"),
        ("lllyasviel/Annotators@main", "nor a hub id pinned"),
        ("no/such/folder", "nor a hub id pinned"),
        (".", "has no ControlNetHED.pth"),
    ],
)
def test_weights_are_a_folder_that_has_them_or_a_pinned_id(detector, message):
    with pytest.raises(UserError, match=message):
        detectors.check_detector(SecondControl("softedge", "x", detector=detector))


def test_revision_follows_the_weights(tmp_path):
    chosen = SecondControl("softedge", "x", detector=str(tmp_path))
    revisions = []
    for value in (1.0, 2.0):
        torch.save({"gain": torch.tensor([value])}, tmp_path / Hed.file)
        revisions.append(detectors.detector_revision(chosen))
    assert revisions[0] != revisions[1]
    pinned = SecondControl("depth", "x").detector
    assert detectors.detector_revision(SecondControl("depth", "x")) == pinned


def memory_efficient_attention(
    query, key, value, attn_bias=None, p=0.0, scale=None, *, op=None, output_dtype=None
):
    """The signature of xformers 0.0.35; BxMxHxK in the same type in and out, p is dropout."""
    assert query.dim() == key.dim() == value.dim() == 4
    assert query.dtype == key.dtype == value.dtype and key.shape == value.shape
    assert query.shape[0] == key.shape[0] and query.shape[2:] == key.shape[2:]
    assert all(part.stride(-1) == 1 for part in (query, key, value)) and p == 0
    scores = torch.einsum("bmhk,bnhk->bhmn", query, key) * (scale or query.shape[-1] ** -0.5)
    return torch.einsum("bhmn,bnhk->bmhk", scores.softmax(-1), value)


@pytest.fixture
def xformers(monkeypatch):
    """A module in place of xformers.ops; a function to change what it does."""

    def install(function):
        ops = types.ModuleType("xformers.ops")
        ops.memory_efficient_attention = function
        monkeypatch.setitem(sys.modules, "xformers", types.ModuleType("xformers"))
        monkeypatch.setitem(sys.modules, "xformers.ops", ops)

    return install


def test_xformers_generates_what_native_attention_does(networks, tiny_config, make_label, xformers):
    from dataclasses import replace

    xformers(memory_efficient_attention)
    config = replace(tiny_config, attention="xformers")
    loaded = loading.load_networks(config, torch.device("cpu"))
    label = make_label(32, 64)
    ours = sampler.Sampler(loaded, config).generate(label, "road", 3).image
    native = sampler.Sampler(networks, tiny_config).generate(label, "road", 3).image
    assert np.abs(ours.astype(int) - native).max() <= 1
    parts = torch.randn(3, 2, 9, 4, 8)
    expected = attention.native_attention(*parts)
    assert torch.allclose(memory_efficient_attention(*parts), expected, atol=1e-5)
    names = list(inspect.signature(memory_efficient_attention).parameters)[:6]
    assert names == ["query", "key", "value", "attn_bias", "p", "scale"]


def test_xformers_computes_no_gradients(xformers):
    calls = []

    def count(query, key, value):
        calls.append(query.requires_grad)
        return memory_efficient_attention(query, key, value)

    xformers(count)
    attend = loading.find_attention("xformers")
    query, key, value = torch.randn(3, 2, 9, 4, 8)
    expected = attend(query, key, value)
    found = attend(query.clone().requires_grad_(), key, value)
    assert torch.allclose(found, expected, atol=1e-5) and found.requires_grad
    assert calls == [False, False]  # the trial and the first


def test_xformers_without_a_kernel_is_one_line(xformers):
    def no_operator(*_, **__):
        raise NotImplementedError("No operator found for `memory_efficient_attention_forward`\nx")

    xformers(no_operator)
    with pytest.raises(UserError, match="no kernel .*use --attention native") as caught:
        loading.find_attention("xformers")
    assert "\n" not in str(caught.value)
