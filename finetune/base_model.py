"""A text-to-image base model in Stable Diffusion's folder layout: built, loaded, sampled, saved."""

from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from PIL import Image
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from finetune.network_sizes import UNET_GROUPS, TextToImageSizes
from pipeline.models import load_component, load_scheduler
from pipeline.size_grid import vae_scale_factor

PREVIEW_STEPS, PREVIEW_GUIDANCE, PREVIEW_COLUMNS = 15, 3.0, 4


class TextToImage(torch.nn.Module):
    """Text encoder and U-Net as one module, so that both train together."""

    def __init__(self, unet: UNet2DConditionModel, text_encoder: CLIPTextModel) -> None:
        super().__init__()
        self.unet, self.text_encoder = unet, text_encoder

    def forward(
        self, latents: torch.Tensor, timesteps: torch.Tensor, token_ids: torch.Tensor
    ) -> torch.Tensor:
        """Return the U-Net's prediction for latents BxCxhxw and token ids BxL."""
        states = self.text_encoder(token_ids)[0]
        return self.unet(latents, timesteps, states).sample


def load_text_to_image(base: str) -> tuple[TextToImage, DDIMScheduler, CLIPTokenizer]:
    """Load the networks, scheduler and tokenizer of a base model, to train them further."""
    unet, text_encoder = (load_component(base, part).train() for part in ("unet", "text_encoder"))
    model = TextToImage(unet, text_encoder)
    return model, load_scheduler(base), load_component(base, "tokenizer")


def build_text_to_image(
    sizes: TextToImageSizes, crop_px: tuple[int, int], vae: AutoencoderKL, tokenizer: CLIPTokenizer
) -> tuple[TextToImage, DDIMScheduler]:
    """Build U-Net, text encoder and scheduler with random weights; crops are (height, width)."""
    attention = ["CrossAttnDownBlock2D"] * (len(sizes.channels) - 1)
    unet = UNet2DConditionModel(
        sample_size=min(crop_px) // vae_scale_factor(vae),  # stock pipelines compare a number
        in_channels=vae.config.latent_channels,
        out_channels=vae.config.latent_channels,
        down_block_types=("DownBlock2D", *attention),
        up_block_types=(*[a.replace("Down", "Up") for a in attention], "UpBlock2D"),
        block_out_channels=sizes.channels,
        layers_per_block=sizes.layers,
        cross_attention_dim=sizes.text_width,
        attention_head_dim=sizes.heads,
        norm_num_groups=UNET_GROUPS,
    )
    text_encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=sizes.text_width,
            projection_dim=sizes.text_width,
            intermediate_size=4 * sizes.text_width,
            num_hidden_layers=sizes.text_layers,
            num_attention_heads=sizes.heads,
            max_position_embeddings=sizes.text_length,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    return TextToImage(unet, text_encoder), build_scheduler()


def build_scheduler() -> DDIMScheduler:
    """Build the noise schedule of a new base model.

    It ends at zero signal and predicts v, so that very dark and very bright images can be generated
    (Lin et al., WACV 2024).
    """
    return DDIMScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        clip_sample=False,
        set_alpha_to_one=True,
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        steps_offset=1,  # without effect on trailing spacing; what diffusers expects
    )


def make_pipeline(
    model: TextToImage, vae: AutoencoderKL, tokenizer: CLIPTokenizer, scheduler: DDIMScheduler
) -> StableDiffusionPipeline:
    """Put the parts into diffusers' stock pipeline."""
    return StableDiffusionPipeline(
        vae=vae,
        text_encoder=model.text_encoder,
        tokenizer=tokenizer,
        unet=model.unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        image_encoder=None,
        requires_safety_checker=False,
    )


def write_preview_sheet(
    path: Path, pipeline: StableDiffusionPipeline, prompts: list[str], size_px: tuple[int, int]
) -> None:
    """Generate one image of (height, width) per prompt and write them as one sheet."""
    pipeline.set_progress_bar_config(disable=True)
    generators = [torch.Generator().manual_seed(i) for i in range(len(prompts))]
    images = pipeline(
        prompts,
        height=size_px[0],
        width=size_px[1],
        num_inference_steps=PREVIEW_STEPS,
        guidance_scale=PREVIEW_GUIDANCE,
        generator=generators,
        output_type="np",
    ).images
    starts = range(0, len(images), PREVIEW_COLUMNS)
    rows = [np.concatenate(images[i : i + PREVIEW_COLUMNS], 1) for i in starts]
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray((np.concatenate(rows, 0) * 255).round().astype(np.uint8)).save(path)


def save_base(
    model: TextToImage,
    vae: AutoencoderKL,
    tokenizer: CLIPTokenizer,
    scheduler: DDIMScheduler,
    folder: Path,
    *,
    half: bool,
) -> None:
    """Write the pipeline folder; the small text encoder always stays float32."""
    pipeline = make_pipeline(model, vae, tokenizer, scheduler)
    if half:
        pipeline.unet.half()
        pipeline.vae.half()
    pipeline.save_pretrained(folder)
    tokenizer.backend_tokenizer.model.save(str(folder / "tokenizer"))  # vocab.json, merges.txt
