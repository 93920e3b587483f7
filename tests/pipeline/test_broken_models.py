"""Model folders in every broken state: one line that names the file, before any weights load."""

import json
import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from pipeline import models
from pipeline.errors import UserError

WEIGHTS = "unet/diffusion_pytorch_model.safetensors"
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 3438167534\n"


def text(name: str, value: str | bytes) -> Callable[[Path], None]:
    """A fault: the file holds this instead."""
    data = value if isinstance(value, bytes) else value.encode()
    return lambda base: void((base / name).write_bytes(data))


def void(_: object) -> None:
    """Faults return nothing."""


def keys(name: str, **changes: object) -> Callable[[Path], None]:
    """A fault: keys of a JSON file have these values; `...` removes one."""

    def fault(base: Path) -> None:
        values = json.loads((base / name).read_text())
        for key, value in changes.items():
            values.pop(key, None) if value is ... else values.update({key: value})
        (base / name).write_text(json.dumps(values))

    return fault


def gone(name: str) -> Callable[[Path], None]:
    """A fault: a file or folder is missing."""
    return lambda base: (
        shutil.rmtree(base / name) if (base / name).is_dir() else (base / name).unlink()
    )


def header(value: bytes, size: int | None = None) -> bytes:
    """A safetensors file of this header and no data."""
    return struct.pack("<Q", len(value) if size is None else size) + value


def tensors(name: str, change: Callable[[dict], dict]) -> Callable[[Path], None]:
    """A fault: the weights hold other tensors."""
    return lambda base: save_file(change(load_file(base / name)), base / name)


def as_folder(base: Path) -> None:
    (base / WEIGHTS).unlink()
    (base / WEIGHTS).mkdir()


def as_pipe(base: Path) -> None:
    (base / WEIGHTS).unlink()
    os.mkfifo(base / WEIGHTS)


def as_pickle(base: Path) -> None:
    (base / WEIGHTS).rename(base / "unet/diffusion_pytorch_model.bin")


def dangling(base: Path) -> None:
    (base / WEIGHTS).unlink()
    (base / WEIGHTS).symlink_to("nowhere")


