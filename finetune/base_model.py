"""The parts of a base model trained from scratch, in Stable Diffusion's folder layout."""

from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from PIL import Image
from tokenizers import pre_tokenizers
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from finetune.cache import resident_batches
from finetune.diffusion import sample_moments
from finetune.losses import diffusion_loss, noisy_latents
from pipeline.latents import latent_factor
from pipeline.models import load_component, load_scheduler

HELD_OUT_TIMES = (0.0, 1.4)  # of logit-normal timesteps: the whole schedule, whatever trains
START, END, WORD_END = "<|startoftext|>", "<|endoftext|>", "</w>"


class TextToImage(torch.nn.Module):
    """Text encoder and U-Net as one module, so that both train together."""

    def __init__(self, unet: UNet2DConditionModel, text_encoder: CLIPTextModel) -> None:
        super().__init__()
        self.unet, self.text_encoder = unet, text_encoder

    def forward(self, latents: Any, timesteps: Any, token_ids: Any) -> torch.Tensor:
        """Return the U-Net's prediction, BxCxhxw, for token ids BxL."""
        states = self.text_encoder(token_ids)[0]
        return self.unet(latents, timesteps, states).sample


def train_tokenizer(captions: list[str], config: Any) -> CLIPTokenizer:
    """Learn CLIP's byte-level BPE (lower case, word end mark) from the captions.

    Sennrich et al., ACL 2016, algorithm 1, with ties broken by spelling: the trainer of the
    tokenizers library breaks them at random, and all processes must number the tokens alike.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [START, END, *alphabet, *(letter + WORD_END for letter in alphabet)]
    backend = CLIPTokenizer(vocab={START: 0, END: 1}, merges=[]).backend_tokenizer
    words: Counter[tuple[str, ...]] = Counter()
    for caption in captions:
        text = backend.normalizer.normalize_str(caption)
        for word, _ in backend.pre_tokenizer.pre_tokenize_str(text):
            words[(*word[:-1], word[-1] + WORD_END)] += 1
    merges: list[tuple[str, str]] = []
    while len(tokens) < config.vocabulary:
        pairs: Counter[tuple[str, str]] = Counter()
        for word, count in words.items():
            for pair in pairwise(word):
                pairs[pair] += count
        best = max(pairs, key=lambda pair: (pairs[pair], pair), default=None)
        if best is None or pairs[best] < 2:
            break
        merges.append(best)
        tokens.append("".join(best))
        words = Counter({merge(word, best): count for word, count in words.items()})
    vocab = {token: i for i, token in enumerate(dict.fromkeys(tokens))}
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=config.text_length)


def tokenize(captions: list[str], tokenizer: CLIPTokenizer) -> torch.Tensor:
    """Return the token ids of captions, BxL, padded and cut to the tokenizer's length."""
    return tokenizer(
        captions,
        padding="max_length",
        max_length=tokenizer.model_max_length,
        truncation=True,
        return_tensors="pt",
    ).input_ids


