"""Recipe mistakes and weights that do not fit: one line through the command line, exit code 2."""

import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from pipeline.errors import guard
from segtrain import recipes, train
from segtrain.backbone_weights import load_backbone

ROOT = Path(__file__).resolve().parents[2]
POCKET = ROOT / "configs" / "segtrain" / "segformer_pocket.py"
Fails = Callable[..., str]


@pytest.fixture
def fails(source: Path, tmp_path: Path, monkeypatch, capsys) -> Fails:
    """A function that runs the program and returns its one line of complaint."""

    def run(recipe: Path, *arguments: object) -> str:
        words = [recipe, "--source", source, "--output", tmp_path / "run", *arguments]
        monkeypatch.setattr(sys, "argv", ["train.py", *map(str, words)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as left:
            guard(train.main)
        printed = capsys.readouterr().err.strip().splitlines()
        lines = [line for line in printed if "0/1 [" not in line]  # the bar of the first step
        assert left.value.code == 2 and len(lines) == 1, lines
        assert lines[0].startswith("streetforge: ") and len(lines[0]) < 600
        return lines[0]

    return run


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("model=None", "model must be a dict"),
        ("model.test_cfg.mode=x", "model.test_cfg is .* must be a dict whose mode is whole"),
        ("model.test_cfg=5", "model.test_cfg is 5; must be a dict"),
        ("optim_wrapper.optimizer.lr=1e300", "lr is 1e.300; must be a number above 0, up to"),
        ("model.type=NoSuchSegmentor", "NoSuchSegmentor is not in the mmseg::model registry"),
        ("model.backbone=None", "model.backbone must be a dict"),
        ("model.backbone.type=NoSuchNet", "NoSuchNet is not in the mmseg::model registry"),
        ("model.backbone.type=", "model.backbone must be a dict with a type"),
        ("model.backbone.embed_dimz=3", "unexpected keyword argument 'embed_dimz'"),
        ("model.backbone.num_layers=None", "TypeError|not subscriptable|object"),
        ("model.decode_head.num_classes=7", "decode_head.num_classes is 7; must be 19"),
        ("model.decode_head.num_classes=150", "decode_head.num_classes is 150; must be 19"),
        ("model.decode_head.in_channels=[32,64]", "in_channels|AssertionError"),
        ("model.decode_head.loss_decode.type=NoLoss", "NoLoss is not in"),
        ("model.decode_head.dropout_ratio=nan", "model.decode_head.dropout_ratio is nan"),
        ("model.heads.channels=3", "the recipe has no heads"),
        ("crop_size=[0,0]", "changing crop_size has no effect here"),
        ("max_iters=5", "changing max_iters has no effect here"),
        ("train_cfg.max_iterz=5", "changing train_cfg.max_iterz has no effect here"),
        ("val_dataloader.batch_size=2", "has no effect here"),
        ("modell.type=x", "changing modell.type has no effect"),
        ("train_pipeline.3.crop_size=[0,0]", "train_pipeline.3.crop_size is .0, 0.; must be"),
        ("train_pipeline.3.crop_size=(0.5,4)", "must be .height, width. in whole pixels"),
        ("train_pipeline.3.type=NoSuchTransform", "NoSuchTransform is not in"),
        ("train_pipeline.3.cat_max=1", "unexpected keyword argument 'cat_max'"),
        ("train_pipeline.9.prob=1", "the recipe has no 9"),
        ("train_pipeline=None", "train_pipeline must be a list"),
        ("train_pipeline=[]", "train_pipeline must be a list of transforms"),
        ("train_pipeline=[a,b]", "train_pipeline.0 must be a dict with a type"),
        ("sets.source.scale_factor=0", "scale_factor 0 must be a number"),
        ("sets.source.scale=2", "unknown key 'scale'"),
        ("sets.source=None", "sets has no source"),
        ("sets=3", "sets must be a dict"),
        ("train_cfg.max_iters=0", "train_cfg.max_iters is 0; must be a whole number"),
        ("train_cfg.max_iters=1e3", "train_cfg.max_iters is 1000.0; must be a whole number"),
        ("train_dataloader.batch_size=many", "batch_size is 'many'; must be a whole number"),
        ("optim_wrapper.optimizer=None", "optim_wrapper.optimizer must be a dict"),
        ("optim_wrapper.optimizer.type=NoStep", "optimizer.type NoStep: is not known"),
        ("optim_wrapper.optimizer.lr=nan", "optim_wrapper.optimizer.lr is nan"),
        ("optim_wrapper.optimizer.lr=-1", "optim_wrapper.optimizer.lr is -1; must be"),
        ("optim_wrapper.optimizer.lr=None", "optim_wrapper.optimizer.lr is None; must be"),
        ("optim_wrapper.optimizer.rate=1", "unexpected keyword argument 'rate'"),
        ("optim_wrapper.accumulative_counts=4", "accumulative_counts has no effect here"),
        ("optim_wrapper.type=AmpOptimWrapper", "use --precision"),
        ("optim_wrapper.clip_grad.max_norm=0", "clip_grad.max_norm is 0; must be"),
        ("optim_wrapper.clip_grad.norm_type=inf", "norm_type is inf|only max_norm"),
        ("param_scheduler=None", "param_scheduler must be a list"),
        ("param_scheduler.0.type=CosineAnnealingLR", "only LinearLR and PolyLR"),
        ("param_scheduler.0.end=None", "begin 0 and end None must be whole numbers"),
        ("param_scheduler.0.start_factor=nan", "start_factor is nan"),
        ("param_scheduler.1.eta_min=1e-6", "eta_min must be 0"),
        ("param_scheduler.1.powers=2", "param_scheduler.1.powers is not known"),
        ("model.decode_head.channels=[1", "a bracket is not closed"),
        ("model.decode_head.in_channels=[32,64,160,255]", "first step: .*channels"),
        ("model.decode_head.in_index=[0,1,2,9]", "first step: "),
        ("model.data_preprocessor.mean=[0,0]", "first step: "),
        ("model.backbone.in_channels=4", "first step: .*channels"),
    ],
)
def test_a_mistake_in_a_recipe_is_one_line(option: str, message: str, fails: Fails) -> None:
    assert re.search(
        message, fails(POCKET, "--steps", 1, "--batch-size", 1, "--cfg-options", option)
    )


