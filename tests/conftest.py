"""Shared fixtures: tiny real models and datasets, built in seconds, offline."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent
WORDS = (
    "a city street scene with road sidewalk building wall fence pole traffic light sign "
    "vegetation terrain sky person rider car truck bus train motorcycle bicycle and in weather "
    "at clear rainy foggy snowy night day dusk dawn mountain village ,"
).split()
TOKENS = 24  # length of the tiny text window


@pytest.fixture(scope="session")
def root() -> Path:
    """The checkout."""
    return ROOT


@pytest.fixture(autouse=True)
def _no_precision_is_left() -> Iterator[None]:
    """Undo what a training in half precision leaves in its process.

    Accelerate refuses another precision afterwards; without fused attention, samples that other
    processes make differ by rounding.
    """
    yield
    state = sys.modules.get("accelerate.state")
    if state and state.AcceleratorState._shared_state.get("_mixed_precision", "no") != "no":
        state.AcceleratorState._reset_state()
    if (torch := sys.modules.get("torch")) and not torch.backends.cuda.flash_sdp_enabled():
        torch.backends.cuda.enable_flash_sdp(True)


@pytest.fixture(scope="session")
def run_program() -> Callable[..., subprocess.CompletedProcess[str]]:
    """A function that runs one of our programs by path, single-threaded, from the checkout."""

    def run(*arguments: object, check: bool = True, timeout_s: float = 600, **environment: str):
        command = [sys.executable, *map(str, arguments)]
        done = subprocess.run(
            command,
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
            capture_output=True,
            text=True,
            timeout=timeout_s,
        )
        if check and done.returncode != 0:
            pytest.fail(f"{' '.join(command)} exited with {done.returncode}\n{done.stderr[-4000:]}")
        return done

    return run


def _tokenizer():
    from transformers import CLIPTokenizer

    letters = [chr(i) for i in range(33, 127)]
    pieces = letters + [f"{letter}</w>" for letter in letters]
    merges: list[tuple[str, str]] = []
    for word in dict.fromkeys(WORDS):
        parts = [*word[:-1], f"{word[-1]}</w>"]
        while len(parts) > 1:
            if (parts[0], parts[1]) not in merges:
                merges.append((parts[0], parts[1]))
            parts = [parts[0] + parts[1], *parts[2:]]
    pieces += [a + b for a, b in merges]
    tokens = [*dict.fromkeys(pieces), "<|startoftext|>", "<|endoftext|>"]
    vocab = {token: index for index, token in enumerate(tokens)}
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=TOKENS)


FAMILIES = ("sd15", "sd21", "sdxl")  # what users bring; the tiny base stands for our own


def _text_encoder(tokenizer, width: int, *, layers: int = 1, projected: bool = False, act: str):
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        projection_dim=width,
        intermediate_size=32,
        num_hidden_layers=layers,
        num_attention_heads=2,
        max_position_embeddings=TOKENS,
        hidden_act=act,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return (CLIPTextModelWithProjection if projected else CLIPTextModel)(config)


def _unet(**changes):
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        **{
            "sample_size": 16,
            "block_out_channels": (8, 16),
            "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
            "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
            "layers_per_block": 1,
            "attention_head_dim": 2,
            "norm_num_groups": 4,
            "cross_attention_dim": 16,
            **changes,
        }
    )


def _vae(scaling_factor: float):
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        block_out_channels=(4, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=64,
        scaling_factor=scaling_factor,
    )


def _family_parts(family: str, tokenizer) -> dict:
    """The parts that tell the families apart, as the released folders configure them."""
    import diffusers

    noise = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
    if family == "pocket":
        unet, vae = _unet(), _vae(1.0)
        return {
            "unet": unet,
            "vae": vae,
            "text_encoder": _text_encoder(tokenizer, 16, act="quick_gelu"),
            "scheduler": diffusers.DDIMScheduler(
                beta_schedule="scaled_linear",
                prediction_type="v_prediction",
                rescale_betas_zero_snr=True,
                timestep_spacing="trailing",
                clip_sample=False,
            ),
        }
    if family == "sd15":
        return {
            "unet": _unet(),
            "vae": _vae(0.18215),
            "text_encoder": _text_encoder(tokenizer, 16, layers=2, act="quick_gelu"),
            "scheduler": diffusers.PNDMScheduler(
                **noise, skip_prk_steps=True, set_alpha_to_one=False, steps_offset=1
            ),
        }
    if family == "sd21":  # OpenCLIP's encoder, saved without the layer that is not used
        unet = _unet(attention_head_dim=(2, 4), use_linear_projection=True, cross_attention_dim=20)
        return {
            "unet": unet,
            "vae": _vae(0.18215),
            "text_encoder": _text_encoder(tokenizer, 20, layers=2, act="gelu"),
            "scheduler": diffusers.DDIMScheduler(
                **noise, prediction_type="v_prediction", clip_sample=False, steps_offset=1
            ),
        }
    return {
        "unet": _unet(
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            transformer_layers_per_block=(1, 2),
            attention_head_dim=(2, 4),
            use_linear_projection=True,
            cross_attention_dim=16 + 24,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=24 + 6 * 8,
        ),
        "vae": _vae(0.13025),
        "text_encoder": _text_encoder(tokenizer, 16, layers=2, act="quick_gelu"),
        "text_encoder_2": _text_encoder(tokenizer, 24, layers=3, projected=True, act="gelu"),
        "tokenizer_2": tokenizer,
        "scheduler": diffusers.EulerDiscreteScheduler(**noise, steps_offset=1),
    }


def build_base(folder: Path, family: str) -> Path:
    """Write a random pipeline folder of a family: VAE f=4, U-Net (8, 16), tiny text encoders."""
    import torch
    from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline

    tokenizer = _tokenizer()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        parts = {"tokenizer": tokenizer, **_family_parts(family, tokenizer)}
    if family == "sdxl":
        pipe = StableDiffusionXLPipeline(**parts, add_watermarker=False)
    else:
        pipe = StableDiffusionPipeline(
            **parts, safety_checker=None, feature_extractor=None, requires_safety_checker=False
        )
    pipe.save_pretrained(folder, safe_serialization=True)
    return folder


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random diffusers pipeline folder: VAE f=4, U-Net (8, 16), CLIP of one layer, v-prediction.

    `StableDiffusionPipeline.from_pretrained(folder, safety_checker=None)` loads it offline.
    """
    return build_base(tmp_path_factory.mktemp("models") / "tiny_base", "pocket")


