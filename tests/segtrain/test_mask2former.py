"""The Mask2Former head: learns a label, ignores void, trains beside a second branch, any stride."""

from pathlib import Path

import pytest
import torch
from mmengine.structures import PixelData
from mmseg.structures import SegDataSample
from safetensors.torch import load_file

from segtrain import recipes

ROOT = Path(__file__).resolve().parents[2]
SMALL = {
    "feature_size": 32, "dim_feedforward": 32, "encoder_feedforward_dim": 32, "encoder_layers": 1,
    "decoder_layers": 3, "num_attention_heads": 2, "num_queries": 6, "train_num_points": 128,
}  # fmt: skip


@pytest.fixture(autouse=True)
def registered() -> None:
    recipes.load_recipe(ROOT / "configs/segtrain/diff1_pocket.py")


def build_head(**options):
    from segtrain.heads import Mask2FormerHead

    torch.manual_seed(0)
    return Mask2FormerHead(
        **{
            "in_channels": [8, 8, 8],
            "in_index": [0, 1, 2],
            "strides": [4, 8, 16],
            "num_classes": 4,
            **SMALL,
            **options,
        }
    )


def sample(label: torch.Tensor) -> SegDataSample:
    made = SegDataSample(metainfo={"img_shape": tuple(label.shape), "ori_shape": label.shape})
    made.gt_sem_seg = PixelData(data=label[None])
    return made


@pytest.fixture
def scene():
    return make_scene()


def make_scene() -> tuple[list[torch.Tensor], list[SegDataSample], torch.Tensor]:
    """Return maps of two images of 32x64 and their labels: two halves, some void."""
    torch.manual_seed(1)
    label = torch.full((2, 32, 64), 3)
    label[0, :, :32], label[1, 16:], label[:, :4] = 1, 2, 255
    maps = []
    for stride in (4, 8, 16):
        noise = 0.1 * torch.randn(2, 8, 32 // stride, 64 // stride)
        small = label[:, ::stride, ::stride]
        noise[:, :4] += torch.stack([(small == k).float() for k in range(4)], 1)
        maps.append(noise)
    return maps, [sample(one) for one in label], label


def test_learns_masks_and_classes(scene) -> None:
    maps, samples, label = scene
    head = build_head()
    optimizer = torch.optim.AdamW(head.parameters(), lr=3e-3)
    first = last = 0.0
    for _ in range(60):
        losses = head.loss(maps, samples, None)
        assert set(losses) == {"loss_cross_entropy", "loss_mask", "loss_dice"}
        last = sum(losses.values())
        first = first or float(last.detach())
        optimizer.zero_grad()
        last.backward()
        optimizer.step()
    assert float(last) < 0.3 * first
    metas = [one.metainfo for one in samples]
    with torch.no_grad():
        predicted = head.predict(maps, metas, None).argmax(1)
    known = label != 255
    assert (predicted[known] == label[known]).float().mean() > 0.9


def test_every_parameter_learns_also_from_void_alone(scene) -> None:
    """Several processes wait for the gradient of every parameter."""
    maps, samples, label = scene
    head = build_head()
    sum(head.loss(maps, samples, None).values()).backward()
    learns = {name for name, p in head.named_parameters() if p.grad is not None}
    assert learns == {name for name, _ in head.named_parameters()}
    head.zero_grad()
    void = [sample(torch.full_like(label[0], 255))]
    losses = head.loss([m[:1] for m in maps], void, None)
    assert float(sum(losses.values())) == 0
    sum(losses.values()).backward()
    assert {name for name, p in head.named_parameters() if p.grad is not None} == learns


def test_images_of_void_alone_do_not_count(scene) -> None:
    maps, samples, label = scene
    void = sample(torch.full_like(label[0], 255))
    head = build_head()
    values = []
    for batch, chosen in (([0], [samples[0]]), ([0, 1], [samples[0], void])):
        torch.manual_seed(2)  # the points at which masks are compared
        losses = head.loss([m[batch] for m in maps], chosen, None)
        values.append(torch.stack([losses[name] for name in sorted(losses)]))
    torch.testing.assert_close(*values, rtol=1e-4, atol=1e-4)


TWO_PROCESSES = """
import sys, torch
sys.path.insert(0, "tests/segtrain")
import segtrain.registry
from accelerate import Accelerator
from safetensors.torch import save_file
from test_mask2former import WithLoss, make_scene
accelerator = Accelerator(cpu=True)
assert accelerator.num_processes == 2
rank = accelerator.process_index
maps, samples, label = make_scene()
if rank == 1:
    samples[0].gt_sem_seg.data = torch.full_like(label[:1], 255)
model = accelerator.prepare(WithLoss())
torch.manual_seed(2)
losses = model([m[:1] for m in maps], samples[:1])
accelerator.backward(sum(losses.values()))
if rank == 0:
    save_file({n: p.grad.contiguous() for n, p in model.module.named_parameters()}, sys.argv[1])
accelerator.end_training()
"""


class WithLoss(torch.nn.Module):
    """A head whose forward pass is its loss."""

    def __init__(self) -> None:
        super().__init__()
        self.head = build_head()

    def forward(self, maps: list, samples: list) -> dict[str, torch.Tensor]:
        return self.head.loss(maps, samples, None)


def test_a_process_with_void_alone_takes_part(run_program, tmp_path: Path) -> None:
    """Its image adds nothing; a mask has the same weight as in one process with both images."""
    program, output = tmp_path / "two.py", tmp_path / "gradients.safetensors"
    program.write_text(TWO_PROCESSES)
    run_program(
        "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone", program, output,
        GLOO_SOCKET_IFNAME="lo", ACCELERATE_USE_CPU="1", PYTHONPATH=str(ROOT),
    )  # fmt: skip
    maps, samples, _ = make_scene()
    model = WithLoss()
    torch.manual_seed(2)
    losses = model([m[:1] for m in maps], samples[:1])
    # the class of a query is a mean per process, masks are a mean over all
    (losses["loss_cross_entropy"] / 2 + losses["loss_mask"] + losses["loss_dice"]).backward()
    found = load_file(output)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad, rtol=1e-3, atol=1e-4, msg=name)


