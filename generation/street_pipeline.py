"""The generator as a class for notebooks, in the manner of a diffusers pipeline.

    pipe = StreetPipeline.from_pretrained()                # the pocket model; .to("cuda") elsewhere
    image = pipe(label, "a city street scene with road and car, in snowy weather").images[0]

It draws exactly what `generation/run.py` draws: the label, prompt and seed of a row give the row's
image, by the same settings on the same kind of device.
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

from generation.sampler.networks import Networks, load_networks
from generation.sampler.sampler import Request, Sampler
from generation.settings import NOT_IN_DIGEST, OF_THE_BASE, Config, default_config
from generation.sizes import check_canvas
from pipeline import base_defaults, files, labels, models
from pipeline.config import from_layers, from_mapping, to_mapping, with_base
from pipeline.errors import UserError
from pipeline.images import read_image
from pipeline.output_folders import require_writable
from pipeline.reading import read_json
from pipeline.yaml_files import load_preset

SETTINGS_FILE = "street_pipeline.json"
OF_THE_FOLDER = ("base", "unet", "controlnet", *NOT_IN_DIGEST)  # not settings of a saved pipeline
Label = np.ndarray | Image.Image | str | Path
Picture = np.ndarray | Image.Image | str | Path
PLAIN_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr")  # 8 bits a channel
Seed = torch.Generator | int | np.integer | None


@dataclass
class StreetPipelineOutput(BaseOutput):
    """The images of one call and the seed of each, which repeats it as `generator`.

    `images`: PIL images, or BxHxWx3 float32 in 0..1.
    """

    images: list[Image.Image] | np.ndarray
    seeds: list[int]


class StreetPipeline:
    """Draws street scenes from label maps. `settings` are those of `generation/run.py`.

    Weights are read for the first image, straight to the device.
    """

    def __init__(self, settings: Config, device: str | torch.device = "cpu") -> None:
        models.find_base(settings.base)
        models.find_folder(settings.controlnet, "controlnet")
        if settings.unet:
            models.find_folder(settings.unet, "unet")
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
        """Draw on another device from now on."""
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
        image: Picture | None = None,
        output_type: Literal["pil", "np"] = "pil",
        return_dict: bool = True,
    ) -> StreetPipelineOutput | tuple[Any]:
        """Draw one image per label and prompt; a single one is used for all.

        `label`: HxW train ids with void 255, or the path of such a PNG. `generator`: a seed, or a
        torch.Generator, which stands for its seed when fresh and gives new seeds after that.
        `image`: the source image, of the label's size, for settings with a second control, a
        strength below 1 or the source's details: a path, a PIL image, HxWx3 or HxW integers in
        0..255, or such floats in 0..1.
        """
        if output_type not in ("pil", "np"):
            raise UserError(f"output_type {output_type!r}: use 'pil' or 'np'")
        lists = [_as_list(value) for value in (label, prompt, generator)]
        count = max(map(len, lists))
        if any(len(values) not in (1, count) for values in lists):
            raise UserError(
                f"{len(lists[0])} labels, {len(lists[1])} prompts and {len(lists[2])} generators; "
                "give one of each, or equally many"
            )
        changes = {
            "negative_prompt": negative_prompt,
            "steps": num_inference_steps,
            "guidance_scale": guidance_scale,
        }
        settings = replace(self.settings, **{k: v for k, v in changes.items() if v is not None})
        maps, prompts, generators = (v * (count // len(v)) for v in lists)
        maps, seeds = [as_label(one) for one in maps], [_seed(one) for one in generators]
        for text in (*prompts, settings.negative_prompt):
            if not isinstance(text, str):
                raise UserError(f"prompt {text!r}: must be text")
        if output_type == "np" and len({one.shape for one in maps}) > 1:
            raise UserError("output_type 'np': the labels differ in size; use 'pil'")
        if self.settings.needs_source_images != (image is not None):
            word = "needs" if image is None else "does not use"
            raise UserError(
                f"image: the pipeline {word} a source image, by its settings second_control, "
                "strength and color_transfer"
            )
        source = None if image is None else as_source(image)
        for one in maps if source is not None else ():
            if source.shape[:2] != one.shape:
                raise UserError(
                    f"image: {source.shape[1]}x{source.shape[0]} px, but its label is "
                    f"{one.shape[1]}x{one.shape[0]}; both must have the same size"
                )
        images = [
            self._draw(replace(settings, crop_px=one.shape), one, text, seed, source)
            for one, text, seed in zip(maps, prompts, seeds, strict=True)
        ]
        if output_type == "np":
            pictures: Any = np.stack(images).astype(np.float32) / 255
        else:
            pictures = [Image.fromarray(image) for image in images]
        return StreetPipelineOutput(pictures, seeds) if return_dict else (pictures,)

    def _draw(
        self,
        settings: Config,
        label: np.ndarray,
        prompt: str,
        seed: int,
        source: np.ndarray | None,
    ) -> np.ndarray:
        settings.check()
        check_canvas(settings)
        if self._networks is None:
            self._networks = load_networks(settings, self.device)
        with _threads(settings.cpu_threads, self.device):
            self._networks.set_scheduler(settings)
            request = Request(label, prompt, seed, source)
            picture = Sampler(self._networks, settings).generate_all([request])[0]
        if picture.image is None:
            raise UserError(f"seed {seed}: {picture.problem}; try another seed or other settings")
        return picture.image

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
        kept = to_mapping(self.settings)
        for name in OF_THE_FOLDER:
            del kept[name]
        files.write_json(Path(folder) / SETTINGS_FILE, kept)
        brought = {name: kept[name] for name in OF_THE_BASE}  # for those who name it as a base
        files.write_json(Path(folder) / base_defaults.SETTINGS_FILE, {"generation": brought})


def as_label(label: Label) -> np.ndarray:
    """Return HxW uint8 train ids of an array, a grey or palette image, or the path of a PNG."""
    if isinstance(label, str | Path):
        return labels.read_label(label)
    if isinstance(label, Image.Image):
        labels.check_label_mode(label.mode, colors=False)
    ids = np.asarray(label)
    if ids.ndim != 2 or not ids.size or ids.dtype.kind not in "iu":
        raise UserError(f"label of shape {ids.shape}, {ids.dtype}: give HxW whole numbers")
    if ids.min() < 0 or ids.max() > labels.VOID:
        raise UserError(f"label: ids {ids.min()} to {ids.max()}; give train ids 0..18, void 255")
    ids = ids.astype(np.uint8)
    labels.check_ids(ids, "label")
    return ids


def as_source(image: Picture) -> np.ndarray:
    """Return HxWx3 uint8 RGB of a source image in any of the forms a call takes."""
    if isinstance(image, str | Path):
        return read_image(Path(image))
    if isinstance(image, Image.Image):
        if image.mode not in PLAIN_MODES:
            raise UserError(f"image: has mode {image.mode}; convert it to 8-bit RGB")
        return np.array(image.convert("RGB"))
    values = np.asarray(image)
    grey = values.ndim == 2 or (values.ndim == 3 and values.shape[2] == 1)
    if not (grey or (values.ndim == 3 and values.shape[2] == 3)) or not values.size:
        raise UserError(f"image of shape {values.shape}: give HxWx3 or HxW")
    if values.dtype.kind not in "uif":
        raise UserError(f"image of {values.dtype}: give integers in 0..255 or floats in 0..1")
    highest = 1 if values.dtype.kind == "f" else 255
    low, high = values.min(), values.max()
    if not 0 <= low <= high <= highest:  # not a number is neither
        raise UserError(
            f"image: values {low:g} to {high:g}; give integers in 0..255 or floats in 0..1"
        )
    pixels = np.round(values * (255 / highest)).astype(np.uint8)
    return np.repeat(pixels.reshape(*values.shape[:2], 1), 3, 2) if grey else pixels


def _as_list(value: Any) -> list[Any]:
    """Return several values as a list; nested lists of numbers are one label."""
    if isinstance(value, list | tuple) and not (value and isinstance(value[0], list)):
        return list(value)
    return [value]


def _seed(generator: Seed) -> int:
    """Return the seed an image starts from; a generator moves on, so it never gives one twice."""
    if isinstance(generator, int | np.integer):
        if not 0 <= generator < 2**64:
            raise UserError(f"generator {generator}: a seed must be in 0..{2**64 - 1}")
        return int(generator)
    if generator is not None and not isinstance(generator, torch.Generator):
        raise UserError(f"generator {generator!r}: give a seed or a torch.Generator")
    stream = torch.default_generator if generator is None else generator
    start = stream.initial_seed()
    fresh = torch.Generator(stream.device).manual_seed(start).get_state()
    used = not torch.equal(fresh, stream.get_state())
    drawn = int(torch.randint(2**62, (1,), generator=stream, device=stream.device))
    return drawn if used else start


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
