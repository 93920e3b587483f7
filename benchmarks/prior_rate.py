"""Updates per second of a text-to-image training on this machine, after compilation.

    python benchmarks/prior_rate.py --config configs/finetune/prior_pocket_model_gpu.yaml --compile

Prints one number. `scripts/gpu/pocket_model.sh` sets the length of the training by it.
"""

import argparse
import sys
import time
from pathlib import Path
from types import SimpleNamespace

if sys.path and sys.path[0] == str(Path(__file__).resolve().parent):  # see CONTRIBUTING.md
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from finetune.prior import Config
from pipeline.config import from_layers
from pipeline.errors import guard
from pipeline.yaml_files import load_preset

WARM_UP, TIMED = 8, 30  # updates
LATENT_CHANNELS, LEVELS, VOCABULARY = 8, 3, 450  # of the pocket model


class Tokenizer:
    """What `build_text_to_image` asks a tokenizer for."""

    bos_token_id, eos_token_id, pad_token_id = 0, 1, 1

    def __len__(self) -> int:
        return VOCABULARY


def updates_per_second(config: Config, *, compiled: bool) -> float:
    """Time updates of a new model on latents of noise, with the batch size of `config`."""
    import torch

    from finetune.base_model import build_text_to_image
    from finetune.losses import diffusion_loss, noisy_latents
    from pipeline.latents import latent_factor

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    vae = SimpleNamespace(
        config=SimpleNamespace(latent_channels=LATENT_CHANNELS, block_out_channels=(0,) * LEVELS)
    )
    model, scheduler = build_text_to_image(config, config.crop.size_px, vae, Tokenizer())
    model.to(device)
    optimizer = torch.optim.AdamW(model.parameters(), fused=device.type == "cuda" or None)
    trained = torch.compile(model) if compiled else model
    batch, factor = config.training.batch_size, latent_factor(vae)
    size = [side // factor for side in config.crop.size_px]
    latents = torch.randn(batch, LATENT_CHANNELS, *size, device=device)
    ids = torch.zeros(batch, config.text_length, dtype=torch.long, device=device)
    generator = torch.Generator(device=device)
    started = 0.0
    for step in range(WARM_UP + TIMED):
        if step == WARM_UP:
            started = time.perf_counter()
        noisy, target, timesteps = noisy_latents(scheduler, latents, generator, (0.0, 1.0))
        with torch.autocast(device.type, torch.bfloat16):
            loss = diffusion_loss(trained(noisy, timesteps, ids), target)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        loss.item()  # waits for the device
    return TIMED / (time.perf_counter() - started)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--config", required=True, type=Path)
    parser.add_argument("--compile", action="store_true")
    arguments = parser.parse_args()
    config = from_layers(Config, load_preset(arguments.config))
    print(f"{updates_per_second(config, compiled=arguments.compile):.3f}")


if __name__ == "__main__":
    guard(main)
