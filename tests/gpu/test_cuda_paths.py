"""Paths of a GPU: compilation, memory formats, attention, memory limits, scalers, normalization.

    python -m pytest -m gpu tests/gpu        # on a machine with a GPU, about a minute

Each body also runs on the CPU, as far as the path exists there, so that the tests themselves are
known to work.
"""

import contextlib
import sys
from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from accelerate.state import AcceleratorState
from safetensors.torch import load_file
from torch.nn.attention import SDPBackend, sdpa_kernel

from finetune import unet
from finetune.loop import make_optimizer
from finetune.settings import Training
from generation.sampler import canvas
from generation.sampler.attention import deterministic_kernels, native_attention
from generation.sampler.networks import load_networks
from generation.sampler.sampler import Sampler
from generation.samples import SampleSpec
from generation.setting_groups import CorrectionSettings, RareClasses
from generation.settings import Config
from pipeline import checkpoints
from pipeline.segmentation_head import SegmentationHead
from segtrain.train import to_device

NEEDS_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
CUDA = pytest.param("cuda", marks=[pytest.mark.gpu, NEEDS_GPU])
DEVICES = ["cpu", CUDA]
SMALL = ("--crop.size-px", "32", "64", "--crop.scales", "1.0", "--training.batch-size", "2",
         "--training.gradient-accumulation", "1", "--training.workers", "0",
         "--training.log-interval", "1", "--previews", "0")  # fmt: skip


@pytest.fixture
def config(tiny_base, tiny_controlnet) -> Config:
    """A canvas of 32x64 with nine tiles, three steps."""
    return Config(
        base=str(tiny_base), controlnet=str(tiny_controlnet), crop_px=(32, 64), tile_px=(16, 32),
        stride_px=(8, 16), steps=3, scheduler="ddim", tile_batch=3, min_region_share=0.2,
        base_pass_scale=0.5, canvas_scale=1.0, rare_classes=RareClasses(min_pixels=1),
    )  # fmt: skip


def spec(seed: int) -> SampleSpec:
    label = np.random.default_rng(seed).integers(0, 19, (32, 64), dtype=np.uint8)
    return SampleSpec(label, "a street with road", seed, index=seed)


def images(config: Config, device: str, count: int = 1) -> list[np.ndarray]:
    """Generate samples one by one."""
    sampler = Sampler(load_networks(config, torch.device(device)), config)
    found = [sampler.generate_all([spec(seed)])[0] for seed in range(count)]
    assert all(sample.image is not None for sample in found), found[0].problem
    return [sample.image.astype(int) for sample in found]


