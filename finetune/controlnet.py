"""Train the semantic ControlNet on the frozen U_S.

The control is the one-hot label map, 19 classes and void. Captions name the classes of the crop,
and rare classes are sampled more often (DGInStyle, sections 3.2 and 3.4). Unlike in the reference,
some captions are replaced by the empty prompt, so that classifier-free guidance is trained.

    accelerate launch finetune/controlnet.py --config configs/finetune/controlnet_pocket.yaml \\
        --data DIR --unet DIR/unet --output DIR
    accelerate launch --num_processes 8 finetune/controlnet.py ...                 # 8 GPUs
    python finetune/controlnet.py --training.steps 20 ...                          # a trial

Writes OUTPUT/controlnet in diffusers' layout, and at each checkpoint a sheet in OUTPUT/previews:
label, image generated with U_S, image generated with the base's U-Net. The same command continues
an interrupted run.

`--segmentation-head.enabled` also trains OUTPUT/segmentation_head, which generation uses for its
in-sampling correction. `--segmentation-head.only` trains that alone, on a finished ControlNet:

    python finetune/controlnet.py --segmentation-head.only --init pocket --data DIR --output DIR
"""

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

if sys.path and sys.path[0] == str(Path(__file__).resolve().parent):  # see CONTRIBUTING.md
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from finetune.captions import TEMPLATE_FLAG, Captions
from finetune.crops import LabelledCrops
from finetune.settings import SET_BY_BASE, BaseModelSettings, Crop, HeadSettings, Training
from finetune.start import Run, open_samples, require_crop_of_base, require_disk, start_run
from finetune.style_images import open_style_images
from pipeline.base_defaults import with_base_defaults
from pipeline.captions import CaptionSettings, check_template
from pipeline.config import parse
from pipeline.errors import UserError, guard
from pipeline.models import check_fit, find_base, find_folder
from pipeline.rare_classes import RareClassSampling
from pipeline.seeding import seed_of
from pipeline.setting_checks import require_between


