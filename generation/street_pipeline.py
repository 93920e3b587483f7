"""The generator as a class for notebooks, in the manner of a diffusers pipeline.

    pipe = StreetPipeline.from_pretrained()                # the pocket model; .to("cuda") elsewhere
    image = pipe(label, "a city street scene with road and car, in snowy weather").images[0]

It generates exactly what `generation/run.py` generates: the label, prompt and seed of a row give
the row's image, by the same settings on the same kind of device.
"""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from diffusers.utils import BaseOutput
from PIL import Image

from generation.inputs import find_correction_head
from generation.pipeline_inputs import (
    Label,
    Seed,
    SourceImage,
    as_source_of,
    broadcast,
    require_text,
)
from generation.precision import AUTO
from generation.sampler.networks import Networks, load_networks
from generation.sampler.sampler import Sampler
from generation.samples import SampleSpec
from generation.settings import NOT_IN_DIGEST, OF_THE_BASE, Config, default_config
from pipeline import base_defaults, files, head_files, models
from pipeline.config import from_layers, from_mapping, to_mapping, with_base
from pipeline.errors import UserError
from pipeline.output_folders import require_writable
from pipeline.reading import read_json
from pipeline.yaml_files import load_preset

SETTINGS_FILE = "street_pipeline.json"
OF_THE_FOLDER = ("base", "unet", "controlnet", *NOT_IN_DIGEST)  # not settings of a saved pipeline


@dataclass
class StreetPipelineOutput(BaseOutput):
    """The images of one call and the seed of each, which repeats it as `generator`.

    `images`: PIL images, or BxHxWx3 float32 in 0..1.
    """

    images: list[Image.Image] | np.ndarray
    seeds: list[int]


