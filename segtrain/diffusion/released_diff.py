"""The features of DIFF as its authors released it, with its faults; see docs/segmentation.md."""

import torch

from pipeline.latents import sample_latents
from pipeline.prompt_encoder import Conditioning
from segtrain.diffusion.extractor import DiffusionExtractor
from segtrain.diffusion.trajectories import masked_mean

GUIDANCE_SCALE = 5.0


class ReleasedDiffExtractor(DiffusionExtractor):
    """`DiffusionExtractor` with the faults of the released code, for comparisons.

    Classifier-free guidance of scale 5 away from an empty prompt doubles each evaluation; the
    output counts as noise whatever the scheduler says; features of residual blocks are those of
    the empty prompt, those of transformers are summed over all prompts; the latent is a sample of
    the posterior, not its mean.
    """

    def __init__(self, *parts: object, **options: object) -> None:
        super().__init__(*parts, **options)  # type: ignore[arg-type]
        self.schedule.prediction_type = "epsilon"

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        """Return a sample of the latents BxCxhxw of images; the noise comes from a fixed seed."""
        with torch.no_grad():
            return sample_latents(self.vae, self.pad(images), torch.Generator())

    def _text_rows(self, context: Conditioning, paths: int, batch: int) -> Conditioning:
        """Put the first prompt, which is empty, before the others once more: the negative one."""
        rows = super()._text_rows(context, paths, batch)
        first = context.map(lambda states: states[:1].expand(batch, *states.shape[1:]))
        pooled = None
        if first.pooled is not None and rows.pooled is not None:
            pooled = torch.cat([first.pooled, rows.pooled])
        return Conditioning(torch.cat([first.states, rows.states]), pooled)

    def _merge_outputs(self, output: torch.Tensor, masks: torch.Tensor | None) -> torch.Tensor:
        negative = output[:1]
        return masked_mean(negative + GUIDANCE_SCALE * (output[1:] - negative), masks)

    def _merge_features(
        self, tap: str, feature: torch.Tensor, masks: torch.Tensor | None
    ) -> torch.Tensor:
        return feature.sum(0) if "transformer_blocks" in tap else feature[0]
