"""The folder and the card of a trained pocket model, from files written by hand."""

import json
import sys

import pytest

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
            ("drawn", 30.0, 10.0),
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
