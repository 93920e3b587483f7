"""Sources, caches, adapters, optimizers, weights of timesteps."""

import importlib.util
import sys
import types

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, UNet2DConditionModel

from finetune import cache, controlnet, data, diffusion, loop, start, unet
from finetune.losses import diffusion_loss, min_snr_weights
from finetune.settings import Training
from pipeline import checkpoints
from pipeline.config import from_mapping
from pipeline.errors import UserError
from pipeline.models import load_component


class Process:
    """Stands for an Accelerator without peers."""

    def __init__(self, process_index: int, num_processes: int) -> None:
        self.process_index, self.num_processes = process_index, num_processes
        self.is_main_process = process_index == 0
        self.device = torch.device("cpu")

    def wait_for_everyone(self) -> None:
        """Nobody else is there."""


def make_item(index):
    rng = torch.Generator().manual_seed(index)
    image = torch.randint(0, 256, (4, 6, 3), generator=rng, dtype=torch.uint8)
    return image.numpy(), image[..., 0].numpy(), f"caption {index}"


def encode(images):
    moments = torch.stack([torch.from_numpy(i).float().movedim(-1, 0) for i in images])
    return torch.stack([moments, moments + 1], dim=1).half()


def test_cache_is_dealt_out_and_completed_item_by_item(tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "SHARD", 3)
    monkeypatch.setattr(cache, "BATCH", 2)
    monkeypatch.setattr(cache, "CropCache", lambda *_: None)
    for rank in (1, 0):  # each on the same listing, as they start together
        cache.prepare(Process(rank, 2), tmp_path / str(rank), 8, make_item, encode)
    written = [sorted(p.name for p in (tmp_path / r).iterdir()) for r in "01"]
    assert written == [["00000000.safetensors", "00000006.safetensors"], ["00000003.safetensors"]]
    monkeypatch.undo()
    monkeypatch.setattr(cache, "SHARD", 3)
    for path in (tmp_path / "1").iterdir():
        path.rename(tmp_path / "0" / path.name)
    (tmp_path / "0" / "00000006.safetensors").unlink()
    crops = cache.prepare(Process(0, 1), tmp_path / "0", 8, make_item, encode)
    for i in range(8):
        image, label, caption = make_item(i)
        moments, cached_label, cached_caption = crops[i]
        assert torch.equal(moments, encode([image])[0]) and moments.dtype == torch.float16
        assert (cached_label.numpy() == label).all() and cached_caption == caption


def test_batches_of_large_crops_are_encoded_in_parts(tiny_base, monkeypatch):
    """64 crops of 1024 px at once would take 200 GB."""
    vae = load_component(str(tiny_base), "vae")
    images = list(np.random.default_rng(0).integers(0, 256, (5, 32, 64, 3), dtype=np.uint8))
    expected, encode, sizes = diffusion.encode_moments(vae, images), vae.encode, []
    monkeypatch.setattr(vae, "encode", lambda batch: sizes.append(len(batch)) or encode(batch))
    monkeypatch.setattr(diffusion, "ENCODED_PX", 2 * 32 * 64 + 1)
    found = diffusion.encode_moments(vae, images)
    assert sizes == [2, 2, 1]
    torch.testing.assert_close(found, expected, rtol=1e-2, atol=1e-3)
    monkeypatch.setattr(diffusion, "ENCODED_PX", 1)
    assert len(diffusion.encode_moments(vae, images[:2])) == 2


@pytest.mark.parametrize("kept", [(), ("--cache-on-device",)], ids=["files", "device"])
def test_cached_crops_train_and_resume(
    call, same_weights, tiny_dataset, tmp_path, monkeypatch, kept
):
    data = (
        "--data", tiny_dataset(n=2), tiny_dataset(n=2, seed=1), "--cached-crops", 5, *kept,
        "--training.steps", 4, "--training.checkpoint-interval", 2, "--rare-classes.min-pixels", 10,
    )  # fmt: skip
    call(controlnet, *data, "--output", tmp_path / "straight")
    save, finished = checkpoints.save_checkpoint, []

    def save_once(folder, step, *rest):
        save(folder, step, *rest)
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoints, "save_checkpoint", save_once)
    with pytest.raises(KeyboardInterrupt):
        call(controlnet, *data, "--output", tmp_path / "stopped")
    monkeypatch.setattr(checkpoints, "save_checkpoint", save)
    monkeypatch.setattr(cache, "_write", lambda *_: finished.append(1))  # nothing is missing
    call(controlnet, *data, "--output", tmp_path / "stopped")
    assert not finished
    folders = [tmp_path / name / "controlnet" for name in ("straight", "stopped")]
    assert same_weights(*folders)


