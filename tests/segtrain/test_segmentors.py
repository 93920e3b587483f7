"""Segmentors on a diffusion backbone: branches, losses, recipes, what is stored."""

from pathlib import Path

import diffusers
import pytest
import torch
from mmengine.structures import PixelData
from mmseg.structures import SegDataSample

from pipeline.errors import UserError
from segtrain import recipes
from segtrain.consistency import consistency, entropy, ramp
from segtrain.taps import check_taps

ROOT = Path(__file__).resolve().parents[2]
SD15 = {"cross_attention_dim": 768}
SD21 = {
    "cross_attention_dim": 1024, "attention_head_dim": [5, 10, 20, 20],
    "use_linear_projection": True,
}  # fmt: skip
HEAD = {"loss_decode": {"type": "CrossEntropyLoss"}, "num_classes": 19, "channels": 8}
SCENES = ["a city street scene at day", "a city street scene at night", "snowy weather"]


def _build(base: Path, *, backbone=None, **options):
    torch.manual_seed(0)
    return recipes.build_model(
        {
            "model": {
                "type": "StreetforgeDiffusionSegmentor",
                "backbone": {
                    "type": "StreetforgeDiffusionBackbone", "base": str(base),
                    "taps": ["up_blocks.1"], "out_channels": 8, "scenes": SCENES,
                    **(backbone or {}),
                },
                "decode_head": {
                    "type": "FCNHead", "in_channels": 8, "in_index": 0, "num_convs": 1,
                    "dropout_ratio": 0, **HEAD,
                },
                **options,
            }
        }
    )  # fmt: skip


def _batch(*classes: int) -> tuple[torch.Tensor, list[SegDataSample]]:
    torch.manual_seed(1)
    samples = []
    for value in classes:
        sample = SegDataSample(metainfo={"ori_shape": (32, 64), "img_shape": (32, 64)})
        label = torch.full((1, 32, 64), value)
        label[:, :8] = 255
        sample.gt_sem_seg = PixelData(data=label)
        samples.append(sample)
    return torch.rand(len(classes), 3, 32, 64) * 2 - 1, samples


@pytest.fixture(autouse=True)
def registered() -> None:
    import segtrain.registry  # noqa: F401


def test_randomization_adds_a_branch_and_a_consistency(tiny_base: Path) -> None:
    model = _build(tiny_base, randomization={"weight": 0.5}).train()
    losses = model.loss(*_batch(0, 3))
    assert set(losses) >= {"plain.loss_ce", "second.loss_ce", "consistency.loss"}
    assert losses["plain.loss_ce"] != losses["second.loss_ce"]
    sum(v for k, v in losses.items() if "loss" in k).backward()
    assert all(p.grad is not None for p in model.parameters())
    never = _build(tiny_base, randomization={"probability": 0.0})
    assert set(never.loss(*_batch(0))) == {"plain.loss_ce", "plain.acc_seg"}


def test_knowledge_is_skipped_where_no_class_is_there(tiny_base: Path) -> None:
    model = _build(tiny_base, knowledge={"classes": (3,), "paths": 2})
    assert set(model.loss(*_batch(0, 255))) == {"plain.loss_ce", "plain.acc_seg"}
    assert "consistency.loss" in model.loss(*_batch(0, 3))


def test_knowledge_uses_the_classes_of_the_batch_and_their_masks(tiny_base: Path) -> None:
    model = _build(tiny_base, knowledge={"paths": 2})
    inputs, samples = _batch(0, 3)
    latents = model.backbone.encode(inputs)
    labels = torch.stack([sample.gt_sem_seg.data for sample in samples])
    options = model.conditional_options(labels, latents)
    assert options["class_ids"] == [0, 3]
    assert options["masks"].shape == (2, 2, 8, 16)
    for k in range(2):
        assert options["masks"][k, k, 2:].all() and not options["masks"][k, 1 - k].any()
        assert not options["masks"][k, k, :2].any()  # void
    maps = model.backbone(inputs, latents=latents, **options)
    plain = model.backbone(inputs, latents=latents)
    assert [m.shape for m in maps] == [m.shape for m in plain]
    assert not torch.allclose(maps[0], plain[0])


