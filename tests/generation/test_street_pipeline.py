"""The pipeline class draws what the program draws, and saves what diffusers loads."""

import sys
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from PIL import Image

from generation import run
from generation.pipeline_inputs import as_source
from generation.sampler.sampler import Sampler
from generation.street_pipeline import SETTINGS_FILE, StreetPipeline
from pipeline.dataset import open_dataset
from pipeline.errors import UserError
from pipeline.images import read_image
from pipeline.reading import read_json

PROMPT = "a city street scene with road and car, in snowy weather"
PARTS = ("base", "controlnet", "unet")


@pytest.fixture(scope="module")
def pipe(tiny_config) -> StreetPipeline:
    left_out = (*PARTS, "prompt", "output")
    settings = {k: v for k, v in asdict(tiny_config).items() if k not in left_out}
    return StreetPipeline.from_pretrained(tiny_config.base, tiny_config.controlnet, **settings)


@pytest.fixture(scope="module")
def label(make_label) -> np.ndarray:
    return make_label(32, 64)


def pixels(output) -> np.ndarray:
    return np.array(output.images[0])


def test_row_of_the_program_gives_its_image(pipe, flags, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["run.py", *flags, "--n", "1", "--output", str(tmp_path)])
    assert not run.main()
    (sample,) = open_dataset(tmp_path, labelled=True)
    generated = pipe(sample.label, sample.caption, generator=sample.row["seed"])
    assert np.array_equal(pixels(generated), read_image(sample.image))


def test_generators_stand_for_seeds_and_move_on(pipe, networks, tiny_config, label):
    expected = Sampler(networks, tiny_config).generate(label, PROMPT, 7).image
    assert np.array_equal(pixels(pipe(label, PROMPT, generator=7)), expected)
    fresh = torch.Generator().manual_seed(7)
    assert np.array_equal(pixels(pipe(label, PROMPT, generator=fresh)), expected)
    further = pipe(label, PROMPT, generator=fresh)
    assert not np.array_equal(pixels(further), expected)
    assert np.array_equal(pixels(pipe(label, PROMPT, generator=further.seeds[0])), pixels(further))


def test_one_label_several_prompts_and_kinds_of_output(pipe, label):
    output = pipe(label, [PROMPT, "road"], generator=[3, 4], num_inference_steps=1)
    assert [image.size for image in output.images] == [(64, 32)] * 2 and output.seeds == [3, 4]
    (array,) = pipe(
        label, "road", generator=4, num_inference_steps=1, output_type="np", return_dict=False
    )
    assert array.shape == (1, 32, 64, 3) and array.dtype == np.float32
    assert np.array_equal((array[0] * 255).round(), np.array(output.images[1]))
    plain = pipe(label, PROMPT, generator=3, num_inference_steps=1, guidance_scale=1.0)
    other = pipe(label, PROMPT, "fog", generator=3, num_inference_steps=1)
    for changed in (plain, other):
        assert not np.array_equal(pixels(changed), pixels(output))


def test_labels_come_in_many_forms(pipe, label, tmp_path):
    image = Image.fromarray(label)
    image.save(tmp_path / "a.png")
    forms = [label.astype(np.int64), image, tmp_path / "a.png", torch.from_numpy(label)]
    generated = pipe(forms, "road", generator=1, num_inference_steps=1)
    nested = pipe(label.tolist(), "road", generator=1, num_inference_steps=1)
    assert len({i.tobytes() for i in [*generated.images, *nested.images]}) == 1


def test_threads_of_the_process_stay_as_they_are(pipe, label):
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    pipe(label, "road", generator=1, num_inference_steps=1)
    assert torch.get_num_threads() == 2
    torch.set_num_threads(before)


@pytest.mark.parametrize(("changes", "message"), [
    ({"label": np.full((32, 64), 19)}, r"ids \[19\] are outside"),
    ({"label": np.full((32, 64), -1)}, "give train ids 0..18"),
    ({"label": np.zeros((32, 64, 3), np.uint8)}, "give HxW whole numbers"),
    ({"label": np.zeros((32, 64))}, "give HxW whole numbers"),
    ({"label": Image.new("RGB", (64, 32))}, "mode RGB"),
    ({"label": np.zeros((8, 64), np.uint8)}, "tile height exceeds"),
    ({"image": np.zeros((32, 64, 3), np.uint8)}, "does not use a source image"),
    ({"prompt": ["a", "b"], "generator": [1, 2, 3]}, "equally many"),
    ({"label": [], "prompt": [], "generator": []}, "0 labels, 0 prompts and 0 generators"),
    ({"output_type": "jpg"}, "use 'pil' or 'np'"),
    ({"num_inference_steps": 0}, "--steps 0: must be in 1..1000"),
])  # fmt: skip
def test_bad_input_is_one_line(tiny_config, label, changes, message):
    new = StreetPipeline(tiny_config)
    with pytest.raises(UserError, match=message) as caught:
        new(**{"label": label, "prompt": "road", **changes})
    assert "\n" not in str(caught.value)