def test_batches_on_the_device_are_items_of_the_cache_and_a_function_of_the_update(tmp_path):
    crops = cache.prepare(Process(0, 1), tmp_path, 8, make_item, encode)
    settings = Training(steps=3, batch_size=4, gradient_accumulation=2)

    def run(rank):
        return start.Run(Process(rank, 2), tmp_path, seed=5, training=settings)

    batches = data.resident_crops(run(0), crops, caption_dropout=0.5)
    taken = list(batches(0))
    assert len(taken) == 6
    texts = [text for batch in taken for text in batch[2]]
    assert 0 < texts.count("") < len(texts)
    for moments, maps, captions in taken:
        for moment, label, caption in zip(moments, maps, captions, strict=True):
            number = next(i for i in range(8) if torch.equal(crops[i][0], moment))
            assert torch.equal(crops[number][1], label) and caption in ("", f"caption {number}")
    for again, batch in zip(batches(1), taken[2:], strict=True):
        assert torch.equal(again[0], batch[0]) and again[2] == batch[2]
    first = next(data.resident_crops(run(1), crops)(0))
    assert not torch.equal(first[0], taken[0][0])


def test_several_sources_or_one_and_never_none(tiny_dataset):
    one, two = str(tiny_dataset(n=2)), str(tiny_dataset(n=3))
    assert len(start.open_samples((one, two), labelled=True)) == 5
    with pytest.raises(UserError, match="--data: no dataset folder given"):
        start.open_samples((), labelled=True)
    assert from_mapping(unet.Config, {"data": one}, "c.yaml").data == (one,)
    assert from_mapping(unet.Config, {"data": [one, two]}, "c.yaml").data == (one, two)


def test_adapter_trains_the_projections_and_is_merged(call, tiny_base, tiny_dataset, tmp_path):
    pytest.importorskip("peft")
    from diffusers import StableDiffusionPipeline, UNet2DConditionModel

    call(
        unet, "--data", tiny_dataset(n=2), "--output", tmp_path, "--lora-rank", 2,
        "--training.steps", 2, "--training.ema-decay", "0.5",
    )  # fmt: skip
    before = UNet2DConditionModel.from_pretrained(tiny_base, subfolder="unet").state_dict()
    merged = UNet2DConditionModel.from_pretrained(tmp_path / "unet")
    after = merged.state_dict()
    changed = {k for k in before if not torch.equal(before[k], after[k])}
    assert before.keys() == after.keys() and changed
    assert all(any(f".{p}." in k for p in ("to_q", "to_k", "to_v", "to_out.0")) for k in changed)
    pipe = StableDiffusionPipeline.from_pretrained(tiny_base, safety_checker=None)
    pipe.load_lora_weights(tmp_path / "lora")
    latents, text = torch.ones(1, 4, 8, 8), torch.ones(1, 24, 16)
    with torch.no_grad():
        a, b = (net(latents, 5, text).sample for net in (pipe.unet, merged))
    assert torch.allclose(a, b, atol=1e-5)


def test_unet_may_learn_the_source_in_random_colours(call, tiny_dataset, tmp_path, monkeypatch):
    seen, data = [], tiny_dataset(n=2)
    monkeypatch.setattr(
        "finetune.crops.jitter_colors", lambda rng, image, **_: seen.append(1) or image
    )
    for share, expected in ((0, 0), (1, 2), (0.5, 1)):
        seen.clear()
        call(
            unet, "--data", data, "--output", tmp_path / str(share), "--training.steps", 1,
            "--color-jitter", share,
        )  # fmt: skip
        assert len(seen) == expected