def test_finer_maps_are_added_and_scores_are_of_their_size(scene) -> None:
    head = build_head(in_channels=[8] * 4, in_index=[0, 1, 2, 3], strides=[2, 4, 8, 16])
    maps = [torch.randn(2, 8, 16, 32), *scene[0]]
    with torch.no_grad():
        head.eval()
        scores = head(maps)
        assert scores.shape == (2, 4, 16, 32)
        changed = head([maps[0].roll(5, -1), *maps[1:]])
        assert (changed - scores).abs().amax() > 1e-5, "the finest map is not read"
        # What only the finest map tells apart shows at its own resolution.
        flat = head([torch.zeros_like(maps[0]), *map(torch.zeros_like, maps[1:])])
        spot = torch.zeros_like(maps[0])
        spot[..., 8, 16] = 5
        moved = (head([spot, *map(torch.zeros_like, maps[1:])]) - flat).abs().sum(1)
    assert moved[:, 8, 16].min() > 2 * moved.mean()


def test_trains_beside_a_second_branch(tiny_base: Path, scene) -> None:
    torch.manual_seed(0)
    model = recipes.build_model(
        {
            "model": {
                "type": "StreetforgeDiffusionSegmentor",
                "backbone": {
                    "type": "StreetforgeDiffusionBackbone", "base": str(tiny_base),
                    "features": {
                        "taps": ["up_blocks.1", "up_blocks.0", "mid_block"], "out_channels": 8,
                    },
                    "text": {"scenes": ["by day", "at night"]},
                },
                "prompt_randomization": {},
                "decode_head": {
                    "type": "StreetforgeMask2FormerHead", "in_channels": [8, 8, 8],
                    "in_index": [0, 1, 2], "strides": [4, 4, 8], "num_classes": 19, **SMALL,
                },
            }
        }
    )  # fmt: skip
    losses = model.loss(torch.rand(2, 3, 32, 64) * 2 - 1, scene[1])
    assert {"plain.loss_mask", "second.loss_dice", "consistency.loss"} <= set(losses)
    sum(losses.values()).backward()
    assert torch.isfinite(sum(losses.values()))
