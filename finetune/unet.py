"""Fine-tune the U-Net on the look of the source: U_P becomes U_S.

Trains on images with one prompt, the empty one, and without labels (DGInStyle, section 3.1). With
style images, the prompt can name the style. Autoencoder and text encoder are frozen. The ControlNet
is trained on U_S; generation uses U_P instead (Style Swap).

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
from finetune.crops import UnlabelledCrops
from finetune.settings import SET_BY_BASE, BaseModelSettings, Training
from finetune.start import Run, open_samples, require_crop_of_base, require_disk, start_run
from finetune.style_images import PLACEHOLDER, StyleImages, open_style_images
from pipeline.base_defaults import with_base_defaults
from pipeline.captions import check_template
from pipeline.config import parse
from pipeline.dataset import Sample
from pipeline.errors import UserError, guard
from pipeline.hub import find_local
from pipeline.model_files import read_config
from pipeline.models import find_base
from pipeline.setting_checks import require_between, require_extra


@dataclass(frozen=True)
class Config(BaseModelSettings):
    """Settings of the U-Net fine-tuning; the defaults are DGInStyle's recipe."""

    data: tuple[str, ...] = ()
    """dataset folders with images of the source; labels are ignored"""
    output: Path | None = None
    """run folder; OUTPUT/unet is written"""
    prompt: str = ""
    """the one prompt that all images are trained with; {style} stands for the words of the style"""
    caption_dropout: float = 0.0
    """share of samples trained with the empty prompt"""
    color_jitter: float = 0.0
    """share of crops whose colours change at random (any hue); for a ControlNet trained with the
    same share, which then does not learn to correct the colours of the source"""
    style_images: tuple[str, ...] = ()
    """dataset folders of captioned images; each crop takes on the colours of one of them, and
    {style} in the prompt its words. For a ControlNet trained with the same ones"""
    lora_rank: int = 0
    """train adapters of this rank in the attention layers only, for small GPUs; 0 trains all"""
    training: Training = field(
        default_factory=lambda: Training(steps=30_000, gradient_accumulation=2, learning_rate=2e-6)
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        require_between(self, 0, 1, "caption_dropout", "color_jitter")
        require_between(self, 0, 1024, "lora_rank")
        check_template("--prompt", self.prompt, ("style",))


def require_rank_of_base(rank: int, base: str) -> None:
    """Raise `UserError` unless adapters of `rank` fit `base`; a hub id not on disk passes."""
    if (folder := find_local(base)) is None:
        return
    widest = max(read_config(folder / "unet", "unet")["block_out_channels"])
    if rank > widest:
        raise UserError(
            f"--lora-rank {rank}: the widest layers of --base {base} have {widest} channels; "
            "4 to 64 is usual"
        )


def main() -> int | None:
    """Check settings and inputs, then import torch and train."""
    defaults = with_base_defaults(Config, "finetune", SET_BY_BASE)
    config, call = parse(Config, __doc__, defaults=defaults)
    config.check()
    samples = open_samples(config.data, labelled=False)
    base = find_base(config.base)
    require_crop_of_base(config, base)
    require_rank_of_base(config.lora_rank, base)
    styles = open_style_images(config.style_images, "--prompt", config.prompt)

    def check() -> None:
        if config.lora_rank:
            require_extra(f"--lora-rank {config.lora_rank}", "peft", "lora")
        require_disk(config.cached_crops, config.crop, config.output, labelled=False)
        check_prompt(config.prompt, base, styles)

    run = start_run(config, call, samples, check, styles=styles, base=("base", base))
    if run is not None:
        fit(config, run, base, samples, styles)
    return None


def fit(
    config: Config, run: Run, base: str, samples: list[Sample], styles: StyleImages | None
) -> None:
    """Train the U-Net of an open run."""
    from finetune.data import crop_batches
    from finetune.diffusion import FrozenBase
    from finetune.loop import train
    from finetune.previews import make_previews
    from finetune.tasks.unet import UNetTask, load_unet

    # Models
    frozen = FrozenBase(base, run.accelerator.device, min_snr_gamma=config.min_snr_gamma)
    if PLACEHOLDER not in config.prompt:
        frozen.text.encode(["", config.prompt])
        frozen.text.free()  # there is no other prompt
    unet = load_unet(
        base,
        lora_rank=config.lora_rank,
        gradient_checkpointing=config.gradient_checkpointing,
        seed=config.seed,
    )

    # Data
    crops = UnlabelledCrops(samples, config.crop, config.prompt, config.color_jitter, styles)
    batches = crop_batches(
        run,
        frozen.vae,
        crops,
        num_cached=config.cached_crops,
        on_device=config.cache_on_device,
        caption_dropout=config.caption_dropout,
    )

    # Training
    previews = make_previews(run, frozen, crops, config.previews)
    train(run, UNetTask(frozen, unet, batches, lora=config.lora_rank > 0, previews=previews))


if __name__ == "__main__":
    guard(main)