@pytest.mark.parametrize(
    ("module", "arguments", "message"),
    [
        ("peft", ("--lora-rank", 2), r"--lora-rank 2: needs peft.*install -e '.\[lora\]'"),
        ("bitsandbytes", ("--training.optimizer", "adamw_8bit"), r"install -e '.\[bitsandbytes\]'"),
        ("", ("--cached-crops", -1), "--cached-crops -1: must be 0"),
        ("", ("--color-jitter", 2), "--color-jitter 2: must be in 0..1"),
        ("", ("--training.steps", 0), "--training.steps 0: must be 1 or more"),
        ("", ("--training.checkpoint-interval", 0), "--training.checkpoint-interval 0: must be 1"),
        ("", ("--training.log-interval", -5), "--training.log-interval -5: must be 1"),
        ("", ("--training.learning-rate", -1), "--training.learning-rate -1: must be 0 or more"),
        ("", ("--training.learning-rate", "nan"), "--training.learning-rate nan: must be"),
        ("", ("--training.clip-norm", 0), "--training.clip-norm 0: must be above 0"),
        ("", ("--training.warmup-steps", -1), "--training.warmup-steps -1: must be 0 or more"),
        ("", ("--training.ema-decay", 1), "--training.ema-decay 1: must be below 1"),
        ("", ("--crop.size-px", 0, 64), "--crop.size-px 0 64: must be numbers above 0"),
        ("", ("--crop.scales", 1, -1), "--crop.scales 1 -1: must be numbers above 0"),
        ("", ("--crop.scales",), r"--crop.scales \(none\): must be numbers above 0"),
        ("", ("--seed", -1), "--seed -1: must be 0 or more"),
        ("", ("--seed", 10**30), "--seed 1.*: must be"),
        ("", ("--crop.scales", 1e9), "--crop.scales 1000000000: must be at most .* up to 32"),
        ("", ("--crop.scales", "inf"), "--crop.scales"),
        ("", ("--crop.scales", "nan"), "--crop.scales"),
        ("", ("--crop.size-px", 100000, 100000), "--crop.size-px 100000 100000: .* up to 8192"),
        ("", ("--crop.size-px", 63, 127), "--crop.size-px 63 127: .* multiples of 8 for --base"),
        ("", ("--crop.size-px", 36, 64), "--crop.size-px 36 64: .* multiples of 8 for --base"),
        ("", ("--lora-rank", 10**8), "--lora-rank 100000000: must be in 0..1024"),
        ("", ("--lora-rank", 17), "--lora-rank 17: the widest layers of --base .* have 16"),
        ("", ("--training.batch-size", 10**9), "--training.batch-size 1000000000: must be in"),
        ("", ("--training.workers", 10**6), "--training.workers 1000000: must be in 0..1024"),
        ("", ("--training.steps", 10**12), r"--training.steps 1e\+12: must be in"),
        ("", ("--cached-crops", 10**9), "--cached-crops 1000000000: take at least .* free disk"),
        ("", ("--previews", 10**6), "--previews 1000000: must be in"),
        ("", ("--prompt", "a street " * 30), "--prompt .* longer than the text window"),
        ("", ("--base", "owner/none@" + "a" * 40), "cannot be fetched.*hf download owner/none"),
    ],
)
def test_what_cannot_work_is_said_first(
    module, arguments, message, call, tiny_dataset, tmp_path, monkeypatch
):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda n: None if n == module else find(n))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=message) as caught:
        call(unet, "--data", tiny_dataset(n=1), "--output", tmp_path / "none", *arguments)
    assert not (tmp_path / "none").exists() and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--unet", "{net}"), "is of a ControlNetModel, but UNet2DConditionModel is needed"),
        (("--unet", "pocket"), "--unet pocket: does not fit --base"),
        (("--unet", "{wide}"), "--unet .*wide: does not fit --base .*text width 32 against 16"),
        (("--unet", "{base}"), "here it is .*unet"),
        (("--init", "{base}/unet"), "is of a UNet2DConditionModel, but ControlNetModel"),
        (("--init", "pocket"), "--init pocket: does not fit --base"),
        (("--caption.template", "a {class}"), "--caption.template .* may hold only {{classes}}"),
        (("--caption.template", "a long street " * 9 + "{classes}"), "is cut after the 24 tokens"),
        (("--base", "{net}"), "has no model_index.json"),
        (("--rare-classes.min-pixels", 10**9), "no file has more than 1000000000 pixels"),
        (("--rare-classes.min-pixels", -5), "--rare-classes.min-pixels -5: must be 0 or more"),
        (("--rare-classes.temperature", 0), "--rare-classes.temperature 0: must be above 0"),
    ],
)
def test_models_and_captions_that_do_not_fit_are_said_first(
    arguments, message, call, tiny_base, tiny_controlnet, tiny_dataset, tmp_path
):
    wide = UNet2DConditionModel.load_config(tiny_base / "unet") | {"cross_attention_dim": 32}
    UNet2DConditionModel.from_config(wide).save_pretrained(tmp_path / "wide")
    names = {"net": tiny_controlnet, "base": tiny_base, "wide": tmp_path / "wide"}
    for name, place in names.items():
        arguments = [str(a).replace(f"{{{name}}}", str(place)) for a in arguments]
    with pytest.raises(UserError, match=message.replace("{{", "{").replace("}}", "}")) as caught:
        call(controlnet, "--data", tiny_dataset(n=1), "--output", tmp_path / "none", *arguments)
    assert not (tmp_path / "none").exists() and "\n" not in str(caught.value)