def test_bad_parts_are_found_before_weights_are_read(tiny_config):
    with pytest.raises(UserError, match="base model 'no/such'"):
        StreetPipeline.from_pretrained("no/such")
    with pytest.raises(UserError, match=r"has no config\.json"):
        StreetPipeline.from_pretrained(tiny_config.base, "no/such")
    with pytest.raises(UserError, match="unknown key 'colour'"):
        StreetPipeline.from_pretrained(colour="red")


def test_saved_folder_gives_the_same_image_and_is_a_stock_pipeline(pipe, label, tmp_path):
    from diffusers import StableDiffusionControlNetPipeline

    pipe.save_pretrained(tmp_path)
    assert "base" not in read_json(tmp_path / SETTINGS_FILE)
    again = StreetPipeline.from_pretrained(tmp_path)
    assert again.settings.tile_px == pipe.settings.tile_px
    generated = [pixels(p(label, PROMPT, generator=5)) for p in (pipe, again)]
    assert np.array_equal(*generated)
    assert StreetPipeline.from_pretrained(tmp_path, steps=2).settings.steps == 2
    stock = StableDiffusionControlNetPipeline.from_pretrained(tmp_path)
    assert stock.controlnet.config.conditioning_channels == 20


def test_saved_folder_holds_the_swapped_unet(pipe, tiny_config, tiny_base, label, tmp_path):
    from diffusers import UNet2DConditionModel

    unet = UNet2DConditionModel.from_pretrained(tiny_base, subfolder="unet")
    with torch.no_grad():
        unet.conv_out.weight.mul_(0.5)
    unet.save_pretrained(tmp_path / "unet")
    tuned = StreetPipeline(replace(pipe.settings, unet=str(tmp_path / "unet")))
    tuned.save_pretrained(tmp_path / "saved")
    again = StreetPipeline.from_pretrained(tmp_path / "saved")
    generated = [pixels(p(label, "road", generator=5)) for p in (pipe, tuned, again)]
    assert np.array_equal(generated[1], generated[2]) and not np.array_equal(
        generated[0], generated[1]
    )


def test_xl_base_is_saved_and_generates_the_same(family_base, tmp_path, label):
    from diffusers import ControlNetModel, StableDiffusionXLControlNetPipeline, UNet2DConditionModel

    base = family_base("sdxl")
    unet = UNet2DConditionModel.from_pretrained(base, subfolder="unet")
    net = ControlNetModel.from_unet(
        unet, conditioning_embedding_out_channels=(4, 8, 8), conditioning_channels=20
    )
    net.save_pretrained(tmp_path / "controlnet")
    pipe = StreetPipeline.from_pretrained(
        base, tmp_path / "controlnet", tile_px=[16, 32], stride_px=[8, 16], steps=1
    )
    pipe.save_pretrained(tmp_path / "saved")
    again = StreetPipeline.from_pretrained(tmp_path / "saved")
    assert np.array_equal(*(pixels(p(label, "road", generator=5)) for p in (pipe, again)))
    StableDiffusionXLControlNetPipeline.from_pretrained(tmp_path / "saved")


def test_starts_from_a_source_image(tiny_config, label):
    pipe = StreetPipeline(replace(tiny_config, strength=0.5))
    with pytest.raises(UserError, match="needs a source image"):
        pipe(label, "road")
    images = [
        pipe(label, "road", generator=0, image=np.full((32, 64, 3), value, np.uint8)).images[0]
        for value in (0, 255)
    ]
    assert images[0].size == (64, 32) and images[0].tobytes() != images[1].tobytes()


def test_source_images_come_in_many_forms(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (8, 12, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    image.save(tmp_path / "a.png")
    same = [pixels, image, tmp_path / "a.png", str(tmp_path / "a.png"), pixels.astype(np.int64),
            (pixels / 255).astype(np.float32), image.convert("RGBA")]  # fmt: skip
    for form in same:
        assert np.array_equal(as_source(form), pixels)
    grey = np.array(image.convert("L"))
    for form in (image.convert("L"), grey, grey[..., None], grey / 255):
        assert np.array_equal(as_source(form), np.repeat(grey[..., None], 3, 2))
    palette = image.quantize(16)
    assert np.array_equal(as_source(palette), np.array(palette.convert("RGB")))


@pytest.mark.parametrize("image", [
    np.zeros((8, 12, 4), np.uint8), np.zeros(8, np.uint8), np.full((8, 12, 3), 256),
    np.full((8, 12, 3), -1), np.full((8, 12, 3), 1.5), np.full((8, 12, 3), np.nan),
    np.zeros((8, 12, 3), bool), np.zeros((0, 12, 3), np.uint8), Image.new("I;16", (12, 8)),
    Image.new("F", (12, 8)), "no/such.png",
])  # fmt: skip
def test_source_images_that_cannot_be_read_rightly_are_one_line(image):
    with pytest.raises(UserError) as caught:
        as_source(image)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("seed", [-1, 2**64, 1.5, "1"])
def test_seeds_out_of_range_are_one_line(tiny_config, label, seed):
    with pytest.raises(UserError, match="generator"):
        StreetPipeline(tiny_config)(label, "road", generator=seed)