def resident_latents(
    accelerator: Any,
    crops: Any,
    captions: torch.Tensor,
    empty: torch.Tensor,
    num_items: int,
    config: Any,
) -> Any:
    """Return batches (moments, token ids) of the first `num_items` crops, held by the device."""
    device = accelerator.device
    moments, captions, empty = crops.moments().to(device), captions.to(device), empty.to(device)

    def gather(numbers: torch.Tensor, generator: torch.Generator) -> tuple[Any, Any]:
        dropped = torch.rand(len(numbers), generator=generator) < config.caption_dropout
        numbers, dropped = (part.to(device, non_blocking=True) for part in (numbers, dropped))
        ids = captions[numbers // config.crops_per_image]
        return moments[numbers], torch.where(dropped[:, None], empty, ids)

    return resident_batches(accelerator, num_items, gather, config.training, config.seed)


@torch.no_grad()
def held_out_loss(
    batch: tuple[torch.Tensor, torch.Tensor], scheduler: Any, accelerator: Any, model: Any
) -> float:
    """Return the mean loss on held-out moments Nx2xCxhxw and token ids NxL.

    Noise and timesteps are the same at each call, so that losses of several weights compare.
    """
    total, count = 0.0, 0
    generator = torch.Generator(device=accelerator.device)
    for start in range(0, len(batch[0]), 64):
        moments, ids = (part[start : start + 64].to(accelerator.device) for part in batch)
        generator.manual_seed(start)
        latents = sample_moments(moments, generator)
        noisy, target, timesteps = noisy_latents(scheduler, latents, generator, HELD_OUT_TIMES)
        with accelerator.autocast():
            total += float(diffusion_loss(model(noisy, timesteps, ids), target)) * len(latents)
        count += len(latents)
    return total / count


def merge(word: tuple[str, ...], pair: tuple[str, str]) -> tuple[str, ...]:
    """Return the word with each occurrence of `pair` joined, from the left."""
    parts: list[str] = []
    for part in word:
        if parts and (parts[-1], part) == pair:
            parts[-1] += part
        else:
            parts.append(part)
    return tuple(parts)


def load_text_to_image(
    base: str,
) -> tuple[UNet2DConditionModel, CLIPTextModel, DDIMScheduler, CLIPTokenizer]:
    """Load U-Net, text encoder, scheduler and tokenizer of a base model, to train them further."""
    unet, text_encoder = (load_component(base, part).train() for part in ("unet", "text_encoder"))
    return unet, text_encoder, load_scheduler(base), load_component(base, "tokenizer")


def build_text_to_image(
    config: Any, vae: Any, tokenizer: CLIPTokenizer
) -> tuple[UNet2DConditionModel, CLIPTextModel, DDIMScheduler]:
    """Build U-Net, text encoder and scheduler with random weights.

    The schedule ends at zero signal and predicts v, so that very dark and very bright pictures
    can be drawn (Lin et al., WACV 2024).
    """
    attention = ["CrossAttnDownBlock2D"] * (len(config.channels) - 1)
    factor = latent_factor(vae)
    unet = UNet2DConditionModel(
        sample_size=min(config.crop.size_px) // factor,  # stock pipelines compare a number
        in_channels=vae.config.latent_channels,
        out_channels=vae.config.latent_channels,
        down_block_types=("DownBlock2D", *attention),
        up_block_types=(*[a.replace("Down", "Up") for a in attention], "UpBlock2D"),
        block_out_channels=config.channels,
        layers_per_block=config.layers,
        cross_attention_dim=config.text_width,
        attention_head_dim=config.heads,
        norm_num_groups=16,
    )
    text_encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=config.text_width,
            projection_dim=config.text_width,
            intermediate_size=4 * config.text_width,
            num_hidden_layers=config.text_layers,
            num_attention_heads=config.heads,
            max_position_embeddings=config.text_length,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    scheduler = DDIMScheduler(
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
    return unet, text_encoder, scheduler


def assemble(model: TextToImage, vae: Any, tokenizer: Any, scheduler: Any) -> Any:
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


def draw_previews(
    model: TextToImage,
    vae: Any,
    tokenizer: Any,
    scheduler: Any,
    prompts: list[str],
    folder: Path,
    step: int,
    size_px: tuple[int, int],
) -> None:
    """Draw one picture of (height, width) per prompt and write them as one sheet, four in a row."""
    pipe = assemble(model, vae, tokenizer, scheduler)
    pipe.set_progress_bar_config(disable=True)
    generators = [torch.Generator().manual_seed(i) for i in range(len(prompts))]
    pictures = pipe(
        prompts,
        height=size_px[0],
        width=size_px[1],
        num_inference_steps=15,
        guidance_scale=3.0,
        generator=generators,
        output_type="np",
    ).images
    columns = 4
    rows = [np.concatenate(pictures[i : i + columns], 1) for i in range(0, len(pictures), columns)]
    folder.mkdir(parents=True, exist_ok=True)
    sheet = (np.concatenate(rows, 0) * 255).round().astype(np.uint8)
    Image.fromarray(sheet).save(folder / f"step-{step:08d}.png")


def save_base(
    model: TextToImage, vae: Any, tokenizer: Any, scheduler: Any, folder: Path, *, half: bool
) -> None:
    """Write the pipeline folder; the small text encoder always stays float32."""
    pipe = assemble(model, vae, tokenizer, scheduler)
    vae.register_to_config(_name_or_path="")  # where it came from on this machine
    if half:
        pipe.unet.half()
        pipe.vae.half()
    pipe.save_pretrained(folder)
    tokenizer.backend_tokenizer.model.save(str(folder / "tokenizer"))  # vocab.json, merges.txt