def test_teacher_gets_no_gradient_from_the_consistency(tiny_base: Path) -> None:
    student = torch.randn(2, 5, 4, 4, requires_grad=True)
    teacher = torch.randn(2, 5, 4, 4, requires_grad=True)
    for kind in ("mse", "kl", "js"):
        for stop in (True, False):
            loss = consistency(student, teacher, kind, temperature=2.0, stop_gradient=stop)
            assert loss > 0
            gradients = torch.autograd.grad(loss, [student, teacher], allow_unused=True)
            assert (gradients[1] is None) == stop and gradients[0].abs().max() > 0
        assert abs(float(consistency(student, student.detach(), kind))) < 1e-6
    with pytest.raises(ValueError, match="mse, kl or js"):
        consistency(student, teacher, "l1")
    p, q = (x.detach().softmax(1) for x in (teacher, student))
    expected = (p * (p / q).log()).sum(1).mean()
    torch.testing.assert_close(consistency(student, teacher, "kl").detach(), expected)
    m = (p + q) / 2
    expected = ((p * (p / m).log()).sum(1) + (q * (q / m).log()).sum(1)).mean() / 2
    torch.testing.assert_close(consistency(student, teacher, "js").detach(), expected)


def test_entropy_and_ramp() -> None:
    even = torch.zeros(1, 4, 2, 2)
    torch.testing.assert_close(entropy(even), torch.tensor(4.0).log())
    assert [ramp(step, 4) for step in (0, 1, 3, 9)] == [0.25, 0.5, 1.0, 1.0]
    assert ramp(0, 0) == 1.0


@pytest.mark.parametrize(
    "backbone",
    [
        {"aggregation": "direct", "pyramid": [8, 8], "trajectory": {
            "type": "inversion", "targets": [5, 10, 20], "saved": [10, 0]}},
        {"aggregation": "gated", "trajectory": {"type": "noised", "timesteps": [10, 50]}},
        {"aggregation": "mixing", "categories": "eos", "adapter": True},
        {"aggregation": "lstm", "trajectory": {"type": "noised", "timesteps": [10, 50]},
         "taps": ["up_blocks.0", "vae.decoder.up_blocks.0"]},
    ],
)  # fmt: skip
def test_only_what_learns_is_stored_and_the_rest_reloads(tiny_base: Path, backbone) -> None:
    model = _build(tiny_base, backbone=backbone)
    state = model.state_dict()
    assert not any("extractor" in name or "scenes" in name for name in state)
    other = _build(tiny_base, backbone=backbone)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(1.0)
    other.load_state_dict(state)
    inputs, samples = _batch(0, 3)
    model.eval(), other.eval()
    outputs = [m(inputs, samples, mode="tensor") for m in (model, other)]
    assert torch.equal(*outputs)


@pytest.mark.parametrize("path", sorted((ROOT / "configs/segtrain").glob("*_pocket.py")), ids=str)
def test_every_pocket_recipe_builds_and_takes_a_step(path: Path) -> None:
    recipe = recipes.load_recipe(path)
    model = recipes.build_model(recipe).train()
    inputs, samples = _batch(0, 13)
    losses = model(inputs, samples, mode="loss")
    total = sum(value for name, value in losses.items() if "loss" in name)
    total.backward()
    missing = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert torch.isfinite(total) and missing == []


@pytest.mark.parametrize("path", sorted((ROOT / "configs/segtrain").glob("*_gta.py")), ids=str)
def test_taps_of_gta_recipes_are_modules_of_the_full_size_model(path: Path) -> None:
    recipe = recipes.load_recipe(path)
    backbone = recipe.model.backbone
    if backbone.type != "StreetforgeDiffusionBackbone":
        return
    with torch.device("meta"):  # no weights
        unet = diffusers.UNet2DConditionModel(**(SD15 if "vpd" in path.stem else SD21))
        vae = diffusers.AutoencoderKL()
    check_taps(unet, vae, backbone.taps)
    if backbone.aggregation != "concat":
        strides = {int(tap.split(".")[1]) for tap in backbone.taps}
        assert len(backbone.pyramid) == len(strides) + 1
        assert list(backbone.pyramid) == list(recipe.model.decode_head.in_channels)


def test_knowledge_and_attention_maps_do_not_go_together(tiny_base: Path) -> None:
    attention = "up_blocks.1.attentions.0.transformer_blocks.0.attn2:maps"
    backbone = {"taps": ["up_blocks.1", attention], "aggregation": "concat", "categories": "eos"}
    with pytest.raises(UserError, match="drop the :maps taps"):
        _build(tiny_base, backbone=backbone, knowledge={})


def test_second_pass_is_told_what_the_first_predicted(tiny_base: Path) -> None:
    images, samples = _batch(2)
    metas = [sample.metainfo for sample in samples]
    model = _build(tiny_base, knowledge={"second_pass": True}).eval()
    told = []
    model.backbone.register_forward_pre_hook(
        lambda module, args, options: told.append(options), with_kwargs=True
    )
    with torch.no_grad():
        second = model.encode_decode(images, metas)
        model.knowledge = None
        first = model.encode_decode(images, metas)
    assert told[1]["class_ids"] == sorted(first.argmax(1).unique().tolist())
    assert first.shape == second.shape and not torch.equal(first, second)
