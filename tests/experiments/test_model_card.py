"""The folder and the card of a trained pocket model, from files written by hand."""

import json
import shutil
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from experiments import model_card, model_weights
from pipeline.errors import UserError


def write_json(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


@pytest.fixture
def workspace(tmp_path):
    stages = {}
    for number, name in enumerate(model_card.TRAININGS, 1):
        training = {"steps": 1000, "batch_size": 8, "gradient_accumulation": number}
        write_json(tmp_path / name / "config.json", {"config": {"training": training}})
        (tmp_path / name / "metrics.jsonl").write_text('{"step": 1, "time_s": 2.5, "loss": 0.5}\n')
        stages[name] = {"seconds": 600.0 * number}
    write_json(tmp_path / "timings.json", {"stages": stages})
    model = tmp_path / "model"
    write_json(model / "weights.json", {"base/vae": 5_000_000, "total": 5_000_000})
    config = {"_class_name": "AutoencoderKL", "block_out_channels": [32, 64]}
    write_json(model / "base" / "vae" / "config.json", config)
    return tmp_path


def run(program, monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", [program.__file__, *map(str, words)])
    program.main()


def test_card_states_what_was_trained_and_measured(workspace, monkeypatch):
    targets = {
        name: {"miou": miou, "iou": {"person": iou, "road": 90.0}}
        for name, miou, iou in (
            ("heldout", 40.0, 20.0),
            ("reconstructions", 38.0, 18.0),
            ("generated", 30.0, 10.0),
        )
    }
    fidelity = workspace / "measured" / "fidelity" / "fidelity.json"
    write_json(fidelity, {"checkpoints": [{"targets": targets}]})
    run(model_card, monkeypatch, "--workspace", workspace, "--output", workspace / "card")
    text = (workspace / "card" / "README.md").read_text()
    assert "| autoencoder | 1,000 | 8,000 | 10 min |" in text
    assert "| U-Net and text encoder | 1,000 | 16,000 | 20 min |" in text
    assert "30.0 of 40.0 (75 %)" in text and "10.0 of 20.0 (50 %)" in text
    assert "| `base/vae` | AutoencoderKL | 32 64 | 5.0 MB |" in text
    assert "PSNR" not in text and "looks" not in text  # not measured
    (row,) = (workspace / "card" / "training" / "vae.jsonl").read_text().splitlines()
    assert json.loads(row) == {"step": 1, "loss": 0.5}


def test_a_workspace_without_a_model_is_named(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="has no model"):
        run(model_card, monkeypatch, "--workspace", tmp_path, "--output", tmp_path / "card")


def test_the_folder_is_a_base_with_its_settings(tiny_base, tiny_controlnet, tmp_path, monkeypatch):
    from pipeline.models import load_network

    defaults, output = tmp_path / "defaults.json", tmp_path / "model"
    write_json(defaults, {"generation": {"steps": 3}})
    words = ("--base", tiny_base, "--controlnet", tiny_controlnet, "--defaults", defaults)
    for _ in range(2):  # a second time replaces the first
        run(model_weights, monkeypatch, *words, "--output", output)
    assert json.loads((output / "base" / "streetforge.json").read_text())["generation"]
    load_network("controlnet", str(output / "base"), output / "controlnet")
    sizes = json.loads((output / "weights.json").read_text())
    assert sizes["total"] == sum(v for k, v in sizes.items() if k != "total") > 0
    assert sizes["base/unet"] == (
        output / "base" / "unet" / "diffusion_pytorch_model.safetensors"
    ).stat().st_size  # fmt: skip


@pytest.mark.parametrize("part", ["decoder.conv_in.weight", "encoder.conv_in.weight"])
def test_only_the_decoder_may_be_another_one(
    part, tiny_base, tiny_controlnet, tmp_path, monkeypatch
):
    """It is written in the precision of the base."""
    base, vae, weights = tmp_path / "base", tmp_path / "vae", "diffusion_pytorch_model.safetensors"
    shutil.copytree(tiny_base, base)
    before = {name: value.half() for name, value in load_file(base / "vae" / weights).items()}
    save_file(before, base / "vae" / weights)
    shutil.copytree(base / "vae", vae)
    changed = {name: value.float() for name, value in before.items()}
    changed[part] = changed[part] + 1
    save_file(changed, vae / weights)
    write_json(tmp_path / "defaults.json", {"generation": {"steps": 3}})
    words = ("--base", base, "--vae", vae, "--controlnet", tiny_controlnet)
    words += ("--defaults", tmp_path / "defaults.json", "--output", tmp_path / "out")
    if part.startswith("encoder"):
        with pytest.raises(UserError, match="--vae .*: has another encoder than --base"):
            run(model_weights, monkeypatch, *words)
        assert not (tmp_path / "out").exists()
        return
    run(model_weights, monkeypatch, *words)
    written = load_file(tmp_path / "out" / "base" / "vae" / weights)
    assert torch.equal(written[part], changed[part].half()) and written.keys() == before.keys()
    assert all(torch.equal(written[name], before[name]) for name in before if name != part)


@pytest.mark.parametrize("place", ["parent", "inside", "controlnet", "defaults", "run"])
def test_nothing_that_is_read_or_of_others_is_replaced(
    place, tiny_base, tiny_controlnet, tmp_path, monkeypatch
):
    base, controlnet = tmp_path / "mine" / "base", tmp_path / "mine" / "controlnet"
    shutil.copytree(tiny_base, base)
    shutil.copytree(tiny_controlnet, controlnet)
    defaults = base / "defaults.json" if place == "defaults" else tmp_path / "defaults.json"
    write_json(defaults, {"generation": {"steps": 3}})
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    output = {"inside": base / "out", "controlnet": controlnet}.get(place, tmp_path / "mine")
    if place == "run":  # a run that trained a base of its own
        base = tiny_base
        controlnet = tiny_controlnet
    words = ("--base", base, "--controlnet", controlnet, "--defaults", defaults)
    with pytest.raises(UserError, match="choose another folder"):
        run(model_weights, monkeypatch, *words, "--output", output)
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before


def test_bad_defaults_replace_nothing(tiny_base, tiny_controlnet, tmp_path, monkeypatch):
    defaults = tmp_path / "defaults.json"
    defaults.write_text("{")
    words = ("--base", tiny_base, "--controlnet", tiny_controlnet, "--defaults", defaults)
    with pytest.raises(UserError, match="defaults.json: broken JSON"):
        run(model_weights, monkeypatch, *words, "--output", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["vae/config.json", "model/weights.json", "timings.json"])
def test_a_damaged_workspace_is_one_line(name, workspace, monkeypatch):
    (workspace / name).write_text("{}")
    with pytest.raises(UserError, match="lacks an expected value"):
        run(model_card, monkeypatch, "--workspace", workspace, "--output", workspace / "card")