def differ_by(first: list[np.ndarray], second: list[np.ndarray]) -> int:
    return max(int(np.abs(a - b).max()) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("device", [pytest.param("cpu", marks=pytest.mark.slow), CUDA])
def test_compiled_networks_generate_the_same(config, device) -> None:
    """Both shapes of a run, base pass and tiles; each is compiled once."""
    config = replace(config, guidance_interval=(0.0, 1.0), guess_mode_from=1.0, tile_batch=9)
    assert differ_by(images(config, device), images(replace(config, compile=True), device)) <= 2


@pytest.mark.parametrize("device", DEVICES)
def test_channels_last_generates_the_same(config, device) -> None:
    other = replace(config, channels_last=True)
    assert differ_by(images(config, device), images(other, device)) <= 2


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("precision", ["bf16", pytest.param("fp16", marks=pytest.mark.gpu)])
def test_half_precision_stays_close(config, device, precision) -> None:
    if (device, precision) == ("cpu", "fp16"):
        pytest.skip("float16 is for GPUs")
    other = images(replace(config, precision=precision), device)
    mean = np.abs(images(config, device)[0] - other[0]).mean()
    assert 0 < mean < 12  # grey levels; random networks amplify rounding


@pytest.mark.parametrize("device", DEVICES)
def test_gpu_and_cpu_agree(config, device) -> None:
    """Noise comes from the CPU on every device, so images differ by rounding alone."""
    assert differ_by(images(config, "cpu"), images(config, device)) <= 3


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("heads", [(8, 40), (8, 80), (8, 160), (5, 64)])
@pytest.mark.parametrize("name", ["FLASH_ATTENTION", "EFFICIENT_ATTENTION", "CUDNN_ATTENTION"])
def test_attention_kernels_agree(device, heads, name) -> None:
    """A kernel that a device or a size lacks is skipped, not wrong."""
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    generator = torch.Generator().manual_seed(0)
    shape = (2, 64, *heads)
    query, key, value = (torch.randn(shape, generator=generator) for _ in range(3))
    scores = torch.einsum("bqhd,bkhd->bhqk", query, key) / heads[1] ** 0.5
    expected = torch.einsum("bhqk,bkhd->bqhd", scores.softmax(-1), value)
    parts = [part.to(device, dtype) for part in (query, key, value)]
    try:
        with sdpa_kernel(getattr(SDPBackend, name)):
            found = native_attention(*parts)
    except RuntimeError as error:
        pytest.skip(f"{name}: {str(error).splitlines()[0]}")
    assert torch.allclose(found.cpu().float(), expected, atol=1e-5 if device == "cpu" else 3e-2)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_corrected_images_are_equal_bit_for_bit(config, device, precision, tmp_path) -> None:
    """Two runs of the whole sampler; fused kernels have backward passes that differ."""
    unet = load_networks(config, torch.device("cpu")).denoiser.unet
    head = SegmentationHead.from_unet(unet, 8)
    head.save_pretrained(tmp_path / "segmentation_head")
    settings = CorrectionSettings(scale=0.5, steps=1.0, head=str(tmp_path / "segmentation_head"))
    corrected = replace(config, correction=settings, precision=precision)
    first, second = (images(corrected, device, 2) for _ in range(2))
    assert differ_by(first, second) == 0
    assert differ_by(first, images(replace(config, precision=precision), device, 2)) > 0


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("length", [64, 1024])
def test_gradients_of_attention_are_equal_bit_for_bit(device, length) -> None:
    generator = torch.Generator().manual_seed(0)
    parts = [torch.randn(1, length, 8, 40, generator=generator).to(device) for _ in range(3)]

    def gradients() -> list[torch.Tensor]:
        leaves = [part.clone().requires_grad_() for part in parts]
        with deterministic_kernels(torch.device(device)):
            return list(torch.autograd.grad(native_attention(*leaves).square().sum(), leaves))

    first = gradients()
    for _ in range(5):
        for a, b in zip(first, gradients(), strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("device", DEVICES)
def test_images_that_are_fetched_late_are_the_same(config, device) -> None:
    """The sampler works on while the pixels of earlier samples wait on the device."""
    expected = images(config, device, 3)
    sampler = Sampler(load_networks(config, torch.device(device)), config)
    pending = [sampler.start([spec(seed)])[0] for seed in range(3)]
    found = [sample.result().image.astype(int) for sample in reversed(pending)]
    assert differ_by(expected, found[::-1]) == 0


@pytest.mark.parametrize("device", DEVICES)
def test_tile_batch_is_halved_when_memory_runs_out(config, device, monkeypatch) -> None:
    """On a GPU a real allocation fails, and the allocator must go on afterwards."""
    config = replace(config, tile_batch=9)
    expected = images(config, device)
    evaluate = canvas.TileBatcher._evaluate

    def small_device(self, group, step, size):
        if size > 3:
            if device == "cuda":
                torch.empty(2**44, device="cuda")
            raise torch.OutOfMemoryError("CUDA out of memory")
        return evaluate(self, group, step, size)

    monkeypatch.setattr(canvas.TileBatcher, "_evaluate", small_device)
    assert differ_by(expected, images(config, device)) <= 2


@pytest.mark.parametrize("device", DEVICES)
def test_networks_of_several_processes_synchronize_their_norms(device) -> None:
    """SyncBN gives what BatchNorm gives where there is one process."""
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8))
    accelerator = SimpleNamespace(device=torch.device(device), num_processes=2)
    data = torch.randn(4, 3, 8, 8)
    expected = network(data)
    network[1].reset_running_stats()
    moved = to_device(network, accelerator)
    kind = torch.nn.SyncBatchNorm if device == "cuda" else torch.nn.BatchNorm2d
    assert type(moved[1]) is kind
    found = moved(data.to(device))
    found.square().mean().backward()
    assert torch.allclose(found.detach().cpu(), expected.detach(), atol=1e-2)
    assert moved[1].weight.grad is not None


@contextlib.contextmanager
def fresh_accelerator() -> Iterator[None]:
    """Let accelerate, whose precision is the same for a whole process, take another one."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.parametrize(
    ("device", "precision"),
    [("cpu", "bf16"), *(pytest.param("cuda", p, marks=CUDA.marks) for p in ("fp16", "bf16"))],
)
def test_half_precision_training_resumes_exactly_with_its_scaler(
    device, precision, tiny_base, tiny_dataset, tmp_path, monkeypatch
) -> None:
    """The loss scale of float16 is part of a checkpoint."""
    data, save = tiny_dataset(n=3), checkpoints.save_checkpoint

    def train(name: str) -> dict[str, torch.Tensor]:
        options = ["--base", tiny_base, "--data", data, "--output", tmp_path / name, *SMALL,
                   "--training.steps", 4, "--training.checkpoint-interval", 2,
                   "--training.precision", precision]  # fmt: skip
        monkeypatch.setattr(sys, "argv", ["unet.py", *map(str, options)])
        with fresh_accelerator():
            assert not unet.main()
        (path,) = (tmp_path / name / "unet").glob("*.safetensors")
        return load_file(path)

    def save_and_stop(*arguments) -> None:
        save(*arguments)
        raise KeyboardInterrupt

    straight = train("straight")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(checkpoints, "save_checkpoint", save_and_stop)
        train("resumed")
    resumed = train("resumed")
    assert straight.keys() == resumed.keys()
    tolerance = {"rtol": 0, "atol": 0} if device == "cpu" else {"rtol": 1e-3, "atol": 1e-4}
    for name, weights in straight.items():
        torch.testing.assert_close(resumed[name], weights, **tolerance)


@pytest.mark.parametrize("device", DEVICES)
def test_fused_optimizer_makes_the_same_updates(device) -> None:
    results = []
    for where in ("cpu", device):
        torch.manual_seed(0)
        network = torch.nn.Linear(8, 4).to(where)
        optimizer = make_optimizer(Training(learning_rate=0.1), [*network.parameters()],
                                   torch.device(where))  # fmt: skip
        for step in range(3):
            data = torch.randn(4, 8, generator=torch.Generator().manual_seed(step)).to(where)
            F.mse_loss(network(data), torch.ones(4, 4, device=where)).backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        results.append(network.weight.detach().cpu())
    assert torch.allclose(*results, atol=1e-4)
