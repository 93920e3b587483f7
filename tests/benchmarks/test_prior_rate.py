"""The rate of a text-to-image training, of which scripts/gpu/pocket_model.sh makes a length."""

import json
import sys

from benchmarks import prior_rate


def test_updates_are_timed_on_latents_of_the_crop(tmp_path, monkeypatch, capsys) -> None:
    path = tmp_path / "c.yaml"
    small = {"channels": [16, 32, 32], "crop": {"size_px": [32, 64]}, "training": {"batch_size": 2}}
    path.write_text(json.dumps(small))
    monkeypatch.setattr(prior_rate, "WARM_UP", 1)
    monkeypatch.setattr(prior_rate, "TIMED", 2)
    monkeypatch.setattr(sys, "argv", ["prior_rate.py", "--config", str(path)])
    seen = []
    monkeypatch.setattr(
        "finetune.losses.diffusion_loss",
        lambda prediction, target: (
            seen.append(tuple(prediction.shape)) or (prediction - target).square().mean()
        ),
    )
    prior_rate.main()
    assert float(capsys.readouterr().out) > 0
    assert seen == [(2, 8, 8, 16)] * 3
