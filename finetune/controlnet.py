"""Train the semantic ControlNet on the frozen U_S.

The control is the one-hot label map, 19 classes and void; captions name the classes of the crop;
rare classes are sampled more often (DGInStyle, sections 3.2 and 3.4). Unlike the reference, some
captions are dropped, so that classifier-free guidance is trained.

    accelerate launch finetune/controlnet.py --config configs/finetune/controlnet_pocket.yaml \\
        --data DIR --unet DIR/unet --output DIR
    accelerate launch --num_processes 8 finetune/controlnet.py ...                 # 8 GPUs
    python finetune/controlnet.py --training.steps 20 ...                          # a trial

Writes OUTPUT/controlnet in diffusers' layout. The same command continues an interrupted run.
"""

import sys
from dataclasses import dataclass, field
from pathlib import Path

if sys.path and sys.path[0] == str(Path(__file__).resolve().parent):  # see CONTRIBUTING.md
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from finetune.crops import (  # noqa: E402
    Crop,
    RareClassSampling,
    class_caption,
    draw_labelled_crop,
    index_classes,
)
from finetune.programs import begin, finish_notice, plan  # noqa: E402
from finetune.settings import Training  # noqa: E402
from pipeline.config import parse  # noqa: E402
from pipeline.dataset import open_dataset  # noqa: E402
from pipeline.errors import guard  # noqa: E402
from pipeline.models import find_base, find_folder  # noqa: E402


@dataclass(frozen=True)
class Config:
    """Settings of the ControlNet training; the defaults follow DGInStyle's recipe."""

    data: str = ""
    """labelled dataset folder of the source"""
    unet: str = ""
    """folder of U_S from finetune/unet.py; empty takes the base's own U-Net (no Style Swap)"""
    output: str = ""
    """run folder; OUTPUT/controlnet is written"""
    base: str = "pocket"
    """base model: pocket, a diffusers folder, or owner/name@<commit>"""
    init: str = ""
    """ControlNet to continue from (pocket or a folder); empty copies the U-Net's encoder"""
    seed: int = 0
    """seed of everything drawn"""
    caption_template: str = "{classes}"
    """caption of a crop; {classes} becomes the names of its classes in train id order"""
    class_separator: str = " "
    """what stands between two class names"""
    caption_dropout: float = 0.1
    """share of samples trained with the empty prompt"""
    gradient_checkpointing: bool = False
    """trade time for memory"""
    half_weights: bool = False
    """save the weights as float16"""
    crop: Crop = field(default_factory=lambda: Crop(scales=(1.0,)))
    rare_classes: RareClassSampling = field(default_factory=RareClassSampling)
    training: Training = field(
        default_factory=lambda: Training(
            steps=30_000, batch_size=2, accumulation=4, learning_rate=1e-5
        )
    )


def main() -> int | None:
    config, call = parse(Config, __doc__)
    samples = open_dataset(config.data or "data", labelled=True)
    base = find_base(config.base)
    unet_folder = find_folder(config.unet) if config.unet else None
    init_folder = find_folder(config.init) if config.init else None
    if call.dry_run:
        return plan(config, samples)
    accelerator, folder = begin(config, samples)
    if accelerator is None:
        return finish_notice(folder)

    import numpy as np
    import torch
    from diffusers import ControlNetModel

    from finetune.loop import train
    from finetune.losses import diffusion_loss, noisy_latents
    from pipeline import labels, models, runs

    # Models: only the ControlNet learns
    torch.manual_seed(config.seed)
    device = accelerator.device
    vae = models.load_component(base, "vae").requires_grad_(False).to(device)
    text_encoder = models.load_component(base, "text_encoder").requires_grad_(False).to(device)
    tokenizer = models.load_component(base, "tokenizer")
    scheduler = models.load_scheduler(base)
    if unet_folder:
        unet = models.load_component(str(unet_folder), "unet", subfolder=None)
    else:
        unet = models.load_component(base, "unet")
    unet = unet.requires_grad_(False).to(device)
    if init_folder:
        controlnet = models.load_component(str(init_folder), "controlnet", subfolder=None)
    else:
        levels = len(vae.config.block_out_channels)  # the encoder shrinks the label as the VAE does
        controlnet = ControlNetModel.from_unet(
            unet,
            conditioning_channels=labels.CONTROL_CHANNELS,
            conditioning_embedding_out_channels=(16, 32, 96, 256)[:levels],
        )
    controlnet.train().requires_grad_(True)
    if config.gradient_checkpointing:
        controlnet.enable_gradient_checkpointing()
        unet.enable_gradient_checkpointing()

    # Data
    index = index_classes(samples, config.rare_classes) if config.rare_classes.enabled else None

    def draw(rng):  # noqa: ANN001, ANN202
        image, label = draw_labelled_crop(rng, samples, config.crop, index)
        caption = class_caption(label, config.caption_template, config.class_separator)
        return image, label, "" if rng.random() < config.caption_dropout else caption

    def collate(items):  # noqa: ANN001, ANN202
        images, maps, captions = zip(*items, strict=True)
        return models.images_to_tensor(list(images)), torch.from_numpy(np.stack(maps)), captions

    def loss_function(model, batch, generator):  # noqa: ANN001, ANN202
        images, maps, captions = batch
        control = labels.one_hot_control(maps.to(device))
        with torch.no_grad():
            latents = models.sample_latents(vae, images.to(device), generator)
            text = models.encode_prompts(tokenizer, text_encoder, list(captions))
        noisy, target, timesteps = noisy_latents(scheduler, latents, generator)
        down, middle = model(noisy, timesteps, text, control, return_dict=False)
        prediction = unet(
            noisy, timesteps, text,
            down_block_additional_residuals=down, mid_block_additional_residual=middle,
        ).sample  # fmt: skip
        return diffusion_loss(prediction, target), {}

    weights = train(
        accelerator, controlnet, draw, collate, loss_function, config.training,
        seed=config.seed, folder=folder,
    )  # fmt: skip
    if accelerator.is_main_process:
        (weights.half() if config.half_weights else weights).save_pretrained(folder / "controlnet")
        runs.mark_finished(folder, config.training.steps)
    accelerator.end_training()
    return None


if __name__ == "__main__":
    guard(main)
