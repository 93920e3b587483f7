"""Options of domain generalization against their papers' formulas, written plainly here."""

import copy
import gc
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from pipeline.errors import UserError
from segtrain import recipes
from segtrain.class_mixing import ClassMixing, paste_classes, read_class_mixing

RECIPES = Path(__file__).resolve().parents[2] / "configs" / "segtrain"


@pytest.fixture(autouse=True)
def registered() -> None:
    recipes.load_recipe(RECIPES / "segformer_pocket.py")


def random_label(height: int, width: int, *, block: int = 4, seed: int = 0) -> torch.Tensor:
    """1xHxW ids of 0 to 18 in blocks, some void."""
    rng = np.random.default_rng(seed)
    small = rng.choice([*range(19), 255], (height // block, width // block))
    return torch.from_numpy(np.kron(small, np.ones((block, block), int)))[None]


def test_the_feature_distance_is_dafomers() -> None:
    from segtrain.generalization.feature_distance import THINGS, masked_distance, thing_mask

    label = random_label(24, 32, block=3)[:, :, :32]
    label = torch.cat([label, torch.full_like(label, 13)])
    size = (label.shape[1] // 8, label.shape[2] // 8)
    mask = thing_mask(label, size, THINGS, 0.3)
    rng = torch.Generator().manual_seed(0)
    one, other = (torch.randn(2, 5, *size, generator=rng) for _ in range(2))
    distances = []
    for b in range(2):
        for y in range(size[0]):
            for x in range(size[1]):
                cell = label[b, 8 * y : 8 * y + 8, 8 * x : 8 * x + 8].flatten().tolist()
                shown = any(cell.count(k) >= 0.3 * 64 for k in THINGS)
                assert bool(mask[b, y, x]) == shown
                if shown:
                    pairs = zip(one[b, :, y, x].tolist(), other[b, :, y, x].tolist(), strict=True)
                    distances.append(math.sqrt(sum((p - q) ** 2 for p, q in pairs)))
    assert 0 < len(distances) < mask.numel()
    value = masked_distance(one, other, mask)
    assert float(value) == pytest.approx(sum(distances) / len(distances), rel=1e-5)
    one.requires_grad_()
    nothing = masked_distance(one, other, torch.zeros_like(mask))
    nothing.backward()
    assert float(nothing) == 0 and float(one.grad.abs().sum()) == 0


def test_the_boundary_term_weights_uncertain_pixels_of_the_band() -> None:
    from segtrain.generalization.boundary import boundary_band, boundary_loss

    label, radius = random_label(16, 20), 2
    logits = torch.randn(1, 19, 16, 20, generator=torch.Generator().manual_seed(1))
    total = 0.0
    band = boundary_band(label, radius)
    for y in range(16):
        for x in range(20):
            here = int(label[0, y, x])
            near = label[
                0, max(0, y - radius) : y + radius + 1, max(0, x - radius) : x + radius + 1
            ]
            others = set(near.flatten().tolist()) - {here, 255}
            assert bool(band[0, y, x]) == (here != 255 and bool(others))
            if here == 255:
                continue
            p = np.exp(logits[0, :, y, x].double().numpy())
            p /= p.sum()
            if others:
                total += -(p * np.log(p)).sum() / math.log(19) * -math.log(p[here])
    found = boundary_loss(logits, label, radius)
    assert float(found) == pytest.approx(total / label.numel(), rel=1e-5)


def segmentor(**options: object) -> Any:
    """The pocket SegFormer with options of generalization."""
    recipe = recipes.load_recipe(RECIPES / "segformer_pocket.py")
    recipe.model.update(type="StreetforgeSegmentor", **options)
    return recipes.build_model(recipe)


def packed_labels(sets: tuple[str, ...]) -> list[Any]:
    """A label of 32x64 in blocks for each image, with the name of its set."""
    from mmengine.structures import PixelData
    from mmseg.structures import SegDataSample

    samples = []
    for number, name in enumerate(sets):
        sample = SegDataSample(metainfo={"img_shape": (32, 64), "set": name})
        sample.gt_sem_seg = PixelData(data=random_label(32, 64, block=8, seed=number))
        samples.append(sample)
    return samples


def test_a_pixel_at_a_boundary_weighs_one_plus_its_entropy() -> None:
    """In the whole batch, by the gradients of its logits; half of an image is void."""
    from segtrain.generalization.boundary import boundary_band

    model, samples = (
        segmentor(boundary={"radius_px": 2, "weight": 0.7}),
        packed_labels(("source", "generated", "generated")),
    )
    samples[1].gt_sem_seg.data[:, :16] = 255
    logits = torch.randn(3, 19, 32, 64, requires_grad=True)
    model.decode_head.forward = lambda maps: logits
    losses = model.loss(torch.randn(3, 3, 32, 64), samples)
    (plain,) = torch.autograd.grad(losses["decode.loss_ce"], logits, retain_graph=True)
    (both,) = torch.autograd.grad(losses["decode.loss_ce"] + losses["boundary.loss"], logits)
    band = boundary_band(torch.cat([sample.gt_sem_seg.data for sample in samples]), 2)
    band[0] = False  # of the source
    p = logits.detach().softmax(1)
    entropy = -(p * p.log()).sum(1) / math.log(19)
    assert 0 < band.float().mean() < 0.9
    torch.testing.assert_close(both, plain * (1 + 0.7 * entropy * band)[:, None])


def test_only_images_of_the_named_sets_have_a_boundary_term() -> None:
    model, samples = segmentor(boundary={"radius_px": 2}), packed_labels(("source", "generated"))
    images = torch.randn(2, 3, 32, 64)

    def term(chosen: list) -> float:
        return float(model.eval().loss(images[: len(chosen)], chosen)["boundary.loss"])

    both, alone = term(samples), term(samples[::-1])
    assert term(samples[:1]) == 0 and both > 0 and alone > 0


def test_base_styles_are_the_farthest_points() -> None:
    from segtrain.generalization.style_hallucination import farthest_points

    points = torch.randn(30, 4, generator=torch.Generator().manual_seed(0))
    chosen = [0]
    while len(chosen) < 6:
        gaps = [min(math.dist(p, points[c]) for c in chosen) for p in points]
        chosen.append(int(np.argmax(gaps)))
    assert farthest_points(points, 6).tolist() == chosen


@pytest.mark.parametrize("tokens", [False, True])
def test_restyled_features_have_the_new_mean_and_deviation(tokens: bool) -> None:
    from segtrain.generalization.style_hallucination import StyleHallucination, StyleMemory, restyle

    rng = torch.Generator().manual_seed(0)
    maps, style = torch.randn(2, 3, 6, 7, generator=rng), torch.rand(2, 2, 3, generator=rng)
    changed = restyle(maps.flatten(2).transpose(1, 2) if tokens else maps, style)
    changed = changed.transpose(1, 2) if tokens else changed.flatten(2)
    torch.testing.assert_close(changed.mean(2), style[:, 0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(changed.std(2, unbiased=False), style[:, 1], atol=1e-4, rtol=1e-4)
    memory = StyleMemory(StyleHallucination("0", 3, num_styles=2, pool=3, interval=2))
    assert not memory.remember(style)
    memory.after_update()
    assert memory.remember(style[1:])
    torch.manual_seed(0)
    sampled = memory.draw(4)  # between the two base styles
    low, high = memory.base.amin(0), memory.base.amax(0)
    assert bool(((sampled >= low - 1e-6) & (sampled <= high + 1e-6)).all())


STYLES = {"layer": "layers.0.2", "channels": 4, "num_styles": 2, "pool": 4, "interval": 2}


def test_base_styles_are_chosen_between_updates() -> None:
    """At an interval of steps of the network's optimizer, however many micro-batches they have."""
    model = segmentor(style_hallucination=STYLES)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    other = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.1)
    memory, rng, chosen = model.styles, torch.Generator().manual_seed(0), []
    for update in range(5):
        before = memory.base.clone()
        for _ in range(3):  # micro-batches
            assert memory.remember(torch.rand(2, 2, 4, generator=rng)) == (update > 0)
            other.step()
            assert torch.equal(memory.base, before)
        optimizer.step()
        chosen.append(not torch.equal(memory.base, before))
    assert chosen == [True, False, True, False, True]


def test_each_network_counts_the_updates_of_its_own_weights() -> None:
    """Also a copy; one that is frozen, or no longer there, does not disturb the others."""
    first, gone = segmentor(style_hallucination=STYLES), segmentor(style_hallucination=STYLES)
    frozen, copied = copy.deepcopy(first).requires_grad_(False), copy.deepcopy(first)
    optimizers = [torch.optim.SGD(n.parameters(), lr=0.1) for n in (first, copied, gone)]
    count = first.styles.after_update

    def after_update() -> None:
        nonlocal gone
        gone = None
        optimizers[2:] = []
        gc.collect()
        count()

    first.styles.after_update = after_update
    for optimizer in (optimizers[0], optimizers[0], optimizers[1]):
        optimizer.step()
    assert [int(n.styles.updates) for n in (first, copied, frozen)] == [2, 1, 0]


def test_base_styles_are_chosen_by_mmengine_in_several_processes(tmp_path: Path) -> None:
    """Its wrapper leaves out the network's `train_step`; updates of two micro-batches count."""
    from mmengine.model import MMDistributedDataParallel
    from mmengine.optim import OptimWrapper

    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        styles = {**STYLES, "channels": 32}
        model = MMDistributedDataParallel(segmentor(style_hallucination=styles))
        optimizer = OptimWrapper(
            torch.optim.SGD(model.parameters(), lr=1e-3), accumulative_counts=2
        )
        rng, logged = torch.Generator().manual_seed(0), []
        for _ in range(4):
            images = torch.randint(0, 256, (2, 3, 32, 64), generator=rng, dtype=torch.uint8)
            data = {"inputs": list(images), "data_samples": packed_labels(("source", "source"))}
            logged.append(model.train_step(data, optimizer))
    finally:
        torch.distributed.destroy_process_group()
    memory = model.module.styles
    assert int(memory.updates) == 2 and bool(memory.base.any())
    assert ["style.decode.loss_ce" in losses for losses in logged] == [False] * 2 + [True] * 2


TWO_PROCESSES = """
import sys
from contextlib import nullcontext
import torch
from segtrain.generalization.style_hallucination import StyleHallucination, StyleMemory
torch.distributed.init_process_group("gloo")
rank = torch.distributed.get_rank()
rng = torch.Generator().manual_seed(rank)

class Network(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.map = torch.nn.Linear(2, 1)
        self.styles = StyleMemory(StyleHallucination("map", 2, num_styles=2, pool=2, interval=1))

    def forward(self, inputs):
        self.styles.remember(torch.rand(1, 2, 2, generator=rng))
        return self.map(inputs).sum()

model = torch.nn.parallel.DistributedDataParallel(Network())
styles, used = model.module.styles, []
for update in range(4):
    for sync in (False, True):
        with nullcontext() if sync else model.no_sync():
            model(torch.ones(1, 2)).backward()
        used.append(styles.base.clone())
    styles.after_update()
torch.save(torch.stack(used), f"{sys.argv[1]}/{rank}.pt")
torch.distributed.destroy_process_group()
"""


def test_all_processes_use_the_same_base_styles(run_program, tmp_path: Path) -> None:
    """In all micro-batches of an update, though each process sees other images."""
    program = tmp_path / "two.py"
    program.write_text(TWO_PROCESSES)
    run_program(
        "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone", program, tmp_path,
        GLOO_SOCKET_IFNAME="lo", PYTHONPATH=str(RECIPES.parents[1]),
    )  # fmt: skip
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert torch.equal(first, second)
    assert [bool(base.any()) for base in first] == [False] * 2 + [True] * 6
    assert not torch.equal(first[2], first[4])


def test_the_consistency_is_the_jensen_shannon_divergence() -> None:
    from segtrain.generalization.style_hallucination import js_divergence

    one, other = torch.randn(2, 1, 5, 2, 3, generator=torch.Generator().manual_seed(0))
    p, q = (np.exp(v.double().numpy()) for v in (one, other))
    p, q = p / p.sum(1, keepdims=True), q / q.sum(1, keepdims=True)
    m = (p + q) / 2
    expected = ((p * np.log(p / m) + q * np.log(q / m)).sum(1) / 2).mean()
    assert float(js_divergence(one, other)) == pytest.approx(expected, rel=1e-5)


def test_the_style_pass_changes_predictions_and_leaves_no_hook() -> None:
    from segtrain.generalization.style_hallucination import StyleHallucination, StyleMemory

    backbone = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU())
    memory = StyleMemory(StyleHallucination("0", 4, num_styles=2, pool=2))
    images = torch.randn(2, 3, 8, 8)
    plain = backbone(images)
    with memory.observed(backbone) as styles:
        assert torch.equal(backbone(images), plain)
    memory.remember(styles[0] * 3)
    memory.after_update()
    with memory.hallucinated(backbone):
        assert not torch.allclose(backbone(images), plain)
    assert torch.equal(backbone(images), plain)
    wrong = StyleMemory(StyleHallucination("layer9", 4, num_styles=1, pool=1))
    with pytest.raises(UserError, match="layer9"), wrong.hallucinated(backbone):
        pass


def test_predictions_of_both_views_are_fused_by_the_papers_formula() -> None:
    from segtrain.generalization.hrda import Box, detail_boxes, fuse

    rng = torch.Generator().manual_seed(0)
    context = torch.randn(1, 2, 4, 6, generator=rng)
    attention = torch.rand(1, 2, 4, 6, generator=rng)
    box = Box(2, 4, 4, 6)
    detail = torch.randn(1, 2, 4, 6, generator=rng)
    inside = attention.clone()
    for y in range(4):
        for x in range(6):
            if not (1 <= y < 3 and 2 <= x < 5):
                inside[..., y, x] = 0
    placed = torch.zeros(1, 2, 8, 12)
    placed[..., 2:6, 4:10] = detail

    def up(values: torch.Tensor) -> torch.Tensor:
        return functional.interpolate(values, scale_factor=2, mode="bilinear")

    expected = up((1 - inside) * context) + up(inside) * placed
    torch.testing.assert_close(fuse(context, attention, detail, box), expected)
    boxes = detail_boxes((64, 112), (32, 64))
    assert [b[:2] for b in boxes if b.top == 0] == [(0, 0), (0, 32), (0, 48)]
    covered = torch.zeros(64, 112)
    for b in boxes:
        b.of(covered).add_(1)
    assert covered.min() == 1 and len({b[2:] for b in boxes}) == 1


def test_the_slide_over_details_is_the_mean_of_overlapping_crops() -> None:
    """A network of one pooling sees the same in a crop as in the whole image."""
    from segtrain.generalization.hrda import HRDASegmentor

    model = HRDASegmentor.__new__(HRDASegmentor)
    torch.nn.Module.__init__(model)
    pool = torch.nn.AvgPool2d(4)
    model.extract_feat = lambda images: [pool(images)]
    model.decode_head = lambda maps: maps[0]
    model.attention_head = lambda maps: torch.full_like(maps[0], 30.0)  # sigmoid: 1
    model.out_channels = 3
    from segtrain.generalization.hrda import Detail

    model.detail = Detail((32, 32))
    images = torch.randn(2, 3, 48, 80)
    expected = functional.interpolate(pool(images), size=(48, 80), mode="bilinear")
    torch.testing.assert_close(model.encode_decode(images, []), expected)
    assert model.encode_decode(images[..., :41, :70], []).shape == (2, 3, 41, 70)
    model.attention_head = lambda maps: torch.full_like(maps[0], -30.0)  # sigmoid: 0
    half = functional.interpolate(images, size=(24, 40), mode="bilinear")
    up = functional.interpolate(pool(half), size=(12, 20), mode="bilinear")
    expected = functional.interpolate(up, size=(48, 80), mode="bilinear")
    torch.testing.assert_close(model.encode_decode(images, []), expected)


def test_deeplabv2_sums_dilated_classifiers() -> None:
    from segtrain.heads import DeepLabV2Head

    torch.manual_seed(0)
    head = DeepLabV2Head(in_channels=4, num_classes=3, dilations=(1, 3), align_corners=False)
    features = torch.randn(1, 4, 9, 7)
    expected = sum(
        functional.conv2d(features, c.weight, c.bias, padding=d, dilation=d)
        for c, d in zip(head.classifiers, (1, 3), strict=True)
    )
    torch.testing.assert_close(head([features]), expected)


def test_half_of_the_classes_are_pasted() -> None:
    from mmengine.structures import PixelData
    from mmseg.structures import SegDataSample

    def packed(label: torch.Tensor) -> dict:
        sample = SegDataSample()
        sample.gt_sem_seg = PixelData(data=label.clone())
        return {"inputs": label.expand(3, -1, -1).byte().clone() * 2, "data_samples": sample}

    below, above = torch.full((1, 8, 12), 7), torch.full((1, 8, 12), 255)
    above[0, :4, :6], above[0, :4, 6:], above[0, 4:, :6] = 1, 2, 3
    sample, other = packed(below), packed(above)
    paste_classes(sample, other, np.random.default_rng(0))
    label = sample["data_samples"].gt_sem_seg.data
    found = set(label.unique().tolist()) - {7}
    assert len(found) == 2 and found < {1, 2, 3}
    for value in found:
        assert torch.equal(label == value, above == value)
    assert torch.equal(sample["inputs"][0], (label[0] * 2).byte())
    assert torch.equal(other["data_samples"].gt_sem_seg.data, above)
    assert read_class_mixing({}) is None
    assert read_class_mixing({"class_mixing": {"probability": 0.3}}) == ClassMixing(0.3)
    for wrong in ({"probability": 0}, {"share": 1}, 3):
        with pytest.raises(UserError, match="class_mixing"):
            read_class_mixing({"class_mixing": wrong})
