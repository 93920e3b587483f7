"""Two processes make the update that the mean of all their gradients asks for."""

from pathlib import Path

import torch
from safetensors.torch import load_file

RATE = 0.5
# Plain descent in place of AdamW, so that the weights show the gradient; each process notes what
# its U-Net was given and should have predicted.
RECORDING = """
import os, runpy, sys
import torch
from finetune import diffusion, loop
rank, notes = os.environ["RANK"], []
loop.make_optimizer = lambda settings, parameters, device: torch.optim.SGD(parameters, lr=1.0)
add_noise = diffusion.FrozenBase.add_noise
def noted(self, batch, generator):
    found = add_noise(self, batch, generator)
    states = found.text["encoder_hidden_states"]
    notes.append([found.latents, found.timesteps, found.target, states])
    torch.save(notes, os.path.join(os.environ["NOTES"], f"rank-{rank}.pt"))
    return found
diffusion.FrozenBase.add_noise = noted
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_two_processes_follow_the_mean_gradient(
    run_program, root, tiny_base, tiny_dataset, tmp_path: Path
) -> None:
    from diffusers import UNet2DConditionModel

    (tmp_path / "recording.py").write_text(RECORDING)
    run_program(
        "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--",
        tmp_path / "recording.py", "finetune/unet.py", "--data", tiny_dataset(n=6), "--base",
        tiny_base, "--output", tmp_path / "run", "--crop.size-px", "32", "64", "--previews", "0",
        "--training.steps", "1", "--training.batch-size", "2",
        "--training.gradient-accumulation", "2",
        "--training.learning-rate", RATE, "--training.clip-norm", "1e9",
        NOTES=str(tmp_path), PYTHONPATH=str(root), timeout_s=600,
    )  # fmt: skip
    unet = UNet2DConditionModel.from_pretrained(tiny_base, subfolder="unet")
    parts = [torch.load(tmp_path / f"rank-{rank}.pt") for rank in (0, 1)]
    assert [len(notes) for notes in parts] == [2, 2]  # two micro-batches each
    seen = [note[0] for notes in parts for note in notes]
    assert all(not torch.equal(a, b) for i, a in enumerate(seen) for b in seen[:i])
    for notes in parts:
        for noisy, timesteps, target, states in notes:
            error = unet(noisy, timesteps, states).sample - target
            (error.square().mean() / 4).backward()  # the mean over 2 processes x 2 micro-batches
    trained = load_file(tmp_path / "run" / "unet" / "diffusion_pytorch_model.safetensors")
    moved = 0.0
    for name, weight in unet.named_parameters():
        assert weight.grad is not None
        expected = weight.detach() - RATE * weight.grad
        assert torch.allclose(trained[name], expected, rtol=1e-4, atol=1e-6), name
        moved = max(moved, float((expected - weight.detach()).abs().max()))
    assert moved > 1e-3
