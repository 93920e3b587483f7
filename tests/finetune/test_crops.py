"""Crops, rare class sampling, captions and losses."""

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler

from finetune import controlnet, prior
from finetune.captions import Captions
from finetune.crops import jitter_colors, sample_image_crop, sample_labelled_crop
from finetune.losses import LogitNormal, diffusion_target, noisy_latents
from finetune.settings import Crop, Training, learning_rate
from pipeline.captions import CaptionSettings
from pipeline.dataset import open_dataset
from pipeline.errors import UserError
from pipeline.models import POCKET_BASE
from pipeline.rare_classes import RareClassSampling, index_classes
from pipeline.seeding import SeededSamples, batches


def test_crops_have_the_size_asked_for_even_from_small_images(tiny_dataset):
    samples = open_dataset(tiny_dataset(n=2, h=40, w=50), labelled=True)
    crop = Crop((48, 96), (0.5, 2.0))
    rng = np.random.default_rng(0)
    for _ in range(8):
        assert sample_image_crop(rng, samples[0], crop).shape == (48, 96, 3)
        image, label = sample_labelled_crop(rng, samples, crop, None)
        assert image.shape == (48, 96, 3) and label.shape == (48, 96)
        assert set(np.unique(label)) <= {*range(19), 255}


def test_rare_class_sampling_prefers_rare_classes_and_centres_on_them(tmp_path):
    from pipeline.dataset_writer import DatasetWriter

    writer = DatasetWriter(tmp_path / "d", config={})
    for i in range(6):
        label = np.zeros((64, 128), np.uint8)
        if i == 3:
            label[2:6, 120:124] = 17  # motorcycle at the border
        writer.write(i, np.zeros((64, 128, 3), np.uint8), label, {})
    samples = open_dataset(tmp_path / "d", labelled=True)
    index = index_classes(samples, RareClassSampling(temperature=0.1, min_pixels=8))
    assert np.isclose(index.probabilities.sum(), 1)
    assert index.probabilities[17] > 0.99 and index.probabilities[5] == 0
    rng = np.random.default_rng(0)
    hits = [
        (sample_labelled_crop(rng, samples, Crop((32, 32), (1.0,)), index)[1] == 17).any()
        for _ in range(10)
    ]
    assert all(hits)


def captions_of(base=POCKET_BASE, **settings):
    return Captions(str(base), CaptionSettings(**settings))


def test_caption_lists_classes_in_train_id_order_without_void():
    label = np.array([[255, 13, 0], [11, 0, 10]], np.uint8)
    rng = np.random.default_rng(0)
    assert captions_of()(label, rng) == "road sky person car"
    long = captions_of(template="a scene with {classes}", class_separator=", ")
    assert long(label, rng) == "a scene with road, sky, person, car"
    some = captions_of(class_separator=", ", class_last=" and ", max_classes=3)
    assert {some(label, rng) for _ in range(50)} == {
        "road, sky and person",
        "road, sky and car",
        "road, person and car",
        "sky, person and car",
    }


def test_a_short_text_window_leaves_out_common_classes_and_cuts_nothing(tiny_base, capsys):
    """The tiny base has a window of 24 tokens; `rare` is what Cityscapes has the least of."""
    from transformers import CLIPTokenizer

    template = "a city street scene with {classes}"
    captions = captions_of(tiny_base, template=template, class_separator=", ")
    captions.check()
    assert "of 19 classes" in capsys.readouterr().err
    every = np.arange(20, dtype=np.uint8).reshape(4, 5)
    every[every == 19] = 255
    text = captions(every, np.random.default_rng(0))
    names = text.removeprefix("a city street scene with ").split(", ")
    assert {"motorcycle", "rider", "traffic light", "train"} <= set(names)
    assert "road" not in names and "building" not in names
    tokenizer = CLIPTokenizer.from_pretrained(tiny_base / "tokenizer")
    assert len(tokenizer(text).input_ids) <= 24
    with pytest.raises(UserError, match="is cut after the 24 tokens"):
        captions_of(tiny_base, template=template * 6).check()


@pytest.mark.parametrize(
    "template", ["a {class}", "a street {", "}", "{classes} {0}", "{{classes}}"]
)
def test_a_template_knows_only_its_placeholder(template):
    with pytest.raises(UserError, match="--caption.template .*may hold only {classes}"):
        controlnet.Config(caption=CaptionSettings(template=template))


def test_positions_partition_over_ranks_and_do_not_depend_on_restarts():
    one = [p for batch in batches(0, 4, 3, 0, 1) for p in batch]
    assert one == list(range(12))
    two = sorted(p for rank in range(2) for batch in batches(0, 2, 3, rank, 2) for p in batch)
    assert two == one
    assert list(batches(2, 4, 3, 1, 2)) == list(batches(0, 4, 3, 1, 2))[2:]
    data = SeededSamples(lambda rng: float(rng.random()), seed=1)
    assert data[5] == data[5] and data[5] != data[6]


