"""Public weights under mmsegmentation's names: networks of other libraries give the same features.

All networks are random and small; the files are in the forms in which they are published.
"""

import re
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from pipeline import hub
from pipeline.errors import UserError, guard
from segtrain import pretrained, recipes
from segtrain.backbone_weights import load_backbone
from segtrain.stored_weights import read_weights

BASE = Path(__file__).resolve().parents[2] / "configs" / "segtrain"
MIT = "backbone=dict(embed_dims=8, num_layers=[1, 2, 1, 1], num_heads=[1, 2, 4, 4])"
RESNET = "backbone=dict(depth=50, base_channels=8, stem_channels=8, strides=(1, 2, 2, 2), "
RESNET += "dilations=(1, 1, 1, 1), contract_dilation=False)"
AUTHORS = (  # of MiT, from transformers' names
    (r"segformer\.encoder\.patch_embeddings\.(\d)\.proj", "patch_embed{}.proj"),
    (r"segformer\.encoder\.patch_embeddings\.(\d)\.layer_norm", "patch_embed{}.norm"),
    (r"segformer\.encoder\.layer_norm\.(\d)", "norm{}"),
    (r"segformer\.encoder\.block\.(\d)", "block{}"),
    (r"classifier()", "head"),
)
WORDS = (
    ("layer_norm_1", "norm1"), ("layer_norm_2", "norm2"), ("attention.self.sr", "attn.sr"),
    ("attention.self.layer_norm", "attn.norm"), ("attention.output.dense", "attn.proj"),
    ("attention.self.query", "attn.q"), ("mlp.dense1", "mlp.fc1"), ("mlp.dense2", "mlp.fc2"),
)  # fmt: skip


@pytest.fixture(scope="module")
def mit(tmp_path_factory: pytest.TempPathFactory):
    """A small MiT of transformers and its folder."""
    from transformers import SegformerConfig, SegformerForImageClassification

    torch.manual_seed(0)
    model = SegformerForImageClassification(
        SegformerConfig(
            depths=[1, 2, 1, 1], hidden_sizes=[8, 16, 32, 32], num_attention_heads=[1, 2, 4, 4]
        )
    ).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    folder = tmp_path_factory.mktemp("mit")
    model.save_pretrained(folder)
    return model, folder


def recipe_of(folder: Path, name: str, model: str) -> Path:
    path = folder / "recipe.py"
    path.write_text(f"_base_ = [{str(BASE / name)!r}]\nmodel = dict({model})\n")
    return path


def converted(recipe: Path, weights: object, output: Path):
    """Run the program, and return the recipe's backbone with the weights that it wrote."""
    config = pretrained.Config(recipe=recipe, weights=str(weights), output=output)
    pretrained.check(config)
    state = pretrained.convert(config)
    save_file({k: v.clone().contiguous() for k, v in state.items()}, output)
    from mmengine.registry import init_default_scope
    from mmseg.registry import MODELS

    init_default_scope("mmseg")
    backbone = MODELS.build(recipes.load_recipe(recipe).model.backbone)
    backbone.eval()
    load_backbone(backbone, output)
    return backbone


