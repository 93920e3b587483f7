"""Segmentors on a diffusion backbone: branches, losses, recipes, what is stored."""

import gc
import json
import os
import subprocess
import sys
import weakref
from pathlib import Path

import pytest
import torch
from mmengine.structures import PixelData
from mmseg.structures import SegDataSample

from pipeline.errors import UserError
from segtrain import recipes
from segtrain.diffusion.aggregation import Bottleneck
from segtrain.losses import consistency

ROOT = Path(__file__).resolve().parents[2]
HEAD = {"loss_decode": {"type": "CrossEntropyLoss"}, "num_classes": 19, "channels": 8}
SCENES = ["a city street scene at day", "a city street scene at night", "snowy weather"]


def _build(base: Path, *, features=None, text=None, training=None, **options):
    torch.manual_seed(0)
    return recipes.build_model(
        {
            "model": {
                "type": "StreetforgeDiffusionSegmentor",
                "backbone": {
                    "type": "StreetforgeDiffusionBackbone", "base": str(base),
                    "features": {"taps": ["up_blocks.1"], "out_channels": 8, **(features or {})},
                    "text": {"scenes": SCENES, **(text or {})},
                    "training": training or {},
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


def test_prompt_randomization_adds_a_branch_and_a_consistency(tiny_base: Path) -> None:
    model = _build(tiny_base, prompt_randomization={"weight": 0.5}).train()
    losses = model.loss(*_batch(0, 3))
    assert set(losses) >= {"plain.loss_ce", "second.loss_ce", "consistency.loss"}
    assert losses["plain.loss_ce"] != losses["second.loss_ce"]
    sum(v for k, v in losses.items() if "loss" in k).backward()
    assert all(p.grad is not None for p in model.parameters())
    with pytest.raises(UserError, match="consistency l1"):
        _build(tiny_base, prompt_randomization={"kind": "l1"})
    never = _build(tiny_base, prompt_randomization={"probability": 0.0})
    assert set(never.loss(*_batch(0))) == {"plain.loss_ce", "plain.acc_seg"}


def test_ipkl_is_skipped_where_no_class_is_there(tiny_base: Path) -> None:
    model = _build(tiny_base, ipkl={"classes": (3,), "max_classes": 2})
    assert set(model.loss(*_batch(0, 255))) == {"plain.loss_ce", "plain.acc_seg"}
    assert "consistency.loss" in model.loss(*_batch(0, 3))


def test_ipkl_uses_the_classes_of_the_batch_and_their_masks(tiny_base: Path) -> None:
    model = _build(tiny_base, ipkl={"max_classes": 2})
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
    for kind in ("mse", "kl"):
        for stop in (True, False):
            loss = consistency(student, teacher, kind, temperature=2.0, stop_gradient=stop)
            assert loss > 0
            gradients = torch.autograd.grad(loss, [student, teacher], allow_unused=True)
            assert (gradients[1] is None) == stop and gradients[0].abs().max() > 0
        assert abs(float(consistency(student, student.detach(), kind))) < 1e-6
    with pytest.raises(UserError, match="mse, kl"):
        consistency(student, teacher, "l1")
    p, q = (x.detach().softmax(1) for x in (teacher, student))
    expected = (p * (p / q).log()).sum(1).mean()
    torch.testing.assert_close(consistency(student, teacher, "kl").detach(), expected)


@pytest.mark.parametrize(
    ("features", "text"),
    [
        (
            {
                "aggregation": "direct",
                "pyramid": [8, 8],
                "trajectory": {"type": "inversion", "targets": [5, 10, 20], "saved": [10, 0]},
            },
            {},
        ),
        ({"trajectory": {"type": "noised", "timesteps": [10, 50]}}, {}),
        ({"aggregation": "concat"}, {"categories": "eos", "adapter": True}),
        (
            {
                "trajectory": {"type": "noised", "timesteps": [10, 50]},
                "taps": ["up_blocks.0", "vae.decoder.up_blocks.0"],
            },
            {},
        ),
    ],
)
def test_only_what_learns_is_stored_and_the_rest_reloads(tiny_base, features, text) -> None:
    model = _build(tiny_base, features=features, text=text)
    state = model.state_dict()
    assert not any("extractor" in name or "scenes" in name for name in state)
    other = _build(tiny_base, features=features, text=text)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(1.0)
    other.load_state_dict(state)
    inputs, samples = _batch(0, 3)
    model.eval(), other.eval()
    outputs = [m(inputs, samples, mode="tensor") for m in (model, other)]
    assert torch.equal(*outputs)


def test_an_image_of_any_size_is_that_image_with_its_edge_repeated(tiny_base: Path) -> None:
    taps = ["up_blocks.0.resnets.0.conv2", "up_blocks.1"]
    features = {"taps": taps, "aggregation": "direct", "pyramid": [8, 8, 8]}
    model = _build(tiny_base, features=features).eval()
    multiple = model.backbone.extractor.grid.size_multiple
    images = torch.rand(1, 3, 2 * multiple - 5, 3 * multiple - 3) * 2 - 1
    size = images.shape[-2:]
    metas = [{"img_shape": size, "pad_shape": size, "ori_shape": size}]
    with torch.no_grad():
        logits = model.encode_decode(images, metas)
        padded = torch.nn.functional.pad(images, (0, 3, 0, 5), mode="replicate")
        whole = model.encode_decode(padded, [{"img_shape": padded.shape[-2:]}])
    assert logits.shape[-2:] == size and torch.equal(logits, whole[..., : size[0], : size[1]])
    sample = SegDataSample(metainfo={"img_shape": size})
    sample.gt_sem_seg = PixelData(data=torch.zeros((1, *size), dtype=torch.long))
    assert torch.isfinite(model.loss(images, [sample])["plain.loss_ce"])
    assert sample.gt_sem_seg.data.shape[-2:] == size, "the caller's labels stay as they are"


def test_nothing_is_kept_for_a_gradient_that_never_comes(tiny_base: Path) -> None:
    trajectory = {"type": "noised", "timesteps": [10, 50]}
    model = _build(tiny_base, features={"aggregation": "direct", "trajectory": trajectory})
    seen, at_the_end = [], []
    take, finished = Bottleneck.part, Bottleneck.finish

    def watch(block, number, feature):
        seen.append(weakref.ref(feature))
        return take(block, number, feature)

    def finish(block, *sums):
        gc.collect()
        at_the_end.extend(ref() is not None for ref in seen)
        return finished(block, *sums)

    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setattr(Bottleneck, "part", watch)
        patch.setattr(Bottleneck, "finish", finish)
        maps = model.extract_feat(_batch(0)[0])
    assert at_the_end == [False, False] and not maps[0].requires_grad


def test_windows_slide_over_an_image_of_any_size(tiny_base: Path) -> None:
    model = _build(tiny_base, test_cfg={"mode": "slide", "crop_size": (32, 32), "stride": (24, 24)})
    size = (40, 72)
    metas = [{"img_shape": size, "pad_shape": size, "ori_shape": size}]
    images = torch.rand(1, 3, *size) * 2 - 1
    total, count = torch.zeros(1, 19, *size), torch.zeros(size)
    with torch.no_grad():
        logits = model.eval().inference(images, metas)
        for top, left in ((0, 0), (0, 24), (0, 40), (8, 0), (8, 24), (8, 40)):
            place = (slice(top, top + 32), slice(left, left + 32))
            maps = model.extract_feat(images[..., place[0], place[1]])
            window = torch.nn.functional.interpolate(
                model.decode_head(maps), (32, 32), mode="bilinear", align_corners=False
            )
            total[..., place[0], place[1]] += window
            count[place] += 1
    assert count.min() == 1 and count.max() == 4
    torch.testing.assert_close(logits, total / count, rtol=1e-4, atol=1e-5)
    assert (logits.std(dim=(2, 3)) > 1e-3).any(), "a constant would fit any windows"


def test_an_auxiliary_head_learns_from_the_plain_branch(tiny_base: Path) -> None:
    auxiliary = {"type": "FCNHead", "in_channels": 8, "in_index": 0, "num_convs": 1, **HEAD}
    model = _build(tiny_base, auxiliary_head=auxiliary, ipkl={}).train()
    losses = model.loss(*_batch(0, 3))
    assert {"aux.loss_ce", "plain.loss_ce", "second.loss_ce"} <= set(losses)
    sum(v for k, v in losses.items() if "loss" in k).backward()
    assert all(p.grad is not None for p in model.auxiliary_head.conv_seg.parameters())


AGREE = """
import json, pathlib, sys, torch
sys.path.insert(0, "tests/segtrain")
from test_segmentors import _batch, _build
import segtrain.registry
torch.distributed.init_process_group("gloo")
rank = torch.distributed.get_rank()
options = {"probability": 0.5}
model = _build(sys.argv[1], prompt_randomization=options, ipkl=options).train()
found = []
for step in range(12):
    inputs, samples = _batch(*([255, 255] if rank and step % 3 == 0 else [0, 3]))
    torch.manual_seed(100 * step + rank)
    found.append(sorted(model.loss(inputs, samples)))
pathlib.Path(sys.argv[2], f"{rank}.json").write_text(json.dumps(found))
torch.distributed.destroy_process_group()
"""


def test_all_processes_take_the_same_branches(tiny_base: Path, tmp_path: Path) -> None:
    program = tmp_path / "agree.py"
    program.write_text(AGREE)
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2",
         str(program), str(tiny_base), str(tmp_path)],
        cwd=ROOT, capture_output=True, text=True, timeout=300,
        env={**os.environ, "GLOO_SOCKET_IFNAME": "lo", "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    assert first == second
    assert {"consistency.loss" in names for names in first} == {True, False}


@pytest.mark.parametrize(
    ("settings", "rule"),
    [
        ({"features": {"aggregation": "concatenate"}}, "aggregation concatenate: expected"),
        ({"training": {"part": "Full"}}, 'training.part "Full": expected'),
        ({"training": "full"}, "training 'full': must be a dict"),
        ({"features": {"tap": []}}, "features.tap: not known; known: taps, trajectory"),
        ({"text": {"categories": "EOS"}}, "categories EOS: expected"),
        ({"training": {"random_weights": True}}, "random_weights: needs"),
        (
            {"training": {"part": "full"}, "features": {"taps": ["vae.encoder.mid_block"]}},
            "no tap depends",
        ),
        ({"features": {"trajectory": {"timesteps": [10]}}}, "trajectory type None"),
        ({"features": {"trajectory": {"type": "noised", "timesteps": 100}}}, "distinct timesteps"),
        (
            {"features": {"trajectory": {"type": "noised", "timesteps": [1000]}}},
            "timestep 1000: the last",
        ),
        ({"features": {"trajectory": {"type": "diff5", "saved": []}}}, "distinct timesteps"),
        ({"features": {"out_channels": 9}}, r"FCNHead: in_channels \[8\] do not fit .* have \[9\]"),
        ({"features": {"trajectory": {"type": "diff5", "saved": [1, 1]}}}, "distinct timesteps"),
        ({"features": {"trajectory": {"type": "diff5", "eta": -1}}}, "eta -1: must be"),
        (
            {"features": {"trajectory": {"type": "diff5", "eta_range": [250, 10]}}},
            "eta_range .*lower one first",
        ),
    ],
)
def test_wrong_settings_are_named(tiny_base: Path, settings, rule: str) -> None:
    with pytest.raises(UserError, match=rule):
        _build(tiny_base, **settings)


@pytest.mark.parametrize(
    ("rule", "options", "message"),
    [
        ("prompt_randomization", {"probability": 2}, "prompt_randomization.probability 2: must be"),
        ("prompt_randomization", {"temperature": 0}, "prompt_randomization.temperature 0: must be"),
        (
            "prompt_randomization",
            {"weight": float("nan")},
            "prompt_randomization.weight nan: must be",
        ),
        ("ipkl", {"classes": [1, 19]}, r"ipkl.classes \[19\]: must be"),
        ("ipkl", {"max_classes": 0}, "ipkl.max_classes 0: must be"),
    ],
)
def test_a_rule_out_of_its_range_is_named(
    tiny_base: Path, rule: str, options, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        _build(tiny_base, **{rule: options})


def test_ipkl_and_attention_maps_do_not_go_together(tiny_base: Path) -> None:
    attention = "up_blocks.1.attentions.0.transformer_blocks.0.attn2:maps"
    features = {"taps": ["up_blocks.1", attention], "aggregation": "concat"}
    with pytest.raises(UserError, match="drop the :maps taps"):
        _build(tiny_base, features=features, text={"categories": "eos"}, ipkl={})