def test_shares_lie_between_nothing_and_everything(call, tiny_controlnet, tiny_dataset):
    data = tiny_dataset(n=1)
    for flag in ("--caption-dropout", "--init-weight"):
        for value in (3, -0.1):
            with pytest.raises(UserError, match=f"{flag} {value}: must be in 0..1"):
                call(controlnet, "--data", data, "--output", "nowhere",
                     "--init", tiny_controlnet, flag, value, "--dry-run")  # fmt: skip


def test_folder_of_something_else_is_no_place_for_a_run(call, tiny_base, tiny_dataset):
    data = tiny_dataset(n=1)
    before = sorted(data.rglob("*"))
    with pytest.raises(UserError, match="lies in --data .*choose another --output"):
        call(unet, "--data", data, "--output", data)
    with pytest.raises(UserError, match="is damaged, or not of a run.*choose another --output"):
        call(unet, "--data", data, "--output", tiny_base / "unet")
    with pytest.raises(UserError, match="lies in --data .*; choose another --output"):
        call(unet, "--data", data, "--output", data / "runs" / "one")
    assert sorted(p for p in data.rglob("*") if p.name != "checked.json") == before


def test_eight_bit_optimizer_is_asked_for_by_name(monkeypatch, tmp_path):
    settings = Training(optimizer="adamw_8bit", learning_rate=1e-3)
    weight = torch.nn.Parameter(torch.ones(3))
    with pytest.raises(UserError, match="needs a CUDA GPU.*use adamw"):
        loop.make_optimizer(settings, [weight], torch.device("cpu"))

    class AdamW8bit(torch.optim.AdamW):
        """Signature and state of bitsandbytes 0.50: nested, with one code book for all."""

        book, nested = torch.arange(4.0), "__bnb_optimizer_quant_state__"

        def __init__(
            self, params, lr=0.001, betas=(0.9, 0.999), eps=1e-08, weight_decay=0.01,
            amsgrad=False, optim_bits=32, args=None, min_8bit_size=4096, is_paged=False,
        ):  # fmt: skip
            super().__init__(params, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay)

        def state_dict(self):
            found = super().state_dict()
            found["state"] = {
                k: {"step": int(v["step"]), self.nested: {
                    "state1": v["exp_avg"], "state2": v["exp_avg_sq"], "qmap1": self.book,
                    "qmap2": self.book}}
                for k, v in found["state"].items()
            }  # fmt: skip
            return found

        def load_state_dict(self, state_dict, move_to_device=True):
            self.loaded = state_dict["state"]

    fake = types.SimpleNamespace(optim=types.SimpleNamespace(AdamW8bit=AdamW8bit))
    monkeypatch.setitem(sys.modules, "bitsandbytes", fake)
    optimizer = loop.make_optimizer(settings, [weight], torch.device("cuda"))
    weight.sum().backward()
    optimizer.step()
    checkpoints.save_checkpoint(tmp_path, 1, {"m": torch.nn.Linear(1, 1)}, optimizer)
    fresh = AdamW8bit([torch.nn.Parameter(torch.ones(3))])
    assert checkpoints.load_checkpoint(tmp_path, {"m": torch.nn.Linear(1, 1)}, fresh) == 1
    assert fresh.loaded[0]["step"] == 1
    states = (fresh.loaded, optimizer.state_dict()["state"])
    quantized, saved = (state[0][AdamW8bit.nested] for state in states)
    assert quantized.keys() == saved.keys()
    assert all(torch.equal(quantized[k], saved[k]) for k in saved)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_min_snr_caps_the_weight_of_the_signal(kind):
    """All three kinds of target must weigh the error of the clean latent by min(SNR, gamma)."""
    scheduler = DDIMScheduler(prediction_type=kind, beta_schedule="scaled_linear")
    times = torch.tensor([5, 500, 990])
    alphas = scheduler.alphas_cumprod[times]
    snr = alphas / (1 - alphas)
    factors = {"epsilon": snr, "v_prediction": snr + 1, "sample": torch.ones(3)}[kind]
    weights = min_snr_weights(scheduler, times, 5.0)
    assert torch.allclose(weights * factors, snr.clamp_max(5), rtol=1e-4)
    assert min_snr_weights(scheduler, times, 0.0) is None
    a, b = torch.zeros(3, 1, 2, 2), torch.ones(3, 1, 2, 2)
    assert torch.allclose(diffusion_loss(a, b, weights), weights.mean())
    assert float(diffusion_loss(a, b)) == 1
    left = torch.tensor([2.0, 0.0]).expand(3, 1, 2, 2)  # errors of the right half do not count
    assert torch.allclose(diffusion_loss(a, b + left, weights, left), 9 * weights.mean())
