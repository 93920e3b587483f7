"""The source's details in the generated image's colours."""

from dataclasses import replace

import cv2
import numpy as np
import pytest
from PIL import Image

from generation.inputs import read_inputs
from generation.sampler.color_transfer import transfer_details
from generation.sampler.sampler import Sampler
from generation.samples import SampleSpec
from pipeline.errors import UserError


@pytest.fixture
def scene(make_label):
    """A source image, a generated one and their label map, 64x96."""
    rng = np.random.default_rng(0)
    label = make_label(64, 96)
    source = rng.integers(60, 200, (64, 96, 3), dtype=np.uint8)
    generated = cv2.GaussianBlur(rng.integers(0, 256, (64, 96, 3), dtype=np.uint8), (0, 0), 4)
    return source, generated, label


def lightness(image):
    return cv2.cvtColor(image.astype(np.float32) / 255, cv2.COLOR_RGB2Lab)


def test_an_image_gives_itself_its_own_details(scene):
    source, _, label = scene
    for window_px in (0.5, 3.0, 20.0):
        result = transfer_details(source, source, label, window_px)
        assert np.abs(result.astype(int) - source).max() <= 1


def test_each_class_gets_mean_and_contrast_of_the_generated_image(scene):
    """With a window wider than the image the statistics are those of the whole class."""
    source, generated, label = scene
    result = transfer_details(generated, source, label, 1000.0)
    for class_id in (0, 10, 255):
        shown = label == class_id
        given, wanted, got = (lightness(im)[shown] for im in (source, generated, result))
        assert np.abs(got.mean(0) - wanted.mean(0)).max() < 1.0
        lowered = np.minimum(wanted.std(0), given.std(0))
        assert np.abs(got.std(0) - lowered).max() < 1.0
        for channel in range(3):  # an affine map of the source within the class
            assert np.corrcoef(got[:, channel], given[:, channel])[0, 1] > 0.9


def test_colours_stay_within_their_class(scene):
    """What the generated image shows beyond a class's border has no part in it."""
    source, generated, label = scene
    other = generated.copy()
    other[label == 10] = 255 - other[label == 10]
    first, second = (transfer_details(p, source, label, 6.0) for p in (generated, other))
    differs = (first != second).any(-1)
    assert differs[label == 10].mean() > 0.9 and not differs[label != 10].any()


def test_flat_regions_stay_flat_and_lone_pixels_take_the_generated_colour(scene):
    _, generated, label = scene
    label = label.copy()
    label[3, 5] = 18
    source = np.full_like(generated, 90)
    result = transfer_details(generated, source, label, 1000.0)
    assert (np.ptp(result[label == 0], axis=0) <= 1).all()
    assert np.abs(result[3, 5].astype(int) - generated[3, 5]).max() <= 1


def test_sampler_takes_details_from_the_source(networks, tiny_config, make_label):
    rng = np.random.default_rng(1)
    label, source = make_label(33, 61), rng.integers(0, 256, (33, 61, 3), dtype=np.uint8)
    config = replace(tiny_config, crop_px=(33, 61))  # padded to the grid and cropped
    request = SampleSpec(label, "road", 0, source)
    plain = Sampler(networks, config).generate_all([request])[0].image
    config = replace(config, color_transfer="source", color_transfer_window=0.2)
    sharp = Sampler(networks, config).generate_all([request])[0].image
    assert np.array_equal(sharp, transfer_details(plain, source, label, 0.2 * 33))


def test_label_maps_without_images_of_their_size_are_refused(tiny_config, tiny_dataset, tmp_path):
    config = replace(tiny_config, color_transfer="source", output=tmp_path / "out")
    stretched = tiny_dataset(1, 32, 64, folder=tmp_path / "stretched")
    Image.new("RGB", (100, 90)).save(stretched / "images" / "0000" / "00000000.png")
    for changes in ({}, {"color_transfer": "none", "strength": 0.5}):
        with pytest.raises(UserError, match="label is 64x32 but its image is 100x90"):
            read_inputs(replace(config, label_maps=str(stretched), **changes))
    with pytest.raises(UserError, match="--color-transfer source need their source images"):
        read_inputs(config)
    with pytest.raises(UserError, match="--color-transfer-window 0: must be above 0"):
        read_inputs(replace(config, color_transfer_window=0.0))
