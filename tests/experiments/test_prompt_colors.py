"""Slopes of predicted colours, by a U-Net that knows the answer and by one that does not."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from experiments import prompt_colors
from finetune.diffusion import FrozenBase, encode_moments
from pipeline.dataset_writer import DatasetWriter
from pipeline.errors import UserError
from pipeline.images import read_image
from pipeline.models import POCKET_BASE


@pytest.fixture
def data(tmp_path):
    """A captioned folder of two grey levels at night and two by day."""
    writer = DatasetWriter(tmp_path / "data", config={})
    for index, level in enumerate((20, 30, 190, 220)):
        condition = "night" if level < 100 else "day"
        image = np.full((64, 128, 3), level, np.uint8)
        writer.write(index, image, None, {"condition": condition, "prompt": f"a {condition}"})
    return tmp_path / "data"


def test_slope_of_a_line_with_an_offset():
    actual = torch.tensor([[1.0, 5.0], [2.0, 3.0], [6.0, 4.0]])
    assert np.isclose(prompt_colors.slope(0.25 * actual + 7, actual), 0.25)


class Oracle(torch.nn.Module):
    """Predicts the velocity of latents that are `share` of the true ones."""

    def __init__(self, frozen, latents, share):
        super().__init__()
        self.alphas, self.latents, self.share = frozen.scheduler.alphas_cumprod, latents, share

    def forward(self, noisy, steps, **_):
        clean = self.share * self.latents.pop(0)
        alpha = self.alphas[steps][:, None, None, None]
        noise = (noisy - alpha.sqrt() * clean) / (1 - alpha).sqrt()
        return type("Output", (), {"sample": alpha.sqrt() * noise - (1 - alpha).sqrt() * clean})


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_a_share_of_the_true_latents_gives_that_slope(share, data):
    frozen = FrozenBase(str(POCKET_BASE), torch.device("cpu"))
    groups = prompt_colors.by_condition(data, 12)
    latents = []
    for samples in groups.values():
        images = [read_image(sample.image) for sample in samples]
        latents += [encode_moments(frozen.vae, images)[:, 0].float()] * 2
    unet = Oracle(frozen, latents, share)
    found = prompt_colors.slopes(frozen, unet, groups, (64, 128), [999, 500])
    assert np.allclose(found, share, atol=1e-3)


def test_text_separation_is_the_variance_between_conditions_over_the_mean_square():
    vectors = {"a night": [4.0, 1.0], "one night": [2.0, 1.0], "a day": [-3.0, 1.0]}

    class Text:
        def encode(self, captions):
            states = torch.tensor([vectors[caption] for caption in captions])[:, None]
            return SimpleNamespace(states=states)

    frozen = SimpleNamespace(text=Text())
    groups = {"night": [], "day": []}
    for caption in vectors:
        groups[caption.split()[1]].append(SimpleNamespace(caption=caption))
    # means (3, 1) and (-3, 1): variance 9 and 0; squares 16, 1, 4, 1, 9, 1
    assert np.isclose(prompt_colors.text_separation(frozen, groups), 4.5 / (32 / 6))


def test_the_program_prints_a_row_per_base(data, monkeypatch, capsys):
    command = [
        "x",
        "--data",
        str(data),
        "--base",
        "pocket",
        "--n",
        "1",
        "--timesteps",
        "999",
        "999",
    ]
    monkeypatch.setattr("sys.argv", command)
    prompt_colors.main()
    header, _, row = capsys.readouterr().out.strip().splitlines()
    assert "| text | t = 999 |" in header and row.startswith("| pocket |")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--size-px", "0", "128"), "--size-px 0 128: must be above 0"),
        (("--size-px", "60", "128"), "--size-px 60 128"),
        (("--base", "pocket", "pocket", "--unet", "pocket"), "--unet: belongs to one base"),
    ],
)
def test_bad_options_are_one_line(words, message, data, monkeypatch):
    monkeypatch.setattr("sys.argv", ["x", "--data", str(data), *words])
    with pytest.raises(UserError, match=message):
        prompt_colors.main()


def test_rows_without_a_caption_and_images_of_one_colour_are_refused(tmp_path):
    writer = DatasetWriter(tmp_path / "mute", config={})
    writer.write(0, np.zeros((64, 128, 3), np.uint8), None, {"condition": "day"})
    with pytest.raises(UserError, match="row 00000000 has no `prompt`"):
        prompt_colors.by_condition(tmp_path / "mute", 1)
    with pytest.raises(UserError, match="the same colours"):
        prompt_colors.slope(torch.ones(2, 3), torch.ones(2, 3))


def test_images_of_one_condition_are_refused(tiny_dataset, monkeypatch):
    data = tiny_dataset(n=2, labelled=False, conditions=("night",))
    monkeypatch.setattr("sys.argv", ["x", "--data", str(data)])
    with pytest.raises(UserError, match="name 1 conditions"):
        prompt_colors.main()