@pytest.fixture(scope="session")
def family_base(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A function that gives the random base of one of FAMILIES, each made once."""
    made: dict[str, Path] = {}

    def get(family: str) -> Path:
        if family not in made:
            made[family] = build_base(tmp_path_factory.mktemp("bases") / family, family)
        return made[family]

    return get


@pytest.fixture(scope="session")
def tiny_controlnet(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random 20-channel ControlNet folder that fits `tiny_base`; its condition encoder is x4.

    Its outgoing convolutions are not zero, so that the control changes the result.
    """
    import torch
    from diffusers import ControlNetModel, UNet2DConditionModel

    folder = tmp_path_factory.mktemp("models") / "tiny_controlnet"
    unet = UNet2DConditionModel.from_pretrained(tiny_base, subfolder="unet")
    with torch.random.fork_rng():
        torch.manual_seed(1)
        net = ControlNetModel.from_unet(
            unet, conditioning_embedding_out_channels=(4, 8, 8), conditioning_channels=20
        )
        zero_layers = [*net.controlnet_down_blocks, net.controlnet_mid_block]
        for layer in [*zero_layers, net.controlnet_cond_embedding.conv_out]:
            torch.nn.init.normal_(layer.weight, std=0.1)
    net.save_pretrained(folder, safe_serialization=True)
    return folder


def draw_label(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """A label HxW of random blocks in which all 19 classes and void occur."""
    block = max(2, min(height, width) // 8)
    rows, columns = -(-height // block), -(-width // block)
    ids = np.append(np.arange(19), 255)
    cells = rng.permutation(np.resize(ids, rows * columns)).reshape(rows, columns)
    return cells.repeat(block, 0).repeat(block, 1)[:height, :width].astype(np.uint8)


@pytest.fixture(scope="session")
def train_steps() -> Callable[..., None]:
    """A function that trains a network of linear layers on noise, from one step up to another."""
    import torch

    def train(model, optimizer, first: int, last: int) -> None:
        for step in range(first, last):
            generator = torch.Generator().manual_seed(step)
            data = torch.randn(8, model[0].in_features, generator=generator)
            optimizer.zero_grad()
            model(data).square().mean().backward()
            optimizer.step()

    return train


@pytest.fixture
def resume_exactly(train_steps, tmp_path: Path) -> Callable[..., object]:
    """A function that resumes a training midway and compares it, bit by bit, with a straight one.

    It takes what makes a network and its optimizer, and returns the straight run's optimizer.
    """
    import torch

    from pipeline import checkpoints

    def resume(make: Callable[[], tuple]) -> object:
        straight, optimizer = make()
        train_steps(straight, optimizer, 0, 6)
        stopped, other = make()
        train_steps(stopped, other, 0, 3)
        checkpoints.save_checkpoint(tmp_path, 3, {"model": stopped}, other)
        resumed, other = make()
        assert checkpoints.load_checkpoint(tmp_path, {"model": resumed}, other) == 3
        train_steps(resumed, other, 3, 6)
        pairs = zip(straight.state_dict().values(), resumed.state_dict().values(), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)
        return optimizer

    return resume


@pytest.fixture(scope="session")
def tiny_dataset(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """A factory of dataset folders whose labels hold all classes: `tiny_dataset(n, h, w)`.

    `labelled=False` writes a captioned collection; `conditions` are handed out in turn as
    `row["condition"]`; each call writes a new folder.
    """
    from pipeline.dataset_writer import DatasetWriter
    from pipeline.labels import colorize, present_class_names

    def make(
        n: int = 6,
        h: int = 64,
        w: int = 128,
        *,
        labelled: bool = True,
        conditions: tuple[str, ...] = (),
        seed: int = 0,
        folder: Path | None = None,
    ) -> Path:
        folder = folder or tmp_path_factory.mktemp("data") / "dataset"
        writer = DatasetWriter(folder, config={"n": n, "height": h, "width": w, "seed": seed})
        for index in range(n):
            rng = np.random.default_rng([seed, index])
            label = draw_label(rng, h, w)
            noise = rng.integers(-20, 20, (h, w, 3))
            image = np.clip(colorize(label).astype(int) + noise, 0, 255).astype(np.uint8)
            names = ", ".join(present_class_names(label)[:4])
            row = {"prompt": f"a city street scene with {names}, in snowy weather at dusk"}
            if conditions:
                row["condition"] = conditions[index % len(conditions)]
            writer.write(index, image, label if labelled else None, row)
        return folder

    return make
