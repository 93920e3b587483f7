"""Base models are found by name and load with the stock classes."""

import ast
import json
import shutil
from pathlib import Path

import pytest
import torch

from pipeline import hub, models
from pipeline.errors import UserError
from pipeline.hub import find_local
from pipeline.latents import (
    decode_latents,
    encode_latents,
    images_to_tensor,
    sample_latents,
    tensor_to_images,
)
from pipeline.model_files import read_config


def test_names_of_bases(tiny_base: Path, tmp_path: Path) -> None:
    assert models.find_base(str(tiny_base)) == str(tiny_base)
    pinned = "owner/name@" + "a" * 40
    assert models.find_base(pinned) == pinned
    with pytest.raises(UserError, match="model_index.json"):
        models.find_base(str(tmp_path))
    for name in ("owner/name", "owner/name@main", "no-such-folder"):
        with pytest.raises(UserError, match="40-digit commit"):
            models.find_base(name)
    with pytest.raises(UserError, match="has no config.json"):
        models.find_folder(str(tmp_path), "unet")


@pytest.mark.parametrize("kind", ["unet", "vae", "controlnet"])
def test_the_built_in_network_of_each_kind_has_its_class(kind: str) -> None:
    folder = models.find_folder("pocket", kind)
    assert read_config(folder, kind)["_class_name"] == models.COMPONENTS[kind]


def test_a_network_of_another_kind_is_no_substitute(tiny_base: Path, tiny_controlnet: Path) -> None:
    for folder, kind in ((tiny_controlnet, "unet"), (tiny_base / "unet", "controlnet")):
        with pytest.raises(UserError, match=f"is of a .* but {models.COMPONENTS[kind]}"):
            models.find_folder(str(folder), kind)
    with pytest.raises(UserError, match=f"here it is {tiny_base / 'unet'}"):
        models.find_folder(str(tiny_base), "unet")


@pytest.mark.parametrize(("name", "copy"), models.REMOVED.items())
def test_removed_hub_ids_name_their_copies(name: str, copy: str) -> None:
    for pinned in (name, f"{name}@{'a' * 40}"):
        with pytest.raises(UserError, match=f"removed from the hub.*{copy}@<40-digit commit>"):
            models.find_base(pinned)
    assert models.find_base(f"{copy}@{'a' * 40}")


def test_parts_load_and_the_prediction_type_comes_from_the_scheduler(tiny_base: Path) -> None:
    base = str(tiny_base)
    for part in ("unet", "vae", "text_encoder", "tokenizer"):
        assert type(models.load_component(base, part)).__name__.startswith(models.COMPONENTS[part])
    assert models.load_scheduler(base).config.prediction_type == "v_prediction"
    multistep = models.load_scheduler(base, "UniPCMultistepScheduler")
    assert multistep.config.prediction_type == "v_prediction"


def test_images_survive_the_way_through_tensors(tiny_base: Path) -> None:
    import numpy as np

    image = np.random.default_rng(0).integers(0, 256, (8, 12, 3)).astype(np.uint8)
    tensor = images_to_tensor([image])
    assert tensor.shape == (1, 3, 8, 12) and tensor.abs().max() <= 1
    assert np.array_equal(tensor_to_images(tensor)[0], image)
    vae = models.load_component(str(tiny_base), "vae")
    with torch.no_grad():
        latents = encode_latents(vae, torch.zeros(1, 3, 64, 128))
        assert latents.shape == (1, 4, 16, 32)
        assert decode_latents(vae, latents).shape == (1, 3, 64, 128)