@dataclass(frozen=True)
class Config(BaseModelSettings):
    """Settings of the ControlNet training; the defaults follow DGInStyle's recipe."""

    RENAMED: ClassVar[dict[str, str]] = {
        "mix_with_init": "init_weight",
        "half_weights": "save_fp16",
        "caption_template": "caption.template",
        "class_separator": "caption.class_separator",
        "class_last": "caption.class_last",
        "max_classes": "caption.max_classes",
    }

    data: tuple[str, ...] = ()
    """labelled dataset folders of the source; crops come from their union"""
    unet: str | None = None
    """folder of U_S from finetune/unet.py; None takes the base's own U-Net (no Style Swap)"""
    output: Path | None = None
    """run folder; OUTPUT/controlnet is written"""
    init: str | None = None
    """ControlNet to continue from (pocket or a folder); None copies the U-Net's encoder"""
    caption: CaptionSettings = field(default_factory=CaptionSettings)
    """captions of crops; generation should name classes in the same way (`prompt`)"""
    caption_dropout: float = 0.1
    """share of samples trained with the empty prompt, for classifier-free guidance"""
    color_jitter: float = 0.0
    """share of crops whose colours change at random (any hue), so that the ControlNet learns
    positions and not the colours of the source"""
    init_weight: float = 0.0
    """share of the weights of --init in the saved weights (WiSE-FT, Wortsman et al., CVPR 2022)"""
    save_fp16: bool = False
    """save the weights as float16"""
    segmentation_head: HeadSettings = field(default_factory=HeadSettings)
    """a segmentation head on features of the U-Net, for the in-sampling correction of generation"""
    class_balance: float = 0.0
    """weight of a class in the denoising loss of a crop: n^-class_balance for n pixels, so that
    small objects count more; 0 counts pixels, 1 counts classes"""
    style_images: tuple[str, ...] = ()
    """dataset folders of captioned images; each crop takes on the colours of one of them, and
    {style} in the template of the captions its words"""
    crop: Crop = field(default_factory=lambda: Crop(scales=(1.0,)))
    rare_classes: RareClassSampling = field(default_factory=RareClassSampling)
    training: Training = field(
        default_factory=lambda: Training(
            steps=30_000, batch_size=2, gradient_accumulation=4, learning_rate=1e-5
        )
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        shares = "caption_dropout", "class_balance", "color_jitter", "init_weight"
        require_between(self, 0, 1, *shares)
        self.caption.check("caption.")
        check_template(TEMPLATE_FLAG, self.caption.template, ("classes", "style"))
        self.rare_classes.check()

    def check(self) -> None:
        """Raise `UserError` for settings that do not fit each other."""
        super().check()
        if self.init_weight and not self.init:
            raise UserError("--init-weight: needs --init, whose weights are mixed in")
        if self.segmentation_head.only and not self.init:
            raise UserError(
                "--segmentation-head.only: needs --init, the finished ControlNet that the head is "
                "trained on"
            )
        if self.segmentation_head.only and self.init_weight:
            raise UserError(
                "--init-weight: --segmentation-head.only changes no ControlNet; leave out one of "
                "the two"
            )


def find_network(setting: str, name: str | None, kind: str, base: str) -> Path | None:
    """Return the folder of a network that must fit `base`, None if the setting names none."""
    if not name:
        return None
    folder = find_folder(name, kind)
    check_fit(f"{setting} {name}", kind, folder, base)
    return folder


def main() -> int | None:
    """Check settings and inputs, then import torch and train."""
    defaults = with_base_defaults(Config, "finetune", SET_BY_BASE)
    config, call = parse(Config, __doc__, defaults=defaults)
    config.check()
    samples = open_samples(config.data, labelled=True)
    base = find_base(config.base)
    require_crop_of_base(config, base)
    unet_folder = find_network("--unet", config.unet, "unet", base)
    init_folder = find_network("--init", config.init, "controlnet", base)
    captions = Captions(base, config.caption)
    styles = open_style_images(config.style_images, TEMPLATE_FLAG, config.caption.template)
    crops = LabelledCrops(
        samples, config.crop, captions, config.color_jitter, config.rare_classes, styles
    )

    def check() -> None:
        require_disk(config.cached_crops, config.crop, config.output, labelled=True)
        captions.check(styles)
        _ = crops.index  # raises if no class is found

    run = start_run(
        config,
        call,
        samples,
        check,
        styles=styles,
        base=("base", base),
        unet=("unet", unet_folder),
        init=("controlnet", init_folder),
    )
    if run is not None:
        fit(config, run, base, unet_folder, init_folder, crops)
    return None


def fit(
    config: Config,
    run: Run,
    base: str,
    unet_folder: Path | None,
    init_folder: Path | None,
    crops: LabelledCrops,
) -> None:
    """Train the ControlNet of an open run, a head beside it, or a head alone."""
    from finetune.data import crop_batches
    from finetune.diffusion import frozen_type
    from finetune.loop import train
    from finetune.previews import make_previews
    from finetune.tasks.controlnet import ControlNetTask, load_frozen_unet
    from finetune.tasks.head import SegmentationHeadTask

    device = run.accelerator.device
    weight_type = frozen_type(config.training.precision, device)
    frozen, unet, controlnet = load_networks(config, run, base, unet_folder, init_folder)
    batches = crop_batches(
        run,
        frozen.vae,
        crops,
        num_cached=config.cached_crops,
        on_device=config.cache_on_device,
        caption_dropout=config.caption_dropout,
    )

    head = make_head(config, unet)
    if config.segmentation_head.only:
        assert head is not None
        controlnet.requires_grad_(False).eval().to(device, weight_type)
        train(run, SegmentationHeadTask(frozen, controlnet, head, batches, config.save_fp16))
        return

    def load_base_unet() -> Any:
        return load_frozen_unet(base, None).to(device, weight_type)

    task = ControlNetTask(
        frozen,
        unet,
        controlnet,
        batches,
        class_balance=config.class_balance,
        init_weight=config.init_weight,
        save_fp16=config.save_fp16,
        previews=make_previews(run, frozen, crops, config.previews),
        load_base_unet=load_base_unet if unet_folder else None,
        head=head,
    )
    train(run, task)


def load_networks(
    config: Config, run: Run, base: str, unet_folder: Path | None, init_folder: Path | None
) -> tuple[Any, Any, Any]:
    """Return the frozen parts of the base, the frozen U-Net, and the ControlNet to be trained.

    The frozen weights need no more than autocast's precision.
    """
    from finetune.diffusion import FrozenBase, frozen_type
    from finetune.loop import optimize_for_device
    from finetune.tasks.controlnet import load_controlnet, load_frozen_unet

    device = run.accelerator.device
    frozen = FrozenBase(base, device, min_snr_gamma=config.min_snr_gamma)
    unet = load_frozen_unet(base, unet_folder)
    controlnet = load_controlnet(base, init_folder, unet, frozen.vae, config.seed)
    unet.to(device, frozen_type(config.training.precision, device))
    optimize_for_device(run.accelerator, unet, frozen=True)
    if config.gradient_checkpointing:
        controlnet.enable_gradient_checkpointing()
        unet.enable_gradient_checkpointing()
    return frozen, unet, controlnet


def make_head(config: Config, unet: Any) -> Any:
    """Return the training of a segmentation head on the features of `unet`, None if it is off."""
    from finetune.tasks.head import HeadTraining, new_head

    settings = config.segmentation_head
    if not (settings.enabled or settings.only):
        return None
    network = new_head(unet, settings.hidden_channels, seed_of(config.seed, "head"))
    return HeadTraining(network, unet, settings.learning_rate, settings.class_balance)


if __name__ == "__main__":
    guard(main)
