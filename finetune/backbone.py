"""Train a small vision transformer on images without labels: a backbone for segmentation.

    accelerate launch finetune/backbone.py --data DIR --output DIR
    accelerate launch --num_processes 8 finetune/backbone.py --data DIR --output DIR     # 8 GPUs
    python finetune/backbone.py --data DIR --output DIR --training.steps 20              # a trial

The network is that of DINOv2 at another size. It predicts the orientations of the edges in masked
patches. Writes OUTPUT/backbone, a folder of transformers that `segtrain/pretrained.py --weights`
reads. The same command continues an interrupted run.
"""

import sys
from dataclasses import dataclass, field
from pathlib import Path

if sys.path and sys.path[0] == str(Path(__file__).resolve().parent):  # see CONTRIBUTING.md
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from finetune.crops import ImageCrops
from finetune.network_sizes import BackboneSizes
from finetune.settings import Crop, RunSettings, Training
from finetune.start import Run, open_samples, require_crop_multiple, start_run
from pipeline.config import parse
from pipeline.dataset import Sample
from pipeline.errors import guard
from pipeline.setting_checks import require_between


@dataclass(frozen=True)
class Config(BackboneSizes, RunSettings):
    """Settings of the backbone training."""

    data: tuple[str, ...] = ()
    """dataset folders with images; labels are ignored"""
    output: Path | None = None
    """run folder; OUTPUT/backbone is written"""
    mask_share: float = 0.6
    """share of the patches that are masked"""
    mask_block: int = 2
    """patches along each side of a masked block"""
    color_jitter: float = 0.8
    """share of crops with shifted colours"""
    crop: Crop = field(default_factory=lambda: Crop((96, 160), (0.75, 1.0, 1.25, 1.5), flip=True))
    training: Training = field(
        default_factory=lambda: Training(
            steps=3000,
            batch_size=16,
            learning_rate=1e-3,
            warmup_steps=150,
            schedule="cosine",
            weight_decay=0.05,
            ema_decay=0.998,
            checkpoint_interval=250,
        )
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        require_between(self, 0.05, 0.95, "mask_share")
        require_between(self, 1, 64, "mask_block")
        require_between(self, 0, 1, "color_jitter")


def main() -> int | None:
    """Check settings and inputs, then import torch and train."""
    config, call = parse(Config, __doc__)
    config.check_multiples()
    samples = open_samples(config.data, labelled=False)
    block_px = config.patch_px * config.mask_block
    require_crop_multiple(config.crop, block_px, "for whole masked blocks")
    run = start_run(config, call, samples)
    if run is not None:
        fit(config, run, samples)
    return None


def fit(config: Config, run: Run, samples: list[Sample]) -> None:
    """Train the backbone of an open run."""
    import torch

    from finetune.data import sampled_batches
    from finetune.loop import train
    from finetune.tasks.backbone import BackboneTask, build_backbone
    from pipeline.latents import images_to_tensor

    torch.manual_seed(config.seed)
    network = build_backbone(config)
    crops = ImageCrops(samples, config.crop, config.color_jitter)
    task = BackboneTask(
        run,
        network,
        sampled_batches(run, crops, images_to_tensor),
        mask_share=config.mask_share,
        mask_block=config.mask_block,
    )
    train(run, task)


if __name__ == "__main__":
    guard(main)