BASED = f"_base_ = [{str(POCKET)!r}]\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model = undefined_name", "undefined_name"),
        ("model = 1 / 0", "division by zero"),
        ("raise SystemExit(0)", "correct the recipe"),
        ("import no_such_module", "lacks model"),
        ("_base_ = ['./recipe.py']", "in a circle"),
        ("_base_ = ['./none.py']", "none.py"),
        ("_base_ = 3", "recipe.py"),
        ("model = None", "lacks train_pipeline, test_pipeline, train_dataloader"),
        ("model = dict(", "not a readable recipe"),
        ("x = '\0'", "not a readable recipe"),
        (BASED + "model = None", "model"),
        (BASED + "custom_imports = dict(imports=['no_such_module'])", "no_such_module"),
        (BASED + "train_pipeline = dict(type='x')", "train_pipeline"),
        (BASED + "train_cfg = dict(max_iters=float('inf'))", "max_iters is inf"),
        (BASED + "model = dict(auxiliary_head=[dict(type='FCNHead', num_classes=2)])",
         "auxiliary_head.num_classes is 2"),
        (BASED + "train_pipeline = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations')]\n"
         "sets = dict(_delete_=True, source=dict())", "transforms of source: give no image"),
        (BASED + "train_pipeline = [dict(type='LoadImageFromFile'), "
         "dict(type='StreetforgeResize'), dict(type='LoadAnnotations'), "
         "dict(type='PackSegInputs')]", "transforms of source: give an image of"),
        (BASED + "sets = dict(source=dict(pipeline=3))", "sets.source.pipeline must be a list"),
        (BASED + "train_pipeline = [dict(type='LoadImageFromFile'), "
         "dict(type='Resize', scale=(1280, 720))]", "sets.source Resize: without keep_ratio"),
    ],
)  # fmt: skip
def test_a_recipe_file_that_cannot_be_used(
    text: str, message: str, fails: Fails, tmp_path: Path
) -> None:
    path = tmp_path / "recipe.py"
    path.write_text(text)
    line = fails(path)
    assert message in line and "recipe.py" in line


