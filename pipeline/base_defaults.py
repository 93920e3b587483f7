"""Settings that come with a base model: sizes, steps, guidance, words.

The size is the one that the base's own config files tell (`sample_size` of the U-Net, in latent
pixels of its VAE), and Stable Diffusion XL gets the guidance that diffusers gives it. A base folder
may hold `streetforge.json`, settings by stage, as the built-in model does; they go before these,
and what a user states goes before all. Nothing here imports torch.
"""

from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

from pipeline.config import from_mapping
from pipeline.errors import UserError
from pipeline.models import find_base
from pipeline.reading import read_json
from pipeline.renamed_settings import refuse_old_key
from pipeline.size_grid import size_grid

T = TypeVar("T")
SETTINGS_FILE = "streetforge.json"
XL_GUIDANCE = 5.0  # of diffusers' StableDiffusionXLPipeline; 1.x and 2.x have 7.5


def with_base_defaults(cls: type[T], stage: str, allowed: tuple[str, ...]) -> Callable[[str], T]:
    """Return a function from the name of a base to the defaults of `cls` with it.

    `stage` is the section of `streetforge.json`, `allowed` the settings it may name: a folder of
    somebody else says how to generate with its model, not which files to read or write.
    """
    known = {field.name for field in fields(cls)}  # type: ignore[arg-type]

    def defaults(base: str) -> T:
        found = find_base(base)
        stated = from_mapping(cls, _stated(found, stage, known), base)
        path = _file(found, SETTINGS_FILE)
        if path is None:
            return stated
        settings = read_json(path, dict).get(stage, {})
        if not isinstance(settings, dict):
            raise UserError(f"{path}: {stage}: is not a mapping of settings; correct or remove it")
        for name in settings:
            refuse_old_key(cls, name, f"{path}: {stage}")
        if strange := sorted(set(settings) - set(allowed)):
            raise UserError(
                f"{path}: {stage}: {strange[0]!r} is not for a base model to set; remove it "
                f"(it may set {', '.join(allowed)})"
            )
        own = {name: value for name, value in settings.items() if name in known}
        try:
            return from_mapping(cls, own, f"{path}: {stage}", stated)
        except UserError as error:  # ranges name the flag, which nobody gave
            named = str(error).startswith(str(path))
            raise error if named else UserError(f"{path}: {stage}: {error}") from None

    return defaults


def native_size(base: str) -> tuple[int, int] | None:
    """Return height and width in pixels of the images that a base was trained on.

    None where its config files do not tell, or are not on this disk.
    """
    unet, vae = (read_config(base, part) for part in ("unet", "vae"))
    if unet is None or vae is None:
        return None
    sample = unet.get("sample_size")
    size = [sample, sample] if isinstance(sample, int) else sample
    levels = vae.get("block_out_channels")
    if not (isinstance(size, list) and len(size) == 2 and isinstance(levels, list) and levels):
        return None
    if not all(type(n) is int and 0 < n <= 4096 for n in size):
        return None
    factor = size_grid(len(levels), 1).vae_scale_factor
    return size[0] * factor, size[1] * factor


def read_config(base: str, part: str) -> dict[str, Any] | None:
    """Return the `config.json` of a part of a base; None if it is not on this disk."""
    path = _file(base, f"{part}/config.json")
    return None if path is None else read_json(path, dict)


def _stated(base: str, stage: str, known: set[str]) -> dict[str, Any]:
    """Return the settings of `stage` that follow from the base's config files."""
    size = native_size(base)
    if stage == "finetune":
        return {"crop": {"size_px": list(size)}} if size and "crop" in known else {}
    settings: dict[str, Any] = {}
    if size:
        settings = {"crop_px": list(size), "tile_px": list(size)}
        settings["stride_px"] = [n // 2 for n in size]
    if (read_config(base, "unet") or {}).get("addition_embed_type") == "text_time":
        settings["guidance_scale"] = XL_GUIDANCE
    return settings


def _file(base: str, name: str) -> Path | None:
    """Return where a file of a base is on this disk: in its folder, or in the hub's cache."""
    if Path(base).is_dir():
        path = Path(base) / name
        return path if path.is_file() else None
    from huggingface_hub import try_to_load_from_cache

    repository, _, revision = base.partition("@")
    found = try_to_load_from_cache(repository, name, revision=revision)
    return Path(found) if isinstance(found, str) else None