def cut(base: Path) -> None:
    data = (base / WEIGHTS).read_bytes()
    (base / WEIGHTS).write_bytes(data[: len(data) // 2])


OVERLAP = json.dumps(
    {n: {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]} for n in "ab"}
).encode()
UNET, VAE, TEXT, SCHEDULER = (
    f"{part}/config.json".replace("scheduler/", "scheduler/scheduler_")
    for part in ("unet", "vae", "text_encoder", "scheduler")
)
FAULTS = {
    "index is a list": (text("model_index.json", "[1]"), "model_index.json"),
    "index is latin-1": (text("model_index.json", b'{"\xe4": 1}'), "model_index.json.*UTF-8"),
    "index is empty": (text("model_index.json", "{}"), "model_index.json"),
    "index entry is text": (keys("model_index.json", unet="x"), "its unet is 'x'"),
    "index entry of custom code": (
        keys("model_index.json", unet=["my_code", "MyUNet"]), "its unet is MyUNet"),
    "index scheduler elsewhere": (
        keys("model_index.json", scheduler=["os", "system"]), "its scheduler is system"),
    "index lacks the vae": (keys("model_index.json", vae=...), "its vae is"),
    "config is a list": (text(UNET, "[]"), "unet/config.json"),
    "config is null": (text(UNET, "null"), "unet/config.json"),
    "config is latin-1": (text(UNET, b'{"\xe4": 1}'), "unet/config.json.*UTF-8"),
    "config is empty": (text(UNET, "{}"), "unet/config.json: names no class"),
    "config is deep": (text(UNET, "[" * 100_000), "unet/config.json"),
    "class of another network": (
        keys(UNET, _class_name="ControlNetModel"), "is of a ControlNetModel"),
    "class is a list": (keys(UNET, _class_name=["os", "system"]), "unet/config.json"),
    "remote code": (keys(UNET, auto_map={"x": "y"}), "auto_map"),
    "quantization": (keys(UNET, quantization_config={"a": 1}), "quantization_config"),
    "kernels of the hub": (keys(TEXT, attn_implementation="a/b"), "attn_implementation"),
    "widths are text": (keys(UNET, block_out_channels="abc"), "block_out_channels"),
    "widths are floats": (keys(UNET, block_out_channels=[8.5, 16]), "block_out_channels"),
    "widths are huge": (keys(UNET, block_out_channels=[8, 10**12]), "block_out_channels"),
    "many levels": (keys(UNET, block_out_channels=[8] * 1000), "block_out_channels"),
    "other widths": (keys(UNET, block_out_channels=[8, 24]), "does not hold.*expected"),
    "widths no group divides": (keys(UNET, norm_num_groups=7), "unet/config.json"),
    "many layers": (keys(UNET, layers_per_block=10**9), "layers_per_block"),
    "many transformers": (keys(UNET, transformer_layers_per_block=10**9), "transformer_layers"),
    "blocks are numbers": (keys(UNET, down_block_types=[1, 2]), "unet/config.json"),
    "nine channels": (keys(UNET, in_channels=9), "in_channels is 9"),
    "another text width": (keys(UNET, cross_attention_dim=999), "cross_attention_dim is 999"),
    "latent channels": (keys(VAE, latent_channels=16), "in_channels is 4 .* 16"),
    "vae of a list": (keys(VAE, latent_channels=[4]), "latent_channels"),
    "text width": (keys(TEXT, hidden_size="wide"), "hidden_size"),
    "tokenizer missing": (gone("tokenizer"), "tokenizer"),
    "tokenizer broken": (text("tokenizer/tokenizer.json", "{"), "tokenizer.json"),
    "tokenizer empty": (text("tokenizer/tokenizer.json", "{}"), "tokenizer"),
    "tokenizer without end": (
        keys("tokenizer/tokenizer_config.json", model_max_length=...), "tokens a prompt"),
    "scheduler missing": (gone("scheduler"), "scheduler"),
    "scheduler is a list": (text(SCHEDULER, "[]"), "scheduler_config.json"),
    "prediction of bananas": (keys(SCHEDULER, prediction_type="banana"), "must be one of epsilon"),
    "prediction is a list": (keys(SCHEDULER, prediction_type=["epsilon"]), "prediction_type"),
    "betas of text": (keys(SCHEDULER, beta_schedule="x"), "scheduler_config.json"),
    "timesteps of text": (keys(SCHEDULER, num_train_timesteps="many"), "num_train_timesteps"),
    "timesteps beyond reason": (
        keys(SCHEDULER, num_train_timesteps=10**9), "num_train_timesteps"),
    "betas beyond 1": (keys(SCHEDULER, beta_end=2.0), "beta_start .*, beta_end 2.0"),
    "betas of nothing": (keys(SCHEDULER, beta_start=0.0, beta_end=0.0), "must be above 0"),
    "betas that fall": (keys(SCHEDULER, beta_start=0.5, beta_end=0.1), "in order"),
    "betas too few": (keys(SCHEDULER, trained_betas=[0.1, 0.2]), "trained_betas: must be"),
    "betas no numbers": (
        keys(SCHEDULER, trained_betas=[float("nan")] * 1000), "trained_betas: must be 1000"),
    "spacing": (keys(SCHEDULER, timestep_spacing="x"), "timestep_spacing 'x': must be one of"),
    "last sigma": (keys(SCHEDULER, final_sigmas_type="x"), "final_sigmas_type 'x': must be"),
    "offset": (keys(SCHEDULER, steps_offset=-50), "steps_offset -50: must be"),
    "groups below 0": (keys(UNET, norm_num_groups=-4), "norm_num_groups -4: must be 1 or more"),
    "eps of no number": (keys(UNET, norm_eps=float("nan")), "norm_eps nan: must be finite"),
    "padding": (keys(UNET, downsample_padding=9), "downsample_padding 9: must be 0 or 1"),
    "latents times 0": (keys(VAE, scaling_factor=0), "scaling_factor 0: must be a number above 0"),
    "latents times text": (keys(VAE, scaling_factor="x"), "scaling_factor 'x': must be"),
    "latents shifted by text": (keys(VAE, shift_factor="x"), "shift_factor 'x': must be"),
    "several ends": (keys(TEXT, eos_token_id=[1, 2]), "eos_token_id .* must be a whole number"),
    "window of text": (
        keys("tokenizer/tokenizer_config.json", model_max_length="x"), "model_max_length 'x'"),
    "window of nothing": (
        keys("tokenizer/tokenizer_config.json", model_max_length=0), "model_max_length 0: must"),
    "no padding": (
        keys("tokenizer/tokenizer_config.json", pad_token=None), "pad_token: is missing"),
    "weights of bytes": (
        tensors(WEIGHTS, lambda t: {k: v.to(torch.int8) for k, v in t.items()}), "is of I8"),
    "weights of truth values": (
        tensors(WEIGHTS, lambda t: {k: v > 0 for k, v in t.items()}), "is of BOOL"),
    "text encoder missing": (gone("text_encoder"), "text_encoder"),
    "text encoder is a pointer": (text("text_encoder/model.safetensors", POINTER), "git lfs pull"),
    "text encoder is cut": (text("text_encoder/model.safetensors", b"abc"), "model.safetensors"),
    "text encoder of other words": (keys(TEXT, vocab_size=7), "text_encoder/model.safetensors"),
    "weights missing": (gone(WEIGHTS), "no such file"),
    "weights are a pointer": (text(WEIGHTS, POINTER), "git lfs pull"),
    "weights are an annex pointer": (text(WEIGHTS, b"/annex/objects/SHA256E-s3--a\n"), "git annex"),
    "weights are cut": (cut, "is cut"),
    "weights are empty": (text(WEIGHTS, b""), "is cut, empty"),
    "header of 2 GB": (text(WEIGHTS, header(b"{}", 2 << 30)), "is cut, empty"),
    "header of 2**64": (text(WEIGHTS, b"\xff" * 64), "is cut, empty"),
    "header no JSON": (text(WEIGHTS, header(b"{{{{")), "is cut, empty"),
    "tensors overlap": (text(WEIGHTS, header(OVERLAP) + b"\0" * 8), "is cut, empty"),
    "no tensor": (text(WEIGHTS, header(b"{}")), "holds no tensor"),
    "no known tensor": (tensors(WEIGHTS, lambda t: {"x": t.popitem()[1]}), "is missing.*more"),
    "one tensor less": (
        tensors(WEIGHTS, lambda t: {k: t[k] for k in sorted(t)[1:]}), "conv_in.bias is missing"),
    "only a pickle": (as_pickle, "pickle .*convert_weights"),
    "weights are a folder": (as_folder, "is a folder"),
    "weights are a pipe": (as_pipe, "folder or a device"),
    "weights are a dead link": (dangling, "no such file"),
    "shards that lead away": (
        lambda base: (
            gone(WEIGHTS)(base),
            text(f"{WEIGHTS}.index.json", '{"weight_map": {"a": "../../x"}}')(base),
        ),
        "plain file names"),
    "shards of nothing": (
        lambda base: (gone(WEIGHTS)(base), text(f"{WEIGHTS}.index.json", "{}")(base)),
        "weight_map"),
    "shards that are not here": (
        lambda base: (
            gone(WEIGHTS)(base),
            text(f"{WEIGHTS}.index.json", '{"weight_map": {"a": "x.safetensors"}}')(base),
        ),
        "x.safetensors: no such file"),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_a_broken_base_is_one_line(name: str, tiny_base: Path, tmp_path: Path) -> None:
    base = tmp_path / "base"
    shutil.copytree(tiny_base, base)
    fault, message = FAULTS[name]
    fault(base)
    with pytest.raises(UserError, match=message) as caught:
        models.check_loadable(("base", models.find_base(str(base))))
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 700


@pytest.mark.parametrize("value", ["nan", "inf"])
@pytest.mark.parametrize(
    ("part", "name"), [("unet", WEIGHTS), ("text_encoder", "text_encoder/model.safetensors")]
)
def test_weights_that_are_not_finite_are_refused(
    part: str, name: str, value: str, tiny_base: Path, tmp_path: Path
) -> None:
    base = shutil.copytree(tiny_base, tmp_path / "base")
    weights = load_file(base / name)
    broken = sorted(weights)[3]
    weights[broken].view(-1)[0] = float(value)
    save_file(weights, base / name, metadata={"format": "pt"})
    with pytest.raises(UserError, match=f"{part}: .* not finite") as caught:
        models.load_component(str(base), part)
    assert broken.removeprefix("text_model.") in str(caught.value)


NET = "diffusion_pytorch_model.safetensors"
NETWORK_FAULTS = {
    "config null": (text("config.json", "null"), "config.json"),
    "config latin-1": (text("config.json", b'{"\xe4": 1}'), "UTF-8"),
    "embedding channels missing": (
        keys("config.json", conditioning_embedding_out_channels=...),
        "against|does not hold",
    ),
    "condition channels of text": (keys("config.json", conditioning_channels="x"), "conditioning"),
    "weights missing": (gone(NET), "no such file"),
    "weights a pointer": (text(NET, POINTER), "git lfs pull"),
    "weights cut": (text(NET, b"12345678"), "is cut"),
    "widths of another": (keys("config.json", block_out_channels=[8, 24]), "widths"),
    "text width of another": (keys("config.json", cross_attention_dim=20), "text width 20 against"),
}


@pytest.mark.parametrize("name", NETWORK_FAULTS)
def test_a_broken_controlnet_is_one_line(
    name: str, tiny_base: Path, tiny_controlnet: Path, tmp_path: Path
) -> None:
    net = tmp_path / "net"
    shutil.copytree(tiny_controlnet, net)
    fault, message = NETWORK_FAULTS[name]
    fault(net)
    with pytest.raises(UserError, match=message) as caught:
        folder = models.find_folder(str(net), "controlnet")
        models.check_fit(f"--controlnet {net}", "controlnet", folder, str(tiny_base))
        models.check_loadable(("controlnet", folder))
    assert "\n" not in str(caught.value)


def test_weights_in_half_precision_alone_are_loaded(tiny_base: Path, tmp_path: Path) -> None:
    base = tmp_path / "base"
    shutil.copytree(tiny_base, base)
    for part, stem in (("unet", "diffusion_pytorch_model"), ("text_encoder", "model")):
        path = base / part / f"{stem}.safetensors"
        halves = {k: v.half() for k, v in load_file(path).items()}
        save_file(halves, base / part / f"{stem}.fp16.safetensors", metadata={"format": "pt"})
        path.unlink()
    models.check_loadable(("base", models.find_base(str(base))))
    for part in ("unet", "text_encoder"):
        found = models.load_component(str(base), part).state_dict()
        whole = models.load_component(str(tiny_base), part).state_dict()
        assert all(torch.equal(found[k], whole[k].half().float()) for k in whole)


def test_an_autoencoder_with_the_names_of_older_files_loads(
    tiny_base: Path, tmp_path: Path
) -> None:
    """Stable Diffusion 1.x was released with `query` for `to_q` and so on."""
    base = tmp_path / "base"
    shutil.copytree(tiny_base, base)
    path = base / "vae" / NET
    old = (("to_q", "query"), ("to_k", "key"), ("to_v", "value"), ("to_out.0", "proj_attn"))
    state = load_file(path)
    for now, before in old:
        assert any(f".{now}." in name for name in state)
        state = {name.replace(f".{now}.", f".{before}."): t for name, t in state.items()}
    save_file(state, path, metadata={"format": "pt"})
    models.check_loadable(("base", models.find_base(str(base))))
    models.load_component(str(base), "vae")


def test_a_hub_id_without_the_hub_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="cannot be fetched.*hf download owner/none --revision"):
        models.check_loadable(("base", models.find_base("owner/none@" + "b" * 40)))