def authors_names(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Rename transformers' MiT to the names of SegFormer's authors."""
    found = {}
    for name, value in state.items():
        for pattern, new in AUTHORS:
            name = re.sub(
                pattern, lambda m, new=new: new.format(int(m[1]) + 1 if m[1] else ""), name
            )
        for old, new in WORDS:
            name = name.replace(old, new)
        found[name] = value
    for name in [n for n in found if "attention.self.key" in n]:
        pair = [found.pop(name), found.pop(name.replace("key", "value"))]
        found[name.replace("attention.self.key", "attn.kv")] = torch.cat(pair)
    return found


def test_mit_gives_the_features_of_transformers(mit, tmp_path: Path) -> None:
    model, folder = mit
    recipe = recipe_of(tmp_path, "segformer_gta.py", MIT)
    backbone = converted(recipe, folder, tmp_path / "mit.safetensors")
    images = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        output = model.segformer(images, output_hidden_states=True)
        maps = backbone(images)
    for ours, theirs in zip(maps, output.hidden_states[-4:], strict=True):
        torch.testing.assert_close(ours, theirs.reshape(ours.shape), atol=2e-4, rtol=1e-3)
    pickle = tmp_path / "mit_b5.pth"
    renamed = authors_names(load_file(folder / "model.safetensors"))
    assert {"patch_embed1.proj.weight", "block2.1.attn.kv.bias", "norm4.weight"} <= set(renamed)
    torch.save(renamed, pickle)
    again = converted(recipe, pickle, tmp_path / "authors.safetensors")
    state = again.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in backbone.state_dict().items())


def test_resnet_gives_the_features_of_transformers(tmp_path: Path) -> None:
    from transformers import ResNetConfig, ResNetForImageClassification

    torch.manual_seed(0)
    model = ResNetForImageClassification(
        ResNetConfig(embedding_size=8, hidden_sizes=[32, 64, 128, 256], depths=[3, 4, 6, 3])
    ).eval()
    for name, buffer in model.named_buffers():
        if "running" in name:
            buffer.copy_(torch.rand_like(buffer) + 0.5)
    model.save_pretrained(tmp_path / "resnet")
    recipe = recipe_of(tmp_path, "deeplabv2_gta.py", RESNET)
    backbone = converted(recipe, tmp_path / "resnet", tmp_path / "hf.safetensors")
    images = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        expected = model.resnet(images, output_hidden_states=True).hidden_states[1:]
        maps = backbone(images)
    for ours, theirs in zip(maps, expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-3)
    state = backbone.state_dict()
    torchvision = {n: v for n, v in state.items() if "num_batches" not in n}  # as old files are
    torch.save({**torchvision, "fc.weight": torch.zeros(10, 256)}, tmp_path / "resnet101.pth")
    again = converted(recipe, tmp_path / "resnet101.pth", tmp_path / "tv.safetensors").state_dict()
    assert all(torch.equal(state[name], again[name]) for name in torchvision)


def test_another_architecture_is_named_by_its_first_mismatches(
    mit, tmp_path: Path, monkeypatch, capsys
) -> None:
    recipe = recipe_of(tmp_path, "segformer_gta.py", MIT.replace("[1, 2, 1, 1]", "[1, 1, 1, 1]"))
    words = ["--recipe", recipe, "--weights", mit[1], "--output", tmp_path / "none.safetensors"]
    monkeypatch.setattr(sys, "argv", ["pretrained.py", *map(str, words)])
    with pytest.raises(SystemExit) as left:
        guard(pretrained.main)
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert left.value.code == 2 and "unexpected: layers.1.1.1." in line
    assert re.search(r"unexpected: (\S+, ){2}\S+ and \d+ more", line)
    assert not (tmp_path / "none.safetensors").exists()
    done = tmp_path / "done.safetensors"
    recipe = recipe_of(tmp_path, "segformer_gta.py", MIT)
    words = ["--recipe", recipe, "--weights", mit[1], "--output", done]
    monkeypatch.setattr(sys, "argv", ["pretrained.py", *map(str, words)])
    with pytest.raises(SystemExit) as left:
        guard(pretrained.main)
    assert left.value.code == 0 and "tensors for the backbone" in capsys.readouterr().out
    assert load_file(done)


def test_weights_of_the_hub_are_pinned_and_named(mit, tmp_path: Path, monkeypatch) -> None:
    recipe = recipe_of(tmp_path, "segformer_gta.py", MIT)

    def check(weights: str) -> None:
        pretrained.check(
            pretrained.Config(recipe=recipe, weights=weights, output=tmp_path / "o.safetensors")
        )

    for unpinned in ("nvidia/mit-b5", "", str(tmp_path)):
        with pytest.raises(UserError, match="pinned as owner/name@"):
            check(unpinned)
    name = f"nvidia/mit-b5@{'0' * 40}"
    check(name)
    asked = []

    def fetched(repository: str, **options: object) -> str:
        asked.append((repository, options["revision"]))
        return str(mit[1])

    monkeypatch.setattr("huggingface_hub.snapshot_download", fetched)
    assert hub.fetch_files(name, ("config.json", "model.safetensors")) == mit[1]
    assert asked == [("nvidia/mit-b5", "0" * 40)]
    with pytest.raises(UserError, match="has no other.bin"):
        hub.fetch_files(name, ("other.bin",))


def test_an_empty_tensor_of_a_pickle_is_read(tmp_path: Path) -> None:
    state = {"none": torch.zeros(0, 3), "one": torch.tensor(2.5), "two": torch.ones(2, 1)}
    torch.save(state, tmp_path / "a.pth")
    found = read_weights(tmp_path / "a.pth")
    assert {n: v.shape for n, v in found.items()} == {n: v.shape for n, v in state.items()}
    assert found["one"] == 2.5 and (found["two"] == 1).all()