def test_files_that_are_no_recipe(fails: Fails, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("model: 1")
    (tmp_path / "bytes.py").write_bytes(b"\xff\xfe\x00")
    assert "no such recipe" in fails(tmp_path / "none.py")
    assert "no such recipe" in fails(tmp_path)
    assert "ending in .py" in fails(tmp_path / "recipe.yaml")
    assert "not a readable recipe" in fails(tmp_path / "bytes.py")


def test_values_of_the_command_line_that_cannot_be_right(fails: Fails) -> None:
    rare = ("--rare-classes.enabled", True, "--rare-classes.temperature")
    for value in ("nan", "inf", "0", "-1"):
        assert "temperature" in fails(POCKET, *rare, value)
    assert "--self-training.confidence" in fails(POCKET, "--self-training.confidence", "nan")
    assert "this recipe's backbone is not a diffusion" in fails(POCKET, "--base", "pocket")
    assert "--sets" in fails(POCKET, "--sets", "source=/none:0.5")
    assert "NAME=FOLDER:SHARE" in fails(POCKET, "--sets", "night")


def test_a_set_that_the_recipe_does_not_know(fails: Fails, source: Path) -> None:
    assert "sets has no night (known: source, generated, target)" in fails(
        POCKET, "--sets", f"night={source}:0.5"
    )


def test_a_base_that_is_not_here_is_named(fails: Fails) -> None:
    line = fails(ROOT / "configs" / "segtrain" / "ptdiffseg_gta.py")
    assert "ptdiffseg_gta.py: base model stable-diffusion-v1-5/" in line
    assert line.endswith("or give a folder")


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, torch.Tensor]]:
    """A file with weights of the pocket SegFormer's backbone."""
    model = recipes.build_model(recipes.load_recipe(POCKET))
    state = {name: value + 1 for name, value in model.backbone.state_dict().items()}
    path = tmp_path_factory.mktemp("weights") / "mit_b0.safetensors"
    save_file(state, path)
    return path, state


def test_backbone_weights_that_do_not_fit(fails: Fails, backbone, tmp_path: Path) -> None:
    path, state = backbone
    first, *_, last = state
    pickle = tmp_path / "mit_b5.pth"
    torch.save({"a": torch.zeros(3)}, pickle)
    assert "convert_weights.py" in fails(POCKET, "--init", pickle)
    pickle.rename(tmp_path / "renamed.safetensors")
    assert "renamed.safetensors" in fails(POCKET, "--init", tmp_path / "renamed.safetensors")
    assert "no such file" in fails(POCKET, "--init", tmp_path / "none.safetensors")
    pointer = tmp_path / "pointer.safetensors"
    pointer.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    assert "git lfs pull" in fails(POCKET, "--init", pointer)
    other = tmp_path / "other.safetensors"
    for changed, message in (
        (
            {"backbone.a.weight": torch.zeros(3)},
            f"0 of the backbone's {len(state)} weights fit; missing: {first}",
        ),
        ({**state, "head.weight": torch.zeros(3)}, "unexpected: head.weight"),
        ({name: value for name, value in state.items() if name != last}, f"missing: {last};"),
        ({**state, last: torch.zeros(7)}, f"of another shape: {last} (7,) for"),
    ):
        save_file(changed, other)
        assert message in fails(POCKET, "--init", other)


def test_backbone_weights_are_loaded_with_and_without_prefix(backbone, tmp_path: Path) -> None:
    path, state = backbone
    prefixed = tmp_path / "prefixed.safetensors"
    save_file({f"backbone.{name}": value for name, value in state.items()}, prefixed)
    for file in (path, prefixed):
        model = recipes.build_model(recipes.load_recipe(POCKET))
        load_backbone(model.backbone, file)
        assert all(torch.equal(v, state[k]) for k, v in model.backbone.state_dict().items())
    assert load_file(path).keys() == state.keys()


def test_backbone_weights_of_swin_hold_whole_numbers_too(tmp_path: Path) -> None:
    from mmseg.models.backbones import SwinTransformer

    swin = SwinTransformer(embed_dims=8, depths=(1, 1, 1, 1), num_heads=(1, 1, 1, 1))
    state = swin.state_dict()
    assert any(not value.is_floating_point() for value in state.values())
    path = tmp_path / "swin.safetensors"
    save_file({k: v + 1 if v.is_floating_point() else v for k, v in state.items()}, path)
    load_backbone(swin, path)
    assert all(torch.equal(v, load_file(path)[k]) for k, v in swin.state_dict().items())
