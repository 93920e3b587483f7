"""Fine-tune the U-Net on the look of the source: U_P becomes U_S.

Pictures only, the empty prompt for each, no labels (DGInStyle, section 3.1). VAE and text encoder
stay as they are. U_S serves the training of the ControlNet; Style Swap leaves it behind.

    accelerate launch finetune/unet.py --config configs/finetune/unet_pocket.yaml \\
        --data DIR --output DIR
    accelerate launch --num_processes 8 finetune/unet.py ...                       # 8 GPUs
    python finetune/unet.py --training.steps 20 ...                                # a trial

Writes OUTPUT/unet in diffusers' layout. The same command continues an interrupted run.
"""

import sys
from dataclasses import dataclass, field
from pathlib import Path

if sys.path and sys.path[0] == str(Path(__file__).resolve().parent):  # see CONTRIBUTING.md
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from finetune.crops import Crop, draw_image_crop  # noqa: E402
from finetune.programs import begin, finish_notice, plan  # noqa: E402
from finetune.settings import Training  # noqa: E402
from pipeline.config import parse  # noqa: E402
from pipeline.dataset import open_dataset  # noqa: E402
from pipeline.errors import guard  # noqa: E402
from pipeline.models import find_base  # noqa: E402


@dataclass(frozen=True)
class Config:
    """Settings of the U-Net fine-tuning; the defaults are DGInStyle's recipe."""

    data: str = ""
    """dataset folder with the pictures of the source; labels are ignored"""
    output: str = ""
    """run folder; OUTPUT/unet is written"""
    base: str = "pocket"
    """base model: pocket, a diffusers folder, or owner/name@<commit>"""
    seed: int = 0
    """seed of everything drawn"""
    prompt: str = ""
    """the one prompt all pictures are trained with"""
    gradient_checkpointing: bool = False
    """trade time for memory"""
    crop: Crop = field(default_factory=Crop)
    training: Training = field(
        default_factory=lambda: Training(steps=30_000, accumulation=2, learning_rate=2e-6)
    )


def main() -> int | None:
    config, call = parse(Config, __doc__)
    samples = open_dataset(config.data or "data", labelled=False)
    base = find_base(config.base)
    if call.dry_run:
        return plan(config, samples)
    accelerator, folder = begin(config, samples)
    if accelerator is None:
        return finish_notice(folder)

    import torch

    from finetune.loop import train
    from finetune.losses import diffusion_loss, noisy_latents
    from pipeline import models, runs

    torch.manual_seed(config.seed)
    vae = models.load_component(base, "vae").requires_grad_(False).to(accelerator.device)
    scheduler = models.load_scheduler(base)
    unet = models.load_component(base, "unet").train()
    if config.gradient_checkpointing:
        unet.enable_gradient_checkpointing()
    text_encoder = models.load_component(base, "text_encoder")
    tokenizer = models.load_component(base, "tokenizer")
    with torch.no_grad():
        states = models.encode_prompts(tokenizer, text_encoder, [config.prompt])
    states = states.to(accelerator.device)
    del text_encoder

    def draw(rng):  # noqa: ANN001, ANN202
        return draw_image_crop(rng, samples[int(rng.integers(len(samples)))], config.crop)

    def loss_function(model, images, generator):  # noqa: ANN001, ANN202
        images = images.to(accelerator.device)
        with torch.no_grad():
            latents = models.sample_latents(vae, images, generator)
        noisy, target, timesteps = noisy_latents(scheduler, latents, generator)
        text = states.expand(len(latents), -1, -1)
        return diffusion_loss(model(noisy, timesteps, text).sample, target), {}

    weights = train(
        accelerator, unet, draw, models.images_to_tensor, loss_function, config.training,
        seed=config.seed, folder=folder,
    )  # fmt: skip
    if accelerator.is_main_process:
        weights.save_pretrained(folder / "unet")
        runs.mark_finished(folder, config.training.steps)
    accelerator.end_training()
    return None


if __name__ == "__main__":
    guard(main)
