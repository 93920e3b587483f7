"""A run goes on only with the models, data, settings and processes it was begun with."""

import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from finetune import controlnet
from pipeline import runs
from pipeline.errors import UserError

WEIGHTS = "diffusion_pytorch_model.safetensors"


def perturb(folder: Path) -> None:
    """Change one weight of a model folder in place."""
    tensors = load_file(folder / WEIGHTS)
    name = sorted(tensors)[0]
    tensors[name] = tensors[name] + 1
    save_file(tensors, folder / WEIGHTS)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ("base", r"models\.base\.vae: "),
        ("unet", r"models\.unet: "),
        ("init", r"models\.init: "),
        ("data", r"data\.data: '2 items, \w+' -> '3 items, \w+'"),
        ("processes", "processes: 1 -> 2"),
        ("seed", "seed: 0 -> 1"),
        ("nothing", ""),
    ],
)
@pytest.mark.parametrize("finished", [True, False])
def test_what_changed_is_named(
    change, named, finished, call, tiny_base, tiny_controlnet, tiny_dataset, tmp_path, monkeypatch
):
    base, unet, init = (tmp_path / name for name in ("base", "unet", "init"))
    shutil.copytree(tiny_base, base)
    shutil.copytree(tiny_base / "unet", unet)
    shutil.copytree(tiny_controlnet, init)
    data, output = tiny_dataset(n=2), tmp_path / "run"
    arguments = [
        "--data", data, "--base", base, "--unet", unet, "--init", init, "--output", output,
        "--training.steps", 1, "--rare-classes.min-pixels", 10,
    ]  # fmt: skip
    call(controlnet, *arguments)
    if not finished:
        (output / "finished.json").unlink()
    if change == "data":
        shutil.rmtree(data)
        tiny_dataset(n=3, folder=data)
    elif change == "processes":
        monkeypatch.setenv("WORLD_SIZE", "2")
    elif change == "seed":
        arguments += ["--seed", 1]
    elif change != "nothing":
        perturb({"base": base / "vae", "unet": unet, "init": init}[change])
    kept = (output / "config.json").read_bytes()
    if change == "nothing":
        call(controlnet, *arguments)
    else:
        with pytest.raises(UserError, match=rf"holds another run \({named}"):
            call(controlnet, *arguments)
    assert (output / "config.json").read_bytes() == kept


@pytest.mark.parametrize(
    ("name", "data", "goes_on"),
    [
        ("step-00000002/model.safetensors", b"\x08", True),
        ("step-00000002/optimizer.json", b"[", True),
        ("step-00000002/complete.json", b'{"step": "two"}', True),
        ("*/model.safetensors", b"", False),
        ("../finished.json", b"[]", False),
        ("../config.json", b"null", False),
        ("../config.json", b"\xff", False),
    ],
)
def test_damage_in_a_run_is_passed_over_or_named(
    name, data, goes_on, call, same_weights, tiny_dataset, tmp_path, capsys
):
    arguments = [
        "--data", tiny_dataset(n=2), "--training.steps", 2, "--training.checkpoint-interval", 1,
        "--rare-classes.min-pixels", 10, "--output", tmp_path / "run",
    ]  # fmt: skip
    call(controlnet, *arguments)
    shutil.copytree(tmp_path / "run" / "controlnet", tmp_path / "first")
    if not name.startswith("../finished"):
        (tmp_path / "run" / "finished.json").unlink()
    for path in (tmp_path / "run" / "checkpoints").glob(name):
        path.write_bytes(data)
    if goes_on:
        call(controlnet, *arguments)
        assert same_weights(tmp_path / "run" / "controlnet", tmp_path / "first")
        assert "step-00000002: cannot be used" in capsys.readouterr().err
    else:
        with pytest.raises(UserError, match=name.rpartition("/")[2].split(".")[0]) as caught:
            call(controlnet, *arguments)
        assert "\n" not in str(caught.value)


def test_float16_on_a_cpu_is_refused_before_anything_is_written(
    call, tiny_dataset, tmp_path, monkeypatch
):
    monkeypatch.setattr(runs, "only_cpu", lambda: True)
    options = ("--data", tiny_dataset(n=1), "--output", tmp_path / "run")
    with pytest.raises(UserError, match="--training.precision fp16: needs a GPU"):
        call(controlnet, *options, "--training.precision", "fp16")
    assert not (tmp_path / "run").exists()
