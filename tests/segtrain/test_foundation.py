"""DINO backbones: maps of transformers, Rein's and LoRA's formulas, what learns, weights."""

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional

from pipeline.errors import UserError
from segtrain import pretrained, recipes
from segtrain.backbone_weights import load_backbone, require_fit

RECIPES = Path(__file__).resolve().parents[2] / "configs" / "segtrain"
TINY = {"hidden_size": 8, "num_hidden_layers": 4, "num_attention_heads": 2}
FAMILIES = {
    "dinov2": {"model_type": "dinov2", **TINY, "patch_size": 4, "image_size": 16},
    "dinov3": {
        "model_type": "dinov3_vit", **TINY, "patch_size": 4, "intermediate_size": 16,
        "num_register_tokens": 2,
    },
}  # fmt: skip


@pytest.fixture(autouse=True)
def registered() -> None:
    recipes.load_recipe(RECIPES / "segformer_pocket.py")


def backbone_of(family: str, training: str, **options):
    from segtrain.backbones.foundation import FoundationBackbone

    torch.manual_seed(0)
    return FoundationBackbone(
        architecture=FAMILIES[family], out_layers=(0, 1, 2, 3), training=training, **options
    ).eval()


@pytest.mark.parametrize("family", FAMILIES)
def test_maps_are_the_patch_tokens_of_transformers(family: str) -> None:
    backbone = backbone_of(family, "frozen")
    images = torch.randn(2, 3, 16, 24)
    with torch.no_grad():
        maps = backbone(images)
        states = backbone.network(images, output_hidden_states=True).hidden_states
    prefix = {"dinov2": 1, "dinov3": 3}[family]
    for number, scale in enumerate((4, 2, 1, 0.5)):
        tokens = states[number + 1][:, prefix:].transpose(1, 2).reshape(2, 8, 4, 6)
        size = (int(4 * scale), int(6 * scale))
        expected = functional.interpolate(tokens, size, mode="bilinear")
        if number < 3:  # the last of transformers' states may have gone through the final norm
            torch.testing.assert_close(maps[number], expected)
        assert maps[number].shape == expected.shape
    assert backbone(torch.randn(1, 3, 15, 21))[2].shape == (1, 8, 4, 6)
    assert not any(p.requires_grad for p in backbone.parameters())


def test_reins_formula() -> None:
    from segtrain.backbones.adapters import ReinTokens

    torch.manual_seed(0)
    rein = ReinTokens(6, 2, num_tokens=5, rank=3)
    features = torch.randn(1, 4, 6)
    tokens = torch.einsum("mr,rc->mc", rein.down[1], rein.up[1])
    weight, bias = rein.token_map.weight, rein.token_map.bias
    expected = []
    for f in features[0]:
        scores = torch.stack([(f * t).sum() / math.sqrt(6) for t in tokens])
        shares = scores.exp() / scores.exp().sum()
        change = sum(s * (weight @ t + bias) for s, t in zip(shares[1:], tokens[1:], strict=True))
        moved = rein.feature_map.weight @ (f + change) + rein.feature_map.bias
        expected.append(f + rein.scale[1] * moved)
    torch.testing.assert_close(rein(features, 1)[0], torch.stack(expected))


