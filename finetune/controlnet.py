"""Train the semantic ControlNet on the frozen U_S.

The control is the one-hot label map, 19 classes and void; captions name the classes of the crop;
rare classes are sampled more often (DGInStyle, sections 3.2 and 3.4). Unlike the reference, some
captions are dropped, so that classifier-free guidance is trained.

    accelerate launch finetune/controlnet.py --config configs/finetune/controlnet_pocket.yaml \\
        --data DIR --unet DIR/unet --output DIR
    accelerate launch --num_processes 8 finetune/controlnet.py ...                 # 8 GPUs
    python finetune/controlnet.py --training.steps 20 ...                          # a trial

Writes OUTPUT/controlnet in diffusers' layout, and at each checkpoint a sheet in OUTPUT/previews:
label, drawn with U_S, drawn with the base's U-Net. The same command continues an interrupted run.
"""

import copy
import sys
from dataclasses import dataclass, field
from pathlib import Path

if sys.path and sys.path[0] == str(Path(__file__).resolve().parent):  # see CONTRIBUTING.md
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from finetune.captions import Captions
from finetune.crops import Crop, draw_labelled_crop, recolor_some
from finetune.programs import begin, open_sources
from finetune.settings import OF_THE_BASE, Training
from pipeline.base_defaults import with_base_defaults
from pipeline.config import parse
from pipeline.errors import UserError, guard
from pipeline.models import check_fit, find_base, find_folder
from pipeline.rare_classes import ClassIndex, RareClassSampling, index_classes


@dataclass(frozen=True)
class Config:
    """Settings of the ControlNet training; the defaults follow DGInStyle's recipe."""

    data: tuple[str, ...] = ()
    """labelled dataset folders of the source; crops are drawn from their union"""
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
    """caption of a crop; {classes} becomes the names of its classes in train id order. Where the
    text window is too short for all of them, the commonest classes are left out"""
    class_separator: str = " "
    """what stands between two class names"""
    caption_dropout: float = 0.1
    """share of samples trained with the empty prompt"""
    color_jitter: float = 0.0
    """share of crops whose colours change at random (any hue), so that the control tells where
    things are and not which colours they have in the source"""
    mix_with_init: float = 0.0
    """share of the weights of --init in those written (WiSE-FT, Wortsman et al., CVPR 2022)"""
    min_snr_gamma: float = 0.0
    """weight of the timesteps by min-SNR-gamma, 5 is usual; 0 weighs all alike"""
    gradient_checkpointing: bool = False
    """trade time for memory"""
    cached_crops: int = 0
    """crops drawn and encoded once before the training; 0 draws and encodes as it goes"""
    cache_on_device: bool = False
    """keep the prepared crops in the device's memory and draw the batches there"""
    previews: int = 4
    """crops drawn at each checkpoint, with a score of controllability; 0 draws none"""
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
    defaults = with_base_defaults(Config, "finetune", OF_THE_BASE)
    config, call = parse(Config, __doc__, defaults=defaults)
    samples = open_sources(config.data, labelled=True)
    base = find_base(config.base)
    unet_folder = find_folder(config.unet, "unet") if config.unet else None
    init_folder = find_folder(config.init, "controlnet") if config.init else None
    for kind, name, found in (
        ("unet", config.unet, unet_folder),
        ("controlnet", config.init, init_folder),
    ):
        if found:
            setting = "--init" if kind == "controlnet" else "--unet"
            check_fit(f"{setting} {name}", kind, found, base)
    if config.mix_with_init and not config.init:
        raise UserError("--mix-with-init: needs --init, whose weights are mixed in")
    index: list[ClassIndex] = []

    def find_rare_classes() -> None:
        if config.rare_classes.enabled:
            index.append(index_classes(samples, config.rare_classes))

    captions = Captions(base, config.caption_template, config.class_separator)
    accelerator, folder = begin(
        config,
        call,
        samples,
        [captions.check, find_rare_classes],
        base=("base", base),
        unet=("unet", unet_folder),
        init=("controlnet", init_folder),
    )
    if accelerator is None:
        return None

    import torch
    from diffusers import ControlNetModel

    from finetune.cache import crop_batches
    from finetune.diffusion import FrozenBase, frozen_type, predict
    from finetune.loop import speed_up, train
    from finetune.previews import Previews
    from pipeline import labels, models, runs

    # Models: only the ControlNet learns; the U-Net's weights need no more than autocast's precision
    device = accelerator.device
    weight_type = frozen_type(config.training.precision, device)
    frozen = FrozenBase(base, device, min_snr_gamma=config.min_snr_gamma)

    def load_unet(folder):
        return models.load_network("unet", base, folder).requires_grad_(False)

    unet = load_unet(unet_folder)
    if init_folder:
        controlnet = models.load_network("controlnet", base, init_folder)
    else:
        torch.manual_seed(config.seed)
        levels = len(frozen.vae.config.block_out_channels)  # shrinks the label as the VAE does
        controlnet = ControlNetModel.from_unet(
            unet,
            conditioning_channels=labels.CONTROL_CHANNELS,
            conditioning_embedding_out_channels=(16, 32, 96, 256)[:levels],
        )
    unet.to(device, weight_type)
    speed_up(accelerator, unet, frozen=True)
    controlnet.train().requires_grad_(True)
    if config.gradient_checkpointing:
        controlnet.enable_gradient_checkpointing()
        unet.enable_gradient_checkpointing()

    # Data
    def draw(rng):
        image, label = draw_labelled_crop(rng, samples, config.crop, index[0] if index else None)
        image = recolor_some(rng, image, config.color_jitter)
        return image, label, captions(label)

    data = crop_batches(
        accelerator, frozen.vae, draw, config, folder, dropout=config.caption_dropout
    )

    def loss_function(model, batch, generator):
        step = frozen.step(batch, generator)
        control = labels.one_hot_control(batch[1].to(device, non_blocking=True))
        prediction = predict(unet, step.noisy, step.timesteps, step.text, model, control)
        return frozen.loss(prediction, step), {}

    preview = None
    if config.previews and accelerator.is_main_process:
        sheet = Previews(
            accelerator, frozen, draw, seed=config.seed, shown=config.previews, folder=folder
        )

        def preview(weights, done):
            columns = [sheet.colours(), sheet.draw(unet, weights)]
            if unet_folder:  # Style Swap; U_P is loaded for the moment only
                columns.append(sheet.draw(load_unet(None).to(device, weight_type), weights))
            sheet.write(done, columns)
            return {"controllability": sheet.controllability(unet, weights)}

    initial = copy.deepcopy(controlnet.state_dict()) if config.mix_with_init else {}
    weights = train(
        accelerator,
        controlnet,
        data,
        loss_function,
        config.training,
        seed=config.seed,
        folder=folder,
        preview=preview,
    )
    if accelerator.is_main_process:
        for name, tensor in weights.state_dict().items() if initial else ():
            tensor.lerp_(initial[name].to(tensor), config.mix_with_init)
        (weights.half() if config.half_weights else weights).save_pretrained(folder / "controlnet")
        runs.mark_finished(folder, config.training.steps)
    accelerator.end_training()
    return None


if __name__ == "__main__":
    guard(main)
