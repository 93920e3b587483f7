"""The baseline without a diffusion model: colours of random collection images on the source."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from experiments import color_transfer
from pipeline.dataset import open_dataset, read_pair
from pipeline.dataset_writer import DatasetWriter
from pipeline.errors import UserError
from pipeline.images import read_image

WHITE = np.array([0.950456, 1.0, 1.088754])  # D65
TO_XYZ = np.array(
    [[0.412453, 0.357580, 0.180423], [0.212671, 0.715160, 0.072169], [0.019334, 0.119193, 0.950227]]
)


def lab(image: np.ndarray) -> np.ndarray:
    """CIE L*a*b* of an sRGB image by the formulas of the standard, float64."""
    value = image.astype(np.float64) / 255
    linear = np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)
    xyz = linear @ TO_XYZ.T / WHITE
    f = np.where(xyz > (6 / 29) ** 3, np.cbrt(xyz), xyz / (3 * (6 / 29) ** 2) + 4 / 29)
    return np.stack(
        [116 * f[..., 1] - 16, 500 * (f[..., 0] - f[..., 1]), 200 * (f[..., 1] - f[..., 2])], -1
    )


def muted(seed: int, mean: tuple[int, int, int], size: tuple[int, int] = (48, 64)) -> np.ndarray:
    """An image of small contrast, so that no value leaves 0..255 on the way."""
    noise = np.random.default_rng(seed).normal(0, 6, (*size, 3))
    return (np.array(mean) + noise).clip(0, 255).round().astype(np.uint8)


def test_reinhard_gives_the_mean_and_deviation_of_the_target() -> None:
    image, target = muted(0, (120, 130, 100)), muted(1, (90, 110, 150), (20, 30))
    result = lab(color_transfer.reinhard(image, target))
    np.testing.assert_allclose(result.mean((0, 1)), lab(target).mean((0, 1)), atol=0.15)
    np.testing.assert_allclose(result.std((0, 1)), lab(target).std((0, 1)), rtol=0.03)
    before, after = lab(image)[..., 0].ravel(), result[..., 0].ravel()
    assert np.corrcoef(before, after)[0, 1] > 0.98  # the drawing stays that of the source


def test_reinhard_of_a_flat_image_is_flat() -> None:
    flat = np.full((16, 16, 3), 80, np.uint8)
    result = color_transfer.reinhard(flat, muted(2, (150, 100, 90)))
    assert np.ptp(result.reshape(-1, 3), axis=0).max() <= 1


@pytest.mark.parametrize(
    ("height", "width", "beta", "half"), [(32, 64, 0.05, 1), (33, 47, 0.1, 3), (40, 40, 0.01, 0)]
)
def test_fda_swaps_the_low_amplitudes_and_keeps_the_phases(
    height: int, width: int, beta: float, half: int
) -> None:
    size = (height, width)
    wave = np.sin(np.arange(width) * 2 * np.pi / width)[None, :, None]
    wave = 25 * wave + 15 * np.cos(np.arange(height) * 2 * np.pi / height)[:, None, None]
    image, target = muted(3, (120, 130, 100), size), muted(4, (100, 140, 150), size)
    target = (target + wave).round().astype(np.uint8)
    result = color_transfer.fda(image, target, beta)
    for channel in range(3):
        spectra = [
            np.fft.fftshift(np.fft.fft2(i[..., channel].astype(float)))
            for i in (image, target, result)
        ]
        middle = np.s_[
            height // 2 - half : height // 2 + half + 1, width // 2 - half : width // 2 + half + 1
        ]
        wanted = np.abs(spectra[0])
        wanted[middle] = np.abs(spectra[1])[middle]
        # Rounding to 8 bits moves every coefficient by noise of sqrt(pixels / 12), the mean by 0.5.
        tolerance = 6 * np.sqrt(height * width / 12)
        error = np.abs(np.abs(spectra[2]) - wanted)
        assert error[height // 2, width // 2] <= 0.5 * height * width
        error[height // 2, width // 2] = 0
        assert error.max() < tolerance
        strong = np.abs(spectra[2]) > 5 * tolerance
        phase = np.angle(spectra[2] * np.conj(spectra[0]))
        assert strong.any() and np.abs(phase[strong]).max() < 0.3


def test_fda_takes_a_target_of_another_size() -> None:
    result = color_transfer.fda(muted(5, (100, 100, 100)), muted(6, (160, 90, 60), (10, 20)), 0.01)
    np.testing.assert_allclose(result.mean((0, 1)), (160, 90, 60), atol=1.5)


def call(monkeypatch: pytest.MonkeyPatch, *words: object) -> None:
    monkeypatch.setattr(sys, "argv", ["color_transfer.py", *map(str, words)])
    color_transfer.main()


def test_the_program_writes_the_sources_labels_under_colours_of_the_collection(
    tiny_dataset: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tiny_dataset(5, 32, 64, seed=1)
    collection = tmp_path / "collection"
    writer = DatasetWriter(collection, config={})
    for index, (mean, condition) in enumerate([((200, 60, 60), "dusk"), ((40, 60, 160), "night")]):
        writer.write(index, muted(index, mean), None, {"condition": condition})
    words = ("--source", source, "--collection", collection, "--output")
    call(monkeypatch, *words, tmp_path / "a", "--n", 4)
    call(monkeypatch, *words, tmp_path / "a", "--n", 5)  # a larger n adds
    call(monkeypatch, *words, tmp_path / "b", "--n", 5)
    first, again = (open_dataset(tmp_path / name, labelled=True) for name in "ab")
    looks = {s.id: read_image(s.image) for s in open_dataset(collection, labelled=False)}
    assert len(first) == 5
    assert {s.row["condition"] for s in first} <= {"dusk", "night"}
    for made, twin, original in zip(first, again, open_dataset(source, labelled=True), strict=True):
        assert made.image.read_bytes() == twin.image.read_bytes()
        image, label = read_pair(made)
        np.testing.assert_array_equal(label, read_pair(original)[1])
        goal = looks[made.row["colors_of"]]
        expected = color_transfer.reinhard(read_pair(original)[0], goal)
        np.testing.assert_array_equal(image, expected)
    call(monkeypatch, *words, tmp_path / "rows", "--n", 2, "--method", "reinhard_rows")
    for made, other in zip(open_dataset(tmp_path / "rows", labelled=True), first, strict=False):
        assert made.row["colors_of"] == other.row["colors_of"]
        assert made.image.read_bytes() != other.image.read_bytes()


def test_a_recoloured_target_is_test_data_still(
    tiny_dataset: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, collection = tiny_dataset(1, 32, 64), tmp_path / "collection"
    DatasetWriter(collection, config={}).write(0, muted(0, (200, 60, 60)), None, {})
    run = json.loads((target / "run.json").read_text())
    kept = {"role": "target", "protocol": {"eval_low_px": [64, 128]}, "classes": [["road", [0]]]}
    (target / "run.json").write_text(json.dumps({**run, **kept}))
    words = ("--source", target, "--collection", collection, "--output", tmp_path / "out")
    call(monkeypatch, *words)
    record = json.loads((tmp_path / "out/run.json").read_text())
    assert {key: record[key] for key in kept} == kept


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--n", 0), "--n 0: must be 1 or more"),
        (("--fda-beta", 0.7), "--fda-beta 0.7: must be above 0 and at most 0.5"),
        (("--fda-beta", "nan"), "--fda-beta nan: must be above 0 and at most 0.5"),
        (("--seed", -1), "--seed -1: must be 0 or more"),
        ((), "no such dataset folder"),
    ],
)
def test_bad_settings_are_one_line(
    words: tuple[object, ...], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    missing = tmp_path / "missing"
    with pytest.raises(UserError, match=message):
        call(monkeypatch, "--source", missing, "--collection", missing,
             "--output", tmp_path / "out", *words)  # fmt: skip
    assert not (tmp_path / "out").exists()