def test_low_rank_changes_equal_changed_weights() -> None:
    backbone, plain = backbone_of("dinov2", "lora", rank=2), backbone_of("dinov2", "frozen")
    images = torch.randn(1, 3, 16, 16)
    with torch.no_grad():
        assert all(map(torch.equal, backbone(images), plain(images))), "zero at first"
        from segtrain.backbones.foundation import query_and_value, transformer_layers

        linears = query_and_value(transformer_layers(plain.network))
        assert len(linears) == len(backbone.changes) == 8
        for change, linear in zip(backbone.changes, linears, strict=True):
            change.up.normal_(generator=torch.Generator().manual_seed(1))
            linear.weight += change.up @ change.down
        for ours, merged in zip(backbone(images), plain(images), strict=True):
            torch.testing.assert_close(ours, merged, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("training", ["rein", "lora"])
def test_a_copy_keeps_its_adapters(training: str) -> None:
    """The feature distance measures to the features of a copy, made before the training."""
    from segtrain.generalization.feature_distance import Reference

    backbone = backbone_of("dinov2", training)
    names = set(backbone.state_dict())
    images = torch.randn(1, 3, 16, 16)
    with torch.no_grad():
        initial = backbone(images)[-1]
        reference = Reference(backbone)
        for parameter in backbone.parameters():
            if parameter.requires_grad:
                parameter.add_(0.5)
        assert not torch.allclose(backbone(images)[-1], initial)
        assert torch.equal(reference.features(images), initial)
    assert set(backbone.state_dict()) == set(reference.backbone.state_dict()) == names


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("training", ["rein", "lora", "full"])
def test_what_learns_receives_gradients_and_nothing_else(family: str, training: str) -> None:
    backbone = backbone_of(family, training).train()
    sum(level.square().mean() for level in backbone(torch.randn(1, 3, 16, 16))).backward()
    learns = {name for name, p in backbone.named_parameters() if p.requires_grad}
    assert learns == {name for name, p in backbone.named_parameters() if p.grad is not None}
    adapted = any(name.startswith("network.") for name in learns)
    assert learns and adapted == (training == "full")


@pytest.mark.parametrize("family", FAMILIES)
def test_weights_come_from_a_folder_of_transformers(family: str, tmp_path: Path) -> None:
    source = backbone_of(family, "frozen")
    source.network.save_pretrained(tmp_path / "dino")
    backbone = backbone_of(family, "rein")
    for parameter in backbone.network.parameters():
        torch.nn.init.zeros_(parameter)
    state = pretrained.backbone_state(backbone, tmp_path / "dino")
    save_file({k: v.clone() for k, v in state.items()}, tmp_path / "dino.safetensors")
    load_backbone(backbone, tmp_path / "dino.safetensors")
    wanted = source.network.state_dict()
    assert all(torch.equal(v, wanted[k]) for k, v in backbone.network.state_dict().items())
    with pytest.raises(UserError, match="with config.json"):
        pretrained.backbone_state(backbone, tmp_path)


def saved(network, folder: Path, rename=lambda name: name, left_out: str = "none") -> Path:
    """Save a network of transformers, with tensors renamed or left out."""
    network.save_pretrained(folder)
    path = folder / "model.safetensors"
    tensors = {rename(n): v for n, v in load_file(path).items() if left_out not in n}
    save_file(tensors, path, metadata={"format": "pt"})
    return folder


def test_weights_that_do_not_fill_the_network_are_refused(tmp_path: Path, capfd) -> None:
    from transformers import (
        Dinov2Config,
        Dinov2ForImageClassification,
        Dinov2Model,
        Dinov2WithRegistersConfig,
        Dinov2WithRegistersModel,
    )

    backbone = backbone_of("dinov2", "frozen")
    network, options = backbone.network, FAMILIES["dinov2"]
    other = saved(network, tmp_path / "other", lambda name: f"blocks.{name}")
    with pytest.raises(UserError) as refusal:
        pretrained.backbone_state(backbone, other)
    assert str(refusal.value).count(" is missing") == 3 and " more)" in str(refusal.value)
    lacking = saved(network, tmp_path / "lacking", left_out="layer.1.norm1.bias")
    with pytest.raises(UserError, match=r"\(encoder.layer.1.norm1.bias is missing\)"):
        pretrained.backbone_state(backbone, lacking)
    Dinov2ForImageClassification(Dinov2Config(**options)).save_pretrained(tmp_path / "head")
    with pytest.raises(UserError, match="classifier.bias is unexpected; classifier.weight"):
        pretrained.backbone_state(backbone, tmp_path / "head")
    registers = Dinov2WithRegistersModel(Dinov2WithRegistersConfig(**TINY))
    registers.save_pretrained(tmp_path / "registers")
    with pytest.raises(UserError, match="model_type 'dinov2_with_registers', needed is 'dinov2'"):
        pretrained.backbone_state(backbone, tmp_path / "registers")
    without = saved(network, tmp_path / "without", left_out="mask_token")
    assert len(pretrained.backbone_state(backbone, without)) == len(network.state_dict())
    heads = {**options, "num_attention_heads": 4}
    Dinov2Model(Dinov2Config(**heads)).save_pretrained(tmp_path / "heads")
    with pytest.raises(UserError, match="has num_attention_heads 4, the recipe's backbone 2"):
        pretrained.backbone_state(backbone, tmp_path / "heads")
    network.save_pretrained(tmp_path / "larger")
    config = json.loads((tmp_path / "larger/config.json").read_text())
    (tmp_path / "larger/config.json").write_text(json.dumps({**config, "image_size": 32}))
    with pytest.raises(UserError, match=r"position_embeddings is \[1, 17, 8\], expected \[1, 65"):
        pretrained.backbone_state(backbone, tmp_path / "larger")
    wide = {**options, "hidden_size": 16, "num_attention_heads": 4}
    Dinov2Model(Dinov2Config(**wide)).save_pretrained(tmp_path / "wide")
    state = pretrained.backbone_state(backbone, tmp_path / "wide")
    found, wanted = ({n: tuple(v.shape) for n, v in one.items()} for one in
                     (state, network.state_dict()))  # fmt: skip
    with pytest.raises(UserError, match=r"cls_token \(1, 1, 16\) for \(1, 1, 8\), .* more"):
        require_fit(found, wanted, tmp_path / "wide")
    assert "LOAD REPORT" not in capfd.readouterr().err


def test_settings_that_cannot_be_right() -> None:
    from segtrain.backbones.foundation import FoundationBackbone

    with pytest.raises(UserError, match="training 'half'"):
        backbone_of("dinov2", "half")
    with pytest.raises(UserError, match="must be four of 0 to 3"):
        FoundationBackbone(architecture=FAMILIES["dinov2"], out_layers=(0, 1, 2, 4))
    with pytest.raises(UserError, match="model_type 'vit'"):
        FoundationBackbone(architecture={"model_type": "vit"}, out_layers=(0, 1, 2, 3))