def test_targets_follow_the_prediction_type():
    torch.manual_seed(0)
    latents, noise = torch.randn(2, 4, 8, 8), torch.randn(2, 4, 8, 8)
    times = torch.tensor([10, 900])
    for kind in ("epsilon", "v_prediction", "sample"):
        scheduler = DDIMScheduler(prediction_type=kind, clip_sample=False)
        target = diffusion_target(scheduler, latents, noise, times)
        noisy = scheduler.add_noise(latents, noise, times)
        for i, t in enumerate(times):  # a perfect prediction must give the latents back
            scheduler.set_timesteps(1000)
            step = scheduler.step(target[i], int(t), noisy[i])
            assert torch.allclose(step.pred_original_sample, latents[i], atol=1e-3)


def test_noise_is_a_function_of_the_generator():
    scheduler = DDIMScheduler()
    latents = torch.zeros(2, 4, 4, 4)
    a = noisy_latents(scheduler, latents, torch.Generator().manual_seed(3))
    b = noisy_latents(scheduler, latents, torch.Generator().manual_seed(3))
    assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_logit_normal_timesteps_are_spread_over_the_quantiles():
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        times = LogitNormal(-0.4, 1.4).sample(1000, 64, generator)
        assert times.min() >= 0 and times.max() < 1000
        # sigmoid(-0.4) and sigmoid(-0.4 -+ 1.4): a half, and 16 and 84 % of the draws, lie below
        for fraction, share in ((0.4013, 0.5), (0.1419, 0.1587), (0.7311, 0.8413)):
            assert abs(float((times < 1000 * fraction).float().mean()) - share) <= 1.01 / 64
    scheduler = DDIMScheduler()
    low = LogitNormal(-9.0, 0.1)
    _, _, times = noisy_latents(scheduler, torch.zeros(8, 4, 2, 2), generator, low)
    assert times.max() < 2


def test_a_share_of_the_timesteps_is_uniform():
    generator = torch.Generator().manual_seed(0)
    times = LogitNormal(-9.0, 0.1, uniform_share=0.25).sample(1000, 40, generator)
    uniform = times[times >= 2].sort().values
    assert len(times) == 40 and 9 <= len(uniform) <= 10
    parts = (uniform // 100).tolist()
    assert len(set(parts)) == len(parts)  # one in each tenth
    assert (
        LogitNormal(-9.0, 0.1, 1.0).sample(1000, 8, generator) // 125
    ).sort().values.tolist() == [*range(8)]


@pytest.mark.parametrize(("batch", "share"), [(1, 0.5), (4, 0.125), (2, 0.75)])
def test_the_uniform_share_holds_for_small_batches(batch, share):
    generator = torch.Generator().manual_seed(0)
    low = LogitNormal(-9.0, 0.1, share)
    times = torch.cat([low.sample(1000, batch, generator) for _ in range(2000 // batch)])
    assert abs(float((times >= 2).float().mean()) - share) < 0.03


def test_uniform_timesteps_beside_none_are_refused():
    with pytest.raises(UserError, match="--uniform-share 0.5: all timesteps are uniform already"):
        prior.Config(vae="x", uniform_share=0.5).check()


def test_learning_rate_warms_up_and_decays():
    settings = Training(steps=10, learning_rate=1.0, warmup_steps=2, schedule="cosine")
    rates = [learning_rate(settings, step) for step in range(10)]
    assert rates[0] == 0.5 and rates[1] == 1.0 == max(rates)
    assert rates[-1] < 0.1 and all(a >= b for a, b in zip(rates[2:], rates[3:], strict=False))
    constant = Training(steps=10, learning_rate=1.0)
    assert learning_rate(constant, 9) == 1.0


def test_jitter_shifts_colours_but_not_shapes():
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (16, 24, 3), dtype=np.uint8)
    image[:, 12:] = 128  # grey has no hue to shift
    one, other = (jitter_colors(np.random.default_rng(k), image) for k in (1, 2))
    assert one.dtype == np.uint8 and one.shape == image.shape
    assert (one != other).any() and (one != image).any()
    assert (one[:, 12:].max(-1) == one[:, 12:].min(-1)).all()
    assert (one == jitter_colors(np.random.default_rng(1), image)).all()


def test_color_jitter_stays_within_its_ranges():
    image = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    value = image.max(2).astype(float)
    for seed in range(5):
        changed = jitter_colors(np.random.default_rng(seed), image).max(2)
        assert np.corrcoef(value.ravel(), changed.ravel())[0, 1] > 0.95  # the order of brightness
    same = [jitter_colors(np.random.default_rng(3), image) for _ in range(2)]
    assert np.array_equal(*same)
