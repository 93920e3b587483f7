"""The shipped base model in every stock pipeline, scheduler and adapter that applies."""

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.models import POCKET_BASE, POCKET_CONTROLNET

SIZE = 64
PROMPT = "a city street scene with road and car, in snowy weather by day, in a suburb"
COMMON = {"prompt": PROMPT, "num_inference_steps": 2, "output_type": "np"}
IMAGE = Image.fromarray(np.full((SIZE, SIZE, 3), 120, np.uint8))
MASK = Image.fromarray(np.pad(np.full((32, 32), 255, np.uint8), 16))
CONTROL = torch.nn.functional.one_hot(torch.arange(SIZE) % 20, 20).T.float()
CONTROL = CONTROL[None, :, :, None].expand(1, 20, SIZE, SIZE).contiguous()
SIDES = {"height": SIZE, "width": SIZE}
FROM_IMAGE = {"image": IMAGE, "strength": 1.0}
# The plain inpainting pipelines take 4 or 9 latent channels by rule; this base has 8
PIPELINES = {
    "StableDiffusionPipeline": {},
    "StableDiffusionImg2ImgPipeline": FROM_IMAGE,
    "AutoPipelineForText2Image": {},
    "AutoPipelineForImage2Image": FROM_IMAGE,
    "StableDiffusionPAGPipeline": {"pag_scale": 1.0},
    "StableDiffusionPAGImg2ImgPipeline": {**FROM_IMAGE, "pag_scale": 1.0},
    "StableDiffusionControlNetPipeline": {"image": CONTROL},
    "StableDiffusionControlNetImg2ImgPipeline": {**FROM_IMAGE, "control_image": CONTROL},
    "StableDiffusionControlNetInpaintPipeline": {
        **FROM_IMAGE, "mask_image": MASK, **SIDES, "control_image": CONTROL},
    "StableDiffusionControlNetPAGPipeline": {"image": CONTROL, "pag_scale": 1.0},
}  # fmt: skip


@pytest.fixture(scope="module")
def parts() -> dict:
    """The parts of the base and the ControlNet, loaded once."""
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(POCKET_BASE)
    controlnet = diffusers.ControlNetModel.from_pretrained(POCKET_CONTROLNET)
    return {**pipe.components, "controlnet": controlnet}


@pytest.mark.parametrize("name", PIPELINES)
def test_stock_pipelines_generate(name: str, parts: dict) -> None:
    kind = getattr(diffusers, name)
    if name.startswith("Auto"):
        pipe = kind.from_pretrained(POCKET_BASE)
    else:
        names = [*parts] if "ControlNet" in name else [n for n in parts if n != "controlnet"]
        pipe = kind(**{n: parts[n] for n in names}, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    image = pipe(**COMMON, **PIPELINES[name], generator=generator).images[0]
    assert image.shape == (SIZE, SIZE, 3) and np.isfinite(image).all() and image.std() > 0.01


def compatible() -> list[str]:
    scheduler = diffusers.DDIMScheduler.from_pretrained(POCKET_BASE, subfolder="scheduler")
    return sorted(kind.__name__ for kind in scheduler.compatibles)


@pytest.mark.parametrize("name", compatible())
def test_stock_schedulers_generate(name: str, parts: dict) -> None:
    kind = getattr(diffusers, name)
    try:
        scheduler = kind.from_config(parts["scheduler"].config)
    except ImportError:
        pytest.skip(f"{name} needs a package that is not installed")
    names = [n for n in parts if n not in ("controlnet", "scheduler")]
    pipe = diffusers.StableDiffusionPipeline(
        **{n: parts[n] for n in names}, scheduler=scheduler, requires_safety_checker=False
    )
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    options = COMMON | {"num_inference_steps": 4}
    image = pipe(**options, **SIDES, generator=generator).images[0]
    assert image.shape == (SIZE, SIZE, 3) and np.isfinite(image).all()


def test_adapters_load(parts: dict, tmp_path) -> None:
    """An adapter saved in the stock layout changes the image, and goes away without a trace."""
    pytest.importorskip("peft")
    from diffusers.utils import convert_state_dict_to_diffusers
    from peft import LoraConfig, get_peft_model_state_dict

    unet = diffusers.UNet2DConditionModel.from_pretrained(POCKET_BASE, subfolder="unet")
    unet.add_adapter(
        LoraConfig(r=2, init_lora_weights=False, target_modules=["to_q", "to_v", "to_out.0"])
    )
    layers = convert_state_dict_to_diffusers(get_peft_model_state_dict(unet))
    diffusers.StableDiffusionPipeline.save_lora_weights(tmp_path, unet_lora_layers=layers)
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(POCKET_BASE)
    pipe.set_progress_bar_config(disable=True)

    def draw() -> np.ndarray:
        return pipe(**COMMON, generator=torch.Generator().manual_seed(0)).images[0]

    plain = draw()
    pipe.load_lora_weights(tmp_path)
    assert not np.allclose(draw(), plain)
    pipe.unload_lora_weights()
    assert np.allclose(draw(), plain)