class StreetPipeline:
    """Generates street scenes from label maps. `settings` are those of `generation/run.py`.

    Weights are read for the first image, straight to the device.
    """

    def __init__(self, settings: Config, device: str | torch.device = "cpu") -> None:
        if settings.precision == AUTO:
            raise UserError("precision 'auto': is chosen for an output folder; give fp32 or bf16")
        models.find_base(settings.base)
        models.find_folder(settings.controlnet, "controlnet")
        if settings.unet:
            models.find_folder(settings.unet, "unet")
        find_correction_head(settings)
        self.settings, self.device = settings, torch.device(device)
        self._networks: Networks | None = None

    @classmethod
    def from_pretrained(
        cls,
        base: str | Path | None = None,
        controlnet: str | Path | None = None,
        unet: str | Path | None = None,
        config: str | Path | None = None,
        **settings: Any,
    ) -> "StreetPipeline":
        """Open a base model with a ControlNet, or a folder of `save_pretrained` as `base`.

        `config` is a YAML of configs/generation. None leaves a part to it, or to the default: the
        pocket model with the base's own U-Net. Keywords are settings of generation/run.py; sizes,
        steps, guidance and words that nothing states come with the base model.
        """
        layers = load_preset(Path(config)) if config else []
        flag = None if base is None else str(base)
        chosen, _ = with_base(Config, default_config, layers, flag, [])
        chosen = from_layers(Config, layers, chosen)
        saved = Path(base) / SETTINGS_FILE if base else None
        if saved and saved.is_file():
            chosen = from_mapping(Config, read_json(saved), str(saved), chosen)
            chosen = replace(chosen, controlnet=str(Path(base or "") / "controlnet"), unet="")
        parts = {"base": base, "controlnet": controlnet, "unet": unet}
        named = {name: str(value) for name, value in parts.items() if value is not None}
        return cls(from_mapping(Config, {**named, **settings}, "from_pretrained", chosen))

    def to(self, device: str | torch.device) -> "StreetPipeline":
        """Generate on another device from now on."""
        if torch.device(device) != self.device:
            self.device, self._networks = torch.device(device), None
        return self

    def __call__(
        self,
        label: Label | Sequence[Label],
        prompt: str | Sequence[str],
        negative_prompt: str | None = None,
        generator: Seed | Sequence[Seed] = None,
        *,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        image: SourceImage | None = None,
        output_type: Literal["pil", "np"] = "pil",
        return_dict: bool = True,
    ) -> StreetPipelineOutput | tuple[Any]:
        """Generate one image per label and prompt; a single one is used for all.

        `label`: HxW train ids with void 255, or the path of such a PNG. `generator`: a seed, or a
        torch.Generator, which stands for its seed when fresh and gives new seeds after that.
        `image`: the source image, of the label's size, for settings with a second control, a
        strength below 1 or a colour transfer: a path, a PIL image, HxWx3 or HxW integers in
        0..255, or such floats in 0..1.
        """
        if output_type not in ("pil", "np"):
            raise UserError(f"output_type {output_type!r}: use 'pil' or 'np'")
        label_maps, prompts, seeds = broadcast(label, prompt, generator)
        if output_type == "np" and len({one.shape for one in label_maps}) > 1:
            raise UserError("output_type 'np': the labels differ in size; use 'pil'")
        source = self._source_of(image, label_maps)
        settings = self._changed(negative_prompt, num_inference_steps, guidance_scale)
        specs = [
            SampleSpec(one, text, seed, source)
            for one, text, seed in zip(label_maps, prompts, seeds, strict=True)
        ]
        arrays = [self._generate(settings, spec) for spec in specs]
        images: Any = [Image.fromarray(array) for array in arrays]
        if output_type == "np":
            images = np.stack(arrays).astype(np.float32) / 255
        return StreetPipelineOutput(images, seeds) if return_dict else (images,)

    def _source_of(
        self, image: SourceImage | None, label_maps: Sequence[np.ndarray]
    ) -> np.ndarray | None:
        """Return the source image if the settings use one; it must be given then, and only then."""
        if self.settings.needs_source_images != (image is not None):
            word = "needs" if image is None else "does not use"
            raise UserError(
                f"image: the pipeline {word} a source image, by its settings second_control, "
                "strength and color_transfer"
            )
        return None if image is None else as_source_of(image, label_maps)

    def _changed(
        self, negative_prompt: str | None, steps: int | None, guidance_scale: float | None
    ) -> Config:
        """Return the settings of one call."""
        settings = self.settings
        if negative_prompt is not None:
            require_text(negative_prompt)
            settings = replace(settings, negative_prompt=negative_prompt)
        if steps is not None:
            settings = replace(settings, steps=steps)
        if guidance_scale is not None:
            settings = replace(settings, guidance_scale=guidance_scale)
        return settings

    def _generate(self, settings: Config, spec: SampleSpec) -> np.ndarray:
        """Return the image HxWx3 uint8 of one label map, whose size becomes that of the crop."""
        height, width = spec.label.shape
        settings = replace(settings, crop_px=(height, width))
        settings.check()
        settings.sizes.check()
        if self._networks is None:
            self._networks = load_networks(settings, self.device)
        with _threads(settings.cpu_threads, self.device):
            self._networks.set_scheduler(settings)
            sample = Sampler(self._networks, settings).generate_all([spec])[0]
        if sample.image is None:
            raise UserError(
                f"seed {spec.seed}: {sample.problem}; try another seed or other settings"
            )
        return sample.image

    def save_pretrained(self, folder: str | Path) -> None:
        """Write a stock ControlNet pipeline folder of diffusers, with our settings beside it."""
        import diffusers

        require_writable(Path(folder), "folder")
        base = models.find_base(self.settings.base)
        index = models.load_index(base)
        control = models.find_folder(self.settings.controlnet, "controlnet")
        names = [name for name in models.COMPONENTS if (index.get(name) or [None])[0]]
        parts = {name: models.load_component(base, name) for name in names}
        parts["controlnet"] = models.load_network("controlnet", base, control)
        if self.settings.unet:
            swapped = models.find_folder(self.settings.unet, "unet")
            parts["unet"] = models.load_network("unet", base, swapped)
        parts["scheduler"] = models.load_scheduler(base, index["scheduler"][1])
        if "text_encoder_2" in parts:
            zeros = bool(index.get("force_zeros_for_empty_prompt"))
            pipe = diffusers.StableDiffusionXLControlNetPipeline(
                **parts, force_zeros_for_empty_prompt=zeros, add_watermarker=False
            )
        else:
            pipe = diffusers.StableDiffusionControlNetPipeline(
                **parts, safety_checker=None, feature_extractor=None, requires_safety_checker=False
            )
        pipe.save_pretrained(folder, safe_serialization=True)
        if head := find_correction_head(self.settings):
            network = models.load_network("segmentation_head", base, head)
            network.save_pretrained(Path(folder) / head_files.FOLDER)
        kept = to_mapping(self.settings)
        for name in OF_THE_FOLDER:
            del kept[name]
        del kept["correction"]["head"]  # it lies beside the ControlNet
        files.write_json(Path(folder) / SETTINGS_FILE, kept)
        brought = {name: kept[name] for name in OF_THE_BASE}  # for those who name it as a base
        files.write_json(Path(folder) / base_defaults.SETTINGS_FILE, {"generation": brought})


@contextlib.contextmanager
def _threads(count: int, device: torch.device) -> Iterator[None]:
    """Use the settings' number of threads on a CPU: it changes the last bits of an image."""
    before = torch.get_num_threads()
    if device.type == "cpu":
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