@pytest.mark.parametrize("overflows", [True, False])
def test_autoencoders_that_overflow_in_float16_stay_in_float32(
    tiny_base: Path, overflows: bool
) -> None:
    """Under the autocast of any program; latents are float32 in either case."""
    vae = models.load_component(str(tiny_base), "vae")
    vae.register_to_config(force_upcast=overflows)
    image = torch.rand(1, 3, 16, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1

    @torch.no_grad()
    def results() -> list[torch.Tensor]:
        latents = encode_latents(vae, image)
        sampled = sample_latents(vae, image, torch.Generator().manual_seed(0))
        return [latents, sampled, decode_latents(vae, latents.half())]

    plain = results()
    with torch.autocast("cpu", dtype=torch.float16):
        halved = results()
    assert {part.dtype for part in halved[:2]} == {torch.float32}
    assert all(torch.equal(*pair) == overflows for pair in zip(plain, halved, strict=True))


def test_revision_is_a_digest_of_the_weights(tiny_base: Path, tiny_controlnet: Path) -> None:
    assert models.revision("owner/name@" + "a" * 40) == "a" * 40
    assert models.revision(tiny_base) == models.revision(tiny_base)
    assert models.revision(tiny_base) != models.revision(tiny_controlnet)


@pytest.mark.skipif(not models.POCKET_BASE.is_dir(), reason="the pocket weights are not here yet")
def test_pocket_weights_load_in_stock_diffusers_and_stay_small() -> None:
    from diffusers import ControlNetModel, StableDiffusionControlNetPipeline

    controlnet = ControlNetModel.from_pretrained(models.POCKET_CONTROLNET)
    pipe = StableDiffusionControlNetPipeline.from_pretrained(
        models.POCKET_BASE, controlnet=controlnet, safety_checker=None
    )
    assert controlnet.config.conditioning_channels == 20
    assert pipe.scheduler.config.prediction_type == "v_prediction"
    size = sum(p.stat().st_size for p in models.POCKET.rglob("*") if p.is_file())
    assert size <= 40_000_000


def test_saved_networks_name_no_folder_of_this_machine(
    tiny_base: Path, tiny_controlnet: Path, tmp_path: Path
) -> None:
    for kind in ("unet", "vae", "controlnet"):
        folder = tiny_controlnet if kind == "controlnet" else tiny_base / kind
        models.load_network(kind, None, folder).save_pretrained(tmp_path / kind)
    configs = [*tmp_path.glob("*/config.json"), *models.POCKET.rglob("config.json")]
    assert len(configs) > 3
    for config in configs:
        assert not json.loads(config.read_text()).get("_name_or_path"), config


def cached_repository(cache: Path, base: Path, commit: str) -> Path:
    """Lay a base out as the hub's client does: snapshots/<commit> in a folder of the repository."""
    home = cache / "models--owner--name"
    (home / "refs").mkdir(parents=True)
    (home / "refs" / "main").write_text(commit)
    shutil.copytree(base, home / "snapshots" / commit)
    return home / "snapshots" / commit


def test_a_base_in_the_hubs_cache_is_used_and_half_a_one_is_not(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = "c" * 40
    base = models.find_base(f"owner/name@{commit}")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert find_local(base) is None
    snapshot = cached_repository(tmp_path, tiny_base, commit)
    assert find_local(base) == snapshot
    hub.fetch.cache_clear()
    models.check_loadable(("base", base))
    assert models.load_component(base, "unet").config.in_channels == 4
    hub.fetch.cache_clear()
    (snapshot / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    assert find_local(base) is None
    with pytest.raises(UserError, match="cannot be fetched"):
        models.load_component(base, "vae")


def test_of_a_repository_only_what_the_parts_need_is_fetched() -> None:
    names = [
        "model_index.json", "v1-5.ckpt", "v1-5.safetensors", "README.md", "code.py",
        "unet/config.json", "unet/diffusion_pytorch_model.bin",
        "unet/diffusion_pytorch_model.safetensors",
        "unet/diffusion_pytorch_model.fp16.safetensors", "unet/code.py",
        "vae/config.json", "vae/diffusion_pytorch_model.fp16.safetensors",
        "text_encoder/config.json", "text_encoder/model.safetensors.index.json",
        "text_encoder/model-00001-of-00002.safetensors",
        "text_encoder/model-00002-of-00002.safetensors", "text_encoder/pytorch_model.bin",
        "tokenizer/vocab.json", "tokenizer/merges.txt", "scheduler/scheduler_config.json",
        "safety_checker/model.safetensors",
    ]  # fmt: skip
    left_out = ("ckpt", "bin", "py", "md", "v1-5.safetensors", "safety_checker/model.safetensors")
    wanted = {n for n in names if not n.endswith(left_out)}
    wanted.remove("unet/diffusion_pytorch_model.fp16.safetensors")
    assert set(hub.choose_files(names)) == wanted


def test_finite_weights_may_have_an_infinite_sum(tmp_path: Path) -> None:
    network = torch.nn.Linear(2, 2)
    torch.nn.init.constant_(network.weight, 3e38)
    assert network.weight.sum().isinf()
    models._check_finite(tmp_path, network)
    with torch.no_grad():
        network.weight[:] = torch.tensor([[float("inf"), 0], [0, -float("inf")]])
    with pytest.raises(UserError, match="weight holds numbers that are not finite"):
        models._check_finite(tmp_path, network)


FROM_PRETRAINED = {
    "pipeline/models.py": "parts of a base model, ControlNets",
    "pipeline/prompt_encoder.py": "tokenizers, before torch is imported",
    "pipeline/transformers_folder.py": "all other networks of transformers",
    "generation/sampler/structure_control.py": "detectors of controlnet-aux",
}
OUR_SEGMENTERS = {"Segmenter", "TransformersSegmenter", "found"}


def test_the_networks_of_a_base_model_are_loaded_by_one_module() -> None:
    """What is read from a folder of weights passes the checks of its one loader."""
    root = Path(models.__file__).resolve().parent.parent
    callers = set()
    for package in ("pipeline", "finetune", "generation", "segtrain", "experiments"):
        for path in sorted((root / package).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text())):
                if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
                    continue
                owner = ast.unparse(node.func.value)
                if node.func.attr == "from_pretrained" and owner not in OUR_SEGMENTERS:
                    callers.add(str(path.relative_to(root)))
    assert callers == set(FROM_PRETRAINED)
