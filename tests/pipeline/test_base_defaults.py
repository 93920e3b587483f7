"""Sizes, steps, guidance and words come with the base model, and stated settings win."""

import json
import shutil
from pathlib import Path

import pytest

from finetune import controlnet
from finetune import settings as finetune_settings
from generation.prompts import Grammar
from generation.settings import Config, default_config
from generation.street_pipeline import StreetPipeline
from pipeline.base_defaults import SETTINGS_FILE, native_size, with_base_defaults
from pipeline.config import parse
from pipeline.errors import UserError


def config_files(folder: Path, sample_size: object, levels: int = 4) -> str:
    """Write the two config files that tell a size."""
    for part, content in (
        ("unet", {"sample_size": sample_size}),
        ("vae", {"block_out_channels": [8] * levels}),
    ):
        (folder / part).mkdir(parents=True, exist_ok=True)
        (folder / part / "config.json").write_text(json.dumps(content))
    return str(folder)


@pytest.mark.parametrize(("sample_size", "size"), [
    (64, (512, 512)),  # Stable Diffusion 1.x and 2.1-base
    (96, (768, 768)),  # 2.1
    (128, (1024, 1024)),  # XL
    ([16, 32], (128, 256)),
    (None, None), ("64", None), ([64], None), (0, None), (-64, None), (10**9, None), (True, None),
])  # fmt: skip
def test_size_follows_from_the_models_own_config(tmp_path, sample_size, size):
    assert native_size(config_files(tmp_path, sample_size)) == size


def test_size_of_a_folder_without_config_files_is_not_known(tmp_path):
    assert native_size(str(tmp_path)) is None


def test_settings_of_the_built_in_model():
    config = default_config("pocket")
    assert (config.crop_px, config.tile_px, config.stride_px) == ((128, 256), (64, 128), (32, 64))
    assert (config.steps, config.guidance_scale, config.canvas_scale) == (10, 2.0, 1.0)
    assert config.negative_prompt == "a city street scene with road"
    assert config.prompt.max_classes == 4 and "autumn" in config.prompt.conditions


@pytest.mark.parametrize(("family", "guidance"), [("sd15", 7.5), ("sd21", 7.5), ("sdxl", 5.0)])
def test_settings_of_a_family(family_base, family, guidance):
    base = str(family_base(family))
    config = default_config(base)
    assert (config.crop_px, config.tile_px, config.stride_px) == ((64, 64), (64, 64), (32, 32))
    assert (config.guidance_scale, config.negative_prompt) == (guidance, "")
    assert config.prompt == Grammar() and config.steps == 20
    assert StreetPipeline.from_pretrained(base).settings.tile_px == (64, 64)
    allowed = finetune_settings.SET_BY_BASE
    tuned = with_base_defaults(controlnet.Config, "finetune", allowed)(base)
    assert tuned.crop.size_px == (64, 64) and tuned.caption.template == "{classes}"


def test_flag_goes_before_file_and_file_before_base(tmp_path, family_base):
    file = tmp_path / "a.yaml"
    file.write_text(f"base: {family_base('sdxl')}\nsteps: 7\n")
    from_file, _ = parse(Config, "", ["--config", str(file)], defaults=default_config)
    assert (from_file.steps, from_file.guidance_scale) == (7, 5.0)
    words = ["--config", str(file), "--base", "pocket", "--tile-px", "32", "32"]
    from_flag, _ = parse(Config, "", words, defaults=default_config)
    assert (from_flag.steps, from_flag.guidance_scale) == (7, 2.0)
    assert (from_flag.tile_px, from_flag.stride_px) == ((32, 32), (32, 64))
    assert from_flag.base == "pocket"


@pytest.fixture
def own_base(tiny_base, tmp_path):
    """A function that gives a base folder the settings file of this content."""

    def give(content: str) -> str:
        folder = shutil.copytree(tiny_base, tmp_path / "base", dirs_exist_ok=True)
        (folder / SETTINGS_FILE).write_text(content)
        return str(folder)

    return give


def test_any_base_may_bring_settings(own_base):
    given = {
        "generation": {"tile_px": [32, 48], "prompt": {"max_classes": 2}},
        "finetune": {"caption": {"class_separator": "; "}},
    }
    base = own_base(json.dumps(given))
    config = default_config(base)
    assert config.tile_px == (32, 48) and config.prompt.max_classes == 2
    allowed = finetune_settings.SET_BY_BASE
    tuned = with_base_defaults(controlnet.Config, "finetune", allowed)(base)
    assert tuned.caption.class_separator == "; "


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"generation": {"output": "/tmp/x"}}', "'output' is not for a base model to set"),
        ('{"generation": {"layouts": "/etc"}}', "'layouts' is now called 'label_maps'"),
        ('{"generation": {"colour": 1}}', "'colour' is not for a base model to set"),
        ('{"generation": {"steps": "many"}}', "expected int"),
        ('{"generation": {"rcs_temperature": 1}}', "now called 'rare_classes.temperature'"),
        ('{"generation": [1]}', "is not a mapping of settings"),
        ("[]", "streetforge.json"),
        ('{"generation"', "streetforge.json"),
    ],
)
def test_settings_that_no_base_may_bring_are_one_line(own_base, content, message):
    with pytest.raises(UserError, match=message) as caught:
        default_config(own_base(content))
    assert "\n" not in str(caught.value)


def test_a_value_out_of_range_names_the_file_of_the_base(own_base):
    base = own_base(json.dumps({"finetune": {"caption": {"max_classes": -3}}}))
    read = with_base_defaults(controlnet.Config, "finetune", finetune_settings.SET_BY_BASE)
    with pytest.raises(UserError, match="json: finetune: --caption.max-classes -3: must be"):
        read(base)
