"""Style images: crops of the source in the colours and with the words of other images."""

import json
import math
import re
import shutil

import numpy as np
import pytest
from PIL import Image
from safetensors import safe_open

from finetune import controlnet, unet
from finetune.crops import sample_labelled_crop
from finetune.settings import Crop
from finetune.style_images import fill_style, open_style_images
from pipeline.dataset import open_dataset
from pipeline.dataset_writer import DatasetWriter
from pipeline.errors import UserError
from pipeline.row_colors import transfer_row_colors

TEMPLATE = "{classes}, {style}"
CONTROLNET = ("--rare-classes.min-pixels", "10", "--training.workers", "0")


@pytest.fixture
def night(tmp_path):
    """A factory of unlabelled folders of two dark images, dark blue above and dark red below."""

    def make(**row):
        folder = tmp_path / f"night{len(list(tmp_path.iterdir()))}"
        writer = DatasetWriter(folder, config={})
        for index in range(2):
            image = np.random.default_rng(index).integers(0, 12, (50, 90, 3)).astype(np.uint8)
            image[:25, :, 2] += 60
            image[25:, :, 0] += 60
            writer.write(index, image, None, row)
        return folder

    return make


def noise(seed: int, height: int, width: int, low: int, high: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(low, high, (height, width, 3)).astype(np.uint8)


def lightness(image: np.ndarray) -> np.ndarray:
    """Return Pillow's L* of each pixel, in 0..255."""
    from PIL import ImageCms

    lab = ImageCms.createProfile("LAB")
    transform = ImageCms.buildTransform(ImageCms.createProfile("sRGB"), lab, "RGB", "LAB")
    converted = ImageCms.applyTransform(Image.fromarray(image), transform)
    assert converted is not None
    return np.asarray(converted)[..., 0].astype(float)


def test_rows_take_on_mean_and_contrast_of_the_target_at_the_same_height():
    source, target = noise(0, 100, 400, 100, 160), noise(1, 60, 300, 100, 220)
    target[:30] //= 4  # dark above
    moved, wanted = lightness(transfer_row_colors(source, target)), lightness(target)
    for share in (0.1, 0.9):  # away from the border, where the window mixes both halves
        of_target = wanted[int(60 * share) - 4 : int(60 * share) + 4]
        of_result = moved[int(100 * share) - 7 : int(100 * share) + 7]
        assert math.isclose(of_result.mean(), of_target.mean(), abs_tol=3)
        assert math.isclose(of_result.std(), of_target.std(), rel_tol=0.2)
    assert moved.shape == (100, 400)


def test_an_image_in_its_own_colours_stays_the_same_and_flat_rows_stay_flat():
    image = noise(2, 64, 128, 20, 230)
    assert np.abs(transfer_row_colors(image, image).astype(int) - image).max() <= 1
    flat = np.full((64, 128, 3), 90, np.uint8)
    assert transfer_row_colors(flat, image).std(1).max() == 0


def test_colours_follow_the_height_in_the_scene_and_not_in_the_crop(tiny_dataset, night):
    samples = open_dataset(tiny_dataset(n=1, h=64, w=128), labelled=True)
    styles = open_style_images((str(night()),), "--prompt", "")
    assert styles is not None
    rng = np.random.default_rng(0)
    above = below = 0
    for _ in range(40):
        image, _ = sample_labelled_crop(rng, samples, Crop((16, 16), (1.0,)), None, styles(rng))
        red, _, blue = image.reshape(-1, 3).mean(0)
        above, below = above + (blue > 2 * red), below + (red > 2 * blue)
    assert above > 5 and below > 5


def test_captions_name_the_style_and_labels_stay(call, tiny_dataset, night, tmp_path):
    data = tiny_dataset(n=3)
    call(
        controlnet, "--data", data, "--style-images", night(style="at night"), *CONTROLNET,
        "--caption.template", TEMPLATE, "--cached-crops", "6", "--training.steps", "2",
        "--output", tmp_path / "run",
    )  # fmt: skip
    (shard,) = (tmp_path / "run" / "cache").glob("*.safetensors")
    with safe_open(shard, framework="pt") as cache:
        captions = json.loads(cache.metadata()["captions"])
    assert len(captions) == 6 and all(c.endswith(", at night") for c in captions)


def test_the_prompt_of_the_unet_names_the_style(call, tiny_dataset, night, tmp_path):
    call(
        unet, "--data", tiny_dataset(n=3), "--style-images", night(style="at night"),
        "--prompt", "a street, {style}", "--cached-crops", "4", "--caption-dropout", "0.5",
        "--training.steps", "2", "--output", tmp_path / "run",
    )  # fmt: skip
    (shard,) = (tmp_path / "run" / "cache").glob("*.safetensors")
    with safe_open(shard, framework="pt") as cache:
        assert json.loads(cache.metadata()["captions"]) == ["a street, at night"] * 4


@pytest.mark.parametrize("program", [controlnet, unet])
def test_resume_is_exact_and_the_style_changes_the_weights(
    program, call, tiny_dataset, night, tmp_path, same_weights
):
    name = program.__name__.rpartition(".")[2]
    more = CONTROLNET if name == "controlnet" else ()
    command = [
        program, "--data", tiny_dataset(n=3), *more, "--training.checkpoint-interval", "2",
        "--training.steps", "4",
    ]  # fmt: skip
    styled = ["--style-images", night(prompt="at night")]
    straight, resumed, plain = (tmp_path / run for run in ("straight", "resumed", "plain"))
    call(*command, *styled, "--output", straight)
    shutil.copytree(straight, resumed)
    (resumed / "finished.json").unlink()
    for folder in (name, "checkpoints/step-00000004"):
        shutil.rmtree(resumed / folder)
    call(*command, *styled, "--output", resumed)
    call(*command, "--output", plain)
    assert same_weights(straight / name, resumed / name)
    assert not same_weights(straight / name, plain / name)


def test_a_run_is_not_continued_with_other_style_images(call, tiny_dataset, night, tmp_path):
    command = (unet, "--data", tiny_dataset(n=3), "--output", tmp_path / "run")
    folder = night(style="at night")
    call(*command, "--training.steps", "1", "--style-images", folder)
    with pytest.raises(UserError, match="style_images"):
        call(*command, "--training.steps", "1")


@pytest.mark.parametrize(
    ("row", "folder", "message"),
    [
        ({}, True, "has neither `style` nor `prompt`; add one, or leave {style} out of SETTING"),
        ({"style": "at night"}, False, "SETTING 'TEMPLATE': {style} needs --style-images"),
        ({"style": "at night " * 60}, True, "with the style 'at night"),
        ({"style": ["at", "night"]}, True, "`style` of row 00000000 is no text"),
    ],
)
@pytest.mark.parametrize(
    ("program", "setting", "template"),
    [(controlnet, "--caption.template", TEMPLATE), (unet, "--prompt", "a street, {style}")],
)
def test_bad_styles_are_named_before_anything_is_written(
    row, folder, message, program, setting, template, call, tiny_dataset, night, tmp_path
):
    styled = ("--style-images", night(**row)) if folder else ()
    more = CONTROLNET if program is controlnet else ()
    message = message.replace("SETTING", setting).replace("TEMPLATE", template)
    with pytest.raises(UserError, match=re.escape(message)):
        call(
            program, "--data", tiny_dataset(n=3), *styled, *more, setting, template,
            "--training.steps", "1", "--output", tmp_path / "run",
        )  # fmt: skip
    assert not (tmp_path / "run").exists()


def test_the_style_with_the_most_tokens_is_checked(call, tiny_dataset, night, tmp_path):
    """Rare letters take more tokens than common words of twice the length."""
    rare, common = night(style="\u0416" * 30), night(style="road sky car " * 6)
    with pytest.raises(UserError, match=f"of row 00000000 in {rare}"):
        call(
            unet, "--data", tiny_dataset(n=3), "--style-images", rare, common,
            "--prompt", "{style}", "--training.steps", "1", "--output", tmp_path / "run",
        )  # fmt: skip


def test_a_prompt_for_all_images_names_no_classes():
    with pytest.raises(UserError, match="may hold only {style} in braces"):
        unet.Config(prompt=TEMPLATE)


def test_the_output_may_not_lie_in_the_style_images(call, tiny_dataset, night):
    folder = night(style="at night")
    with pytest.raises(UserError, match="--style-images"):
        call(
            unet, "--data", tiny_dataset(n=3), "--style-images", folder,
            "--training.steps", "1", "--output", folder / "run",
        )  # fmt: skip


def test_rows_with_a_style_are_taken_by_it_and_others_by_their_caption(night):
    folder = str(night(style="at night", prompt="a street at night"))
    styles = open_style_images((folder,), "--prompt", "{style}")
    assert styles is not None and styles(np.random.default_rng(0)).text == "at night"
    assert fill_style("{classes}, {style}", "at night") == "{classes}, at night"
    styles = open_style_images((str(night(style="", prompt="road")),), "--prompt", "{style}")
    assert styles is not None and styles(np.random.default_rng(0)).text == ""
    assert fill_style("a street, {style}", "") == "a street"
    assert fill_style("a street, {style}, photo", "") == "a street, photo"
    assert fill_style("a street, ", "") == "a street, "
    styles = open_style_images((str(night(prompt="a street")),), "--prompt", "{style}")
    assert styles is not None and styles(np.random.default_rng(0)).text == "a street"
