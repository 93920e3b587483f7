"""Fine-tune the U-Net on the look of the source: U_P becomes U_S.

Pictures only, the empty prompt for each, no labels (DGInStyle, section 3.1). VAE and text encoder
stay as they are. U_S serves the training of the ControlNet; Style Swap leaves it behind.

    accelerate launch finetune/unet.py --config configs/finetune/unet_pocket.yaml \\
        --data DIR --output DIR
    accelerate launch --num_processes 8 finetune/unet.py ...                       # 8 GPUs
    python finetune/unet.py --training.steps 20 ...                                # a trial

Writes OUTPUT/unet in diffusers' layout (with --lora-rank also OUTPUT/lora) and sample sheets in
OUTPUT/previews. The same command continues an interrupted run.
"""

import sys
from dataclasses import dataclass, field
from pathlib import Path

if sys.path and sys.path[0] == str(Path(__file__).resolve().parent):  # see CONTRIBUTING.md
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from finetune.captions import check_prompt
from finetune.crops import Crop, draw_image_crop, recolor_some
from finetune.programs import begin, open_sources
from finetune.settings import OF_THE_BASE, Training
from pipeline.base_defaults import with_base_defaults
from pipeline.config import parse
from pipeline.errors import guard
from pipeline.models import find_base


@dataclass(frozen=True)
class Config:
    """Settings of the U-Net fine-tuning; the defaults are DGInStyle's recipe."""

    data: tuple[str, ...] = ()
    """dataset folders with the pictures of the source; labels are ignored"""
    output: str = ""
    """run folder; OUTPUT/unet is written"""
    base: str = "pocket"
    """base model: pocket, a diffusers folder, or owner/name@<commit>"""
    seed: int = 0
    """seed of everything drawn"""
    prompt: str = ""
    """the one prompt all pictures are trained with"""
    color_jitter: float = 0.0
    """share of crops whose colours change at random (any hue); for a ControlNet trained with the
    same share, which then need not undo the colours of the source"""
    min_snr_gamma: float = 0.0
    """weight of the timesteps by min-SNR-gamma, 5 is usual; 0 weighs all alike"""
    lora_rank: int = 0
    """train adapters of this rank in the attention layers only, for small GPUs; 0 trains all"""
    gradient_checkpointing: bool = False
    """trade time for memory"""
    cached_crops: int = 0
    """crops drawn and encoded once before the training; 0 draws and encodes as it goes"""
    cache_on_device: bool = False
    """keep the prepared crops in the device's memory and draw the batches there"""
    previews: int = 4
    """pictures drawn at each checkpoint; 0 draws none"""
    crop: Crop = field(default_factory=Crop)
    training: Training = field(
        default_factory=lambda: Training(steps=30_000, accumulation=2, learning_rate=2e-6)
    )


def main() -> int | None:
    defaults = with_base_defaults(Config, "finetune", OF_THE_BASE)
    config, call = parse(Config, __doc__, defaults=defaults)
    samples = open_sources(config.data, labelled=False)
    base = find_base(config.base)
    accelerator, folder = begin(
        config, call, samples, [lambda: check_prompt(config.prompt, base)], base=("base", base)
    )
    if accelerator is None:
        return None

    import torch

    from finetune.cache import crop_batches
    from finetune.diffusion import FrozenBase, predict
    from finetune.loop import train
    from finetune.previews import Previews
    from pipeline import models, runs
    from pipeline.lora import add_adapter, save_and_merge

    # Models: only the U-Net, or its adapter, learns
    frozen = FrozenBase(base, accelerator.device, min_snr_gamma=config.min_snr_gamma)
    frozen.text.encode(["", config.prompt])
    frozen.text.free()  # there is no other prompt
    unet = models.load_component(base, "unet").train()
    if config.lora_rank:
        torch.manual_seed(config.seed)
        add_adapter(unet, config.lora_rank)
    if config.gradient_checkpointing:
        unet.enable_gradient_checkpointing()

    # Data
    def draw(rng):
        sample = samples[int(rng.integers(len(samples)))]
        image = draw_image_crop(rng, sample, config.crop)
        return recolor_some(rng, image, config.color_jitter), None, config.prompt

    data = crop_batches(accelerator, frozen.vae, draw, config, folder)

    def loss_function(model, batch, generator):
        step = frozen.step(batch, generator)
        return frozen.loss(predict(model, step.noisy, step.timesteps, step.text), step), {}

    preview = None
    if config.previews and accelerator.is_main_process:
        sheet = Previews(
            accelerator, frozen, draw, seed=config.seed, shown=config.previews, folder=folder
        )

        def preview(weights, done):
            sheet.write(done, [sheet.pictures(), sheet.draw(weights)])

    weights = train(
        accelerator,
        unet,
        data,
        loss_function,
        config.training,
        seed=config.seed,
        folder=folder,
        preview=preview,
    )
    if accelerator.is_main_process:
        if config.lora_rank:
            save_and_merge(weights, folder / "lora")
        weights.save_pretrained(folder / "unet")
        runs.mark_finished(folder, config.training.steps)
    accelerator.end_training()
    return None


if __name__ == "__main__":
    guard(main)
