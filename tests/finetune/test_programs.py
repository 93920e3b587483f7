"""The fine-tuning programs: a few real steps, resume after kill -9, two processes, bad input."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file

from pipeline import checkpoints, runs

SMALL = (
    "--crop.size-px", "32", "64", "--crop.scales", "0.5", "1.0", "--training.batch-size", "2",
    "--training.log-interval", "1",
)  # fmt: skip
WEIGHTS = "diffusion_pytorch_model.safetensors"


def same_weights(a: Path, b: Path) -> bool:
    x, y = load_file(a / WEIGHTS), load_file(b / WEIGHTS)
    return x.keys() == y.keys() and all(bool((x[k] == y[k]).all()) for k in x)


def kill_after_checkpoint(command: list[str], root: Path, output: Path) -> None:
    """Start the program and kill it without warning once it has a checkpoint."""
    child = subprocess.Popen(
        [sys.executable, *command], cwd=root, stderr=subprocess.DEVNULL, start_new_session=True
    )
    deadline = time.monotonic() + 120
    while checkpoints.latest_checkpoint(output) is None:
        assert child.poll() is None and time.monotonic() < deadline, "ended before it was killed"
        time.sleep(0.01)
    os.killpg(child.pid, signal.SIGKILL)
    child.wait()


def test_unet_resumes_bit_for_bit_after_a_kill(
    run_program, root, tiny_base, tiny_dataset, tmp_path
):
    data = tiny_dataset(n=4)
    command = [
        "finetune/unet.py", "--data", str(data), "--base", str(tiny_base), *SMALL,
        "--training.steps", "40", "--training.checkpoint-interval", "5",
        "--training.ema-decay", "0.9", "--training.gradient-accumulation", "2",
        "--training.learning-rate", "1e-3",
    ]  # fmt: skip
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    run_program(*command, "--output", straight)
    kill_after_checkpoint([*command, "--output", str(killed)], root, killed)
    assert not (killed / "finished.json").exists()
    run_program(*command, "--output", killed)
    assert same_weights(straight / "unet", killed / "unet")
    base = load_file(tiny_base / "unet" / WEIGHTS)
    moved = load_file(straight / "unet" / WEIGHTS)
    assert any(bool((base[k] != moved[k]).any()) for k in base)
    again = run_program(*command, "--output", straight)
    assert "nothing to do" in again.stdout


def test_controlnet_trains_and_stock_diffusers_loads_it(
    run_program, tiny_base, tiny_dataset, tmp_path
):
    from diffusers import ControlNetModel

    data, output = tiny_dataset(n=4), tmp_path / "run"
    run_program(
        "finetune/controlnet.py", "--data", data, "--base", tiny_base, "--output", output, *SMALL,
        "--training.steps", "3", "--training.gradient-accumulation", "1",
        "--rare-classes.min-pixels", "10", "--training.learning-rate", "1e-3",
    )  # fmt: skip
    net = ControlNetModel.from_pretrained(output / "controlnet")
    assert net.config.conditioning_channels == 20
    assert float(net.controlnet_mid_block.weight.detach().abs().sum()) > 0
    assert len((output / "metrics.jsonl").read_text().splitlines()) == 3


@pytest.mark.parametrize("program", ["unet", "controlnet"])
def test_two_processes_take_different_samples(
    program, run_program, tiny_base, tiny_dataset, tmp_path
):
    data, output = tiny_dataset(n=4), tmp_path / "run"
    run_program(
        "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2",
        f"finetune/{program}.py", "--data", data, "--base", tiny_base, "--output", output, *SMALL,
        "--training.steps", "2", "--training.gradient-accumulation", "1",
        *(["--rare-classes.min-pixels", "10"] if program == "controlnet" else []),
    )  # fmt: skip
    assert runs.is_finished(output, 2)
    single = tmp_path / "single"
    run_program(
        f"finetune/{program}.py", "--data", data, "--base", tiny_base, "--output", single, *SMALL,
        "--training.steps", "2", "--training.gradient-accumulation", "1",
        *(["--rare-classes.min-pixels", "10"] if program == "controlnet" else []),
    )  # fmt: skip
    assert not same_weights(output / program, single / program)


def test_base_model_from_scratch_generates_from_a_prompt(
    run_program, tiny_base, tiny_dataset, tmp_path
):
    import torch
    from diffusers import StableDiffusionPipeline

    data = tiny_dataset(n=3, labelled=False)
    size = ("--crop.size-px", "32", "64", "--crop.scales", "0.5", "1.0")
    run_program(
        "finetune/vae.py", "--data", data, "--output", tmp_path / "vae", *size,
        "--training.steps", "2", "--channels", "8", "8", "8", "--norm-groups", "4",
    )  # fmt: skip
    run_program(
        "finetune/vae.py", "--data", data, "--init", tmp_path / "vae" / "vae", *size,
        "--decoder-only", "True", "--output", tmp_path / "decoder", "--training.steps", "2",
        "--scale-weight", "0", "--adversarial-weight", "0.5",
    )  # fmt: skip
    last = json.loads((tmp_path / "decoder" / "metrics.jsonl").read_text().splitlines()[-1])
    assert {"adversarial", "discriminator", "psnr"} <= last.keys()
    before, after = (
        load_file(tmp_path / name / "vae" / "diffusion_pytorch_model.safetensors")
        for name in ("vae", "decoder")
    )
    same = {name: torch.equal(before[name], after[name]) for name in before}
    assert all(same[name] for name in same if name.startswith(("encoder", "quant_conv")))
    assert not any(same[name] for name in same if name.startswith("decoder.conv_in"))
    run_program(
        "finetune/prior.py", "--data", data, "--vae", tmp_path / "decoder" / "vae", *size,
        "--output", tmp_path / "prior", "--training.steps", "2", "--channels", "16", "16",
        "--text-width", "16", "--text-layers", "1", "--training.checkpoint-interval", "2",
        "--training.ema-sigma-rel", "0.05", "0.1", "--holdout", "1", "--cache-on-device",
    )  # fmt: skip
    losses = json.loads((tmp_path / "prior" / "averages.json").read_text())["held_out_loss"]
    assert len(losses) > 5 and all(loss > 0 for loss in losses.values())
    run_program(
        "finetune/vae.py", "--data", data, "--init", tmp_path / "decoder" / "vae", *size,
        "--decoder-only", "--scale-weight", "0", "--denoiser", tmp_path / "prior" / "base",
        "--denoiser-strength", "1", "--output", tmp_path / "denoised", "--training.steps", "2",
    )  # fmt: skip
    last = json.loads((tmp_path / "denoised" / "metrics.jsonl").read_text().splitlines()[-1])
    assert math.isfinite(last["loss"])
    further = (
        "finetune/prior.py", "--data", data, "--init", tmp_path / "prior" / "base", *size,
        "--training.steps", "1", "--logit-normal", "-0.4", "1.4",
        "--save-fp16", "False", "--training.ema-decay", "0", "--training.learning-rate", "0",
    )  # fmt: skip
    own_vae = ("--vae", tmp_path / "decoder" / "vae")
    run_program(*further, *own_vae, "--output", tmp_path / "further")
    weights = "base/unet/diffusion_pytorch_model.safetensors"
    before, after = (load_file(tmp_path / run / weights) for run in ("prior", "further"))
    assert all(torch.equal(before[name].float(), after[name]) for name in before)
    failed = run_program(
        *further, "--vae", tiny_base / "vae", "--output", tmp_path / "other", check=False
    )
    assert failed.returncode == 2 and "takes 6 latent channels but --vae has 4" in failed.stderr
    pipe = StableDiffusionPipeline.from_pretrained(tmp_path / "prior" / "base")
    pipe.to(torch.float32)
    generated = pipe("a street in snowy weather", height=32, width=64, num_inference_steps=2)
    assert generated.images[0].size == (64, 32)
    assert list((tmp_path / "prior" / "previews").glob("*.png"))


BAD_LABELS = {
    "ids": ("are outside 0..18", lambda a: Image.fromarray(np.full_like(a, 33))),
    "colour": ("has mode RGB", lambda a: Image.fromarray(np.stack([a] * 3, -1))),
    "size": ("must have the same size", lambda a: Image.fromarray(a[:-2])),
}


@pytest.mark.parametrize("fault", [*BAD_LABELS, "truncated"])
def test_bad_files_are_named_in_one_line(fault, run_program, tiny_base, tiny_dataset, tmp_path):
    data = tiny_dataset(n=3, folder=tmp_path / "data")
    path = sorted((data / "labels").rglob("*.png"))[1]
    message = "not a readable PNG"
    if fault == "truncated":
        path.write_bytes(path.read_bytes()[:60])
    else:
        message, change = BAD_LABELS[fault]
        change(np.array(Image.open(path))).save(path)
    done = run_program(
        "finetune/controlnet.py",
        "--data",
        data,
        "--base",
        tiny_base,
        "--output",
        tmp_path / "o",
        check=False,
    )
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1
    assert message in done.stderr and path.name in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--data", "nowhere"), "no such dataset folder"),
        (("--data", "{data}", "--output", "{tmp}/o", "--training.steps", "0"), "must be 1 or more"),
        (("--data", "{data}"), "--output: no folder given"),
        (("--data", "{data}", "--output", "/proc/nowhere"), "cannot be written"),
        (("--data", "{data}", "--output", "{tmp}/o", "--base", "sd15"), "neither 'pocket'"),
        (("--config", "{tmp}/c.yaml"), "unknown key 'stepps'; known keys"),
    ],
)
def test_bad_settings_are_one_line(
    arguments, message, run_program, tiny_base, tiny_dataset, tmp_path
):
    data = tiny_dataset(n=2)
    (tmp_path / "c.yaml").write_text("training:\n  stepps: 3\n")
    words = [a.format(data=data, tmp=tmp_path) for a in arguments]
    if "--base" not in words:
        words += ["--base", str(tiny_base)]
    done = run_program("finetune/unet.py", *words, check=False)
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1, done.stderr
    assert message in done.stderr


def test_another_runs_folder_is_refused(run_program, tiny_base, tiny_dataset, tmp_path):
    command = [
        "finetune/unet.py", "--data", tiny_dataset(n=2), "--base", tiny_base, "--output",
        tmp_path / "o", *SMALL, "--training.steps", "1",
    ]  # fmt: skip
    run_program(*command)
    done = run_program(*command, "--seed", "5", check=False)
    assert done.returncode == 2 and "seed: 0 -> 5" in done.stderr


def test_control_is_mixed_with_the_one_it_began_from(
    run_program, tiny_base, tiny_controlnet, tiny_dataset, tmp_path
):
    import torch

    data, written = tiny_dataset(n=4), {}
    for share in ("0", "0.5", "1"):
        run_program(
            "finetune/controlnet.py", "--data", data, "--base", tiny_base, *SMALL, "--init",
            tiny_controlnet, "--output", tmp_path / share, "--training.steps", "1",
            "--training.gradient-accumulation", "1",
            "--rare-classes.min-pixels", "10", "--previews", "0",
            "--training.learning-rate", "1e-2", "--color-jitter", "1", "--init-weight", share,
        )  # fmt: skip
        written[share] = load_file(tmp_path / share / "controlnet" / WEIGHTS)
    initial, moved = load_file(tiny_controlnet / WEIGHTS), 0.0
    for name, before in initial.items():
        after = written["0"][name]
        torch.testing.assert_close(written["1"][name], before)
        torch.testing.assert_close(written["0.5"][name], (before + after) / 2)
        moved += float((before - after).abs().sum())
    assert moved > 0
    failed = run_program(
        "finetune/controlnet.py", "--data", data, "--base", tiny_base, "--output", tmp_path / "no",
        "--init-weight", "0.5", check=False,
    )  # fmt: skip
    assert failed.returncode == 2 and "--init-weight: needs --init" in failed.stderr


def test_bfloat16_and_compilation_learn_the_same(run_program, tiny_base, tiny_dataset, tmp_path):
    import torch

    data = tiny_dataset(n=2)

    def train(name: str, *arguments: str, **environment: str):
        done = run_program(
            "finetune/controlnet.py", "--data", data, "--base", tiny_base, "--output",
            tmp_path / name, *SMALL, "--training.steps", "4",
            "--training.gradient-accumulation", "1",
            "--training.learning-rate", "1e-3", "--previews", "0",
            "--rare-classes.enabled", "False", *arguments, **environment,
        )  # fmt: skip
        weights = load_file(tmp_path / name / "controlnet" / WEIGHTS)
        return torch.cat([w.flatten() for w in weights.values()]), done.stderr

    plain, _ = train("plain")
    # A backend that traces both networks but generates no machine code, which would take minutes
    compiled, log = train("compiled", ACCELERATE_DYNAMO_BACKEND="AOT_EAGER", TORCH_LOGS="dynamo")
    assert log.count("torchdynamo start tracing") == 2, "the ControlNet and the frozen U-Net"
    assert torch.allclose(plain, compiled, atol=1e-5)
    coarse, _ = train("bfloat16", "--training.precision", "bf16")
    assert not torch.equal(plain, coarse)
    assert float((plain - coarse).norm() / plain.norm()) < 0.02
