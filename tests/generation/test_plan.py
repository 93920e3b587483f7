"""Plans are pure: item i depends on the seed and on i alone."""

import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from generation.plan import Planner, noise_seed, place_crop
from generation.prompts import (
    Condition,
    Grammar,
    join_classes,
    quota_sequence,
    render_prompt,
    render_style,
)
from generation.setting_groups import RareClasses
from generation.settings import Config, default_config
from pipeline.config import from_layers, from_mapping
from pipeline.dataset import Sample
from pipeline.errors import UserError
from pipeline.pocket.collection import LOOKS
from pipeline.pocket.look import PLACES
from pipeline.rare_classes import RareClassSampling, class_probabilities, index_classes
from pipeline.yaml_files import load_preset

ROOT = Path(__file__).resolve().parents[2]


def planner(seed: int = 0, grammar: Grammar | None = None, **options) -> Planner:
    counts = np.zeros((6, 19), dtype=np.int64)
    counts[:, 0] = 1000
    counts[2, 15] = counts[4, 15] = 30
    counts[3, 12] = 20
    counts[1, 16] = 3
    sampling = RareClasses(**{"min_pixels": 10, **options})
    return Planner(counts, grammar or Grammar(), seed=seed, sampling=sampling)


def test_item_does_not_depend_on_n():
    assert planner().make_plan(50)[:7] == planner().make_plan(7)
    assert planner().make_plan(20) != planner(seed=1).make_plan(20)
    assert [item.index for item in planner().make_plan(20)] == list(range(20))


def test_fifty_thousand_items_take_a_second_of_one_core():
    counts = np.random.default_rng(0).integers(0, 1000, (25_000, 19))
    draw = Planner(counts, Grammar(), seed=0, sampling=RareClasses(min_pixels=48)).make_plan
    started = time.process_time()
    assert len(draw(50_000)) == 50_000
    assert time.process_time() - started < 1


def test_label_map_has_the_sampled_class():
    plan = planner().make_plan(200)
    assert {i.label_map for i in plan if i.rare_class == 15} == {2, 4}
    assert {i.label_map for i in plan if i.rare_class == 12} == {3}
    assert not any(i.rare_class == 16 for i in plan)  # 3 pixels are too few


def test_without_rare_class_sampling_label_maps_are_sampled_evenly():
    plan = planner(enabled=False).make_plan(600)
    assert {i.rare_class for i in plan} == {None}
    assert min(np.bincount([i.label_map for i in plan])) > 60


def test_class_probabilities_are_the_softmax_of_the_papers():
    counts = np.array([70.0, 20.0, 10.0])
    found = class_probabilities(counts, np.array([True, True, False]), 0.5)
    weight = np.exp((1 - counts[:2] / 100) / 0.5)
    assert np.allclose(found, [*(weight / weight.sum()), 0])


def test_quotas_hold_in_every_prefix():
    shares = {"a": 2.0, "b": 1.0, "c": 1.0, "never": 0.0}
    dealt = quota_sequence(shares, 400, np.array([3, 2, 1, 0]))
    for n in (4, 37, 400):
        assert abs(dealt[:n].count("a") - n / 2) <= 1
    assert dealt[:4].count("c") == 1 and "never" not in dealt


def test_quotas_are_the_same_at_any_n():
    shares = {"a": 3.7, "b": 1.1, "c": 0.4, "d": 0.4}
    whole = quota_sequence(shares, 500, np.arange(4))
    assert all(quota_sequence(shares, n, np.arange(4)) == whole[:n] for n in range(1, 500, 17))


def test_rare_classes_are_sampled_with_their_probabilities():
    sampled = planner(temperature=0.5)
    counts = Counter(item.rare_class for item in sampled.make_plan(20_000))
    found = np.array([counts[c] / 20_000 for c in range(19)])
    assert np.allclose(found, sampled.probabilities, atol=0.01)


def test_times_and_places_keep_their_shares_within_each_condition():
    grammar = Grammar(
        conditions={"day": Condition(times={"at noon": 2, "": 1}), "night": Condition(share=2)},
        places={"in a city": 3, "in a village": 1},
    )
    plan = planner(grammar=grammar).make_plan(3 * 120)
    found = Counter((i.condition, i.time, i.place) for i in plan)
    assert abs(found["day", "at noon", "in a city"] - 60) <= 1
    assert abs(found["day", "", "in a village"] - 10) <= 1
    assert abs(found["night", "", "in a city"] - 180) <= 1


def test_plans_do_not_depend_on_the_order_of_names():
    """run.json sorts names, and its digest does not tell orders apart."""
    times, places = {"at noon": 2.0, "": 1.0}, {"in a city": 3.0, "here": 1.0}
    day, night = Condition(times=times), Condition(share=2)
    other_day = Condition(times=dict(reversed(times.items())))
    one = Grammar(conditions={"night": night, "day": day}, places=places)
    other = Grammar(
        conditions={"day": other_day, "night": night}, places=dict(reversed(places.items()))
    )
    assert planner(grammar=one).make_plan(200) == planner(grammar=other).make_plan(200)


def test_crop_holds_the_rare_class_and_stays_inside():
    label = np.zeros((40, 90), dtype=np.uint8)
    label[:4, 85:] = 15  # in a corner, so the window has to be clamped
    item = next(i for i in planner().make_plan(99) if i.rare_class == 15)
    crop = place_crop(label, item, seed=0, size=(20, 30), min_share=0.01)
    assert crop.of(label).shape == (20, 30) and (crop.of(label) == 15).sum() == 20
    assert crop == place_crop(label, item, seed=0, size=(20, 30), min_share=0.01)
    whole = place_crop(label, item, seed=0, size=(40, 90), min_share=0.01)
    assert (whole.top, whole.left) == (0, 0)


def test_single_pixel_class_can_be_cropped():
    label = np.zeros((40, 90), dtype=np.uint8)
    label[39, 89] = 15
    item = next(i for i in planner().make_plan(99) if i.rare_class == 15)
    crop = place_crop(label, item, seed=0, size=(20, 30), min_share=0.01)
    assert (crop.top, crop.left) == (20, 60)


def test_seeds_of_samples_and_attempts_differ():
    assert len({noise_seed(0, i, a) for i in range(50) for a in range(3)}) == 150


def test_prompt_reads_like_the_training_captions():
    label = np.array([[0, 1, 2, 13, 255]], dtype=np.uint8)
    rng = np.random.default_rng(0)
    grammar = replace(
        default_config("pocket").prompt, conditions={"snow": Condition("in snowy weather")}
    )
    classes = join_classes(label, grammar, rng)
    text = render_prompt(
        grammar, classes, condition="snow", time="at dusk", place="in a mountain village"
    )
    assert text == (
        "a city street scene with road, sidewalk, building and car, in snowy weather at dusk, "
        "in a mountain village"
    )
    text = render_prompt(grammar, "road", condition="snow", time="", place="")
    assert text == "a city street scene with road, in snowy weather"


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("a street with {classes}, {condition} {time}, {place}", "in fog at dawn, in a suburb"),
        ("{condition} {time}, a street with {classes}", "in fog at dawn"),
        ("{place}: {classes} and {classes}", "in a suburb"),
        ("{classes}, {condition}.", "in fog"),
        ("{classes}", ""),
    ],
)
def test_style_is_what_the_template_says_of_weather_time_and_place(template, expected):
    grammar = Grammar(template=template, conditions={"fog": Condition("in fog")})
    words = {"condition": "fog", "time": "at dawn", "place": "in a suburb"}
    assert render_style(grammar, **words) == expected


def test_words_of_the_pocket_grammar_are_those_of_the_collection():
    grammar = default_config("pocket").prompt
    said = {(c.phrase, t) for c in grammar.conditions.values() for t in c.times}
    assert said == {(look.weather_phrase, look.time_phrase) for look in LOOKS.values()}
    assert set(grammar.places) == {place.phrase for place in PLACES.values()}


def test_class_names_are_limited_and_seeded():
    label = np.arange(19, dtype=np.uint8)[None]
    grammar = Grammar(max_classes=3, class_separator=", ", class_last=" and ")
    first = join_classes(label, grammar, np.random.default_rng(1))
    assert first == join_classes(label, grammar, np.random.default_rng(1))
    assert first.count(",") == 1 and first.count(" and ") == 1
    assert join_classes(np.full((2, 2), 255, np.uint8), grammar, np.random.default_rng(1)) == ""


def test_bad_grammars_are_refused():
    with pytest.raises(UserError, match="in braces"):
        Grammar(template="with {weather}").check()
    for template in ("a street {", "a street }", "{classes.__class__}", "{classes} {}", "{{}}"):
        with pytest.raises(UserError, match="may hold only {classes}, {condition}, {time}"):
            Grammar(template=template).check()
    with pytest.raises(UserError, match="it must be 0..1e"):
        Grammar(places={"a": 1e308, "b": 1e308}).check()
    with pytest.raises(UserError, match="3: names are text"):
        Grammar(places={3: 1.0}).check()
    with pytest.raises(UserError, match="--prompt.class-min-share nan"):
        Grammar(class_min_share=float("nan")).check()
    with pytest.raises(UserError, match="at least one share"):
        Grammar(conditions={"a": Condition(share=0)}).check()
    with pytest.raises(UserError, match="at least one share"):
        Grammar(places={}).check()
    with pytest.raises(UserError, match="'at noon' is -1.0; it must be 0..1e"):
        Grammar(conditions={"a": Condition(times={"at noon": -1.0})}).check()


def test_list_of_places_means_even_shares():
    grammar = from_mapping(Grammar, {"places": ["here", "there"]}, "x.yaml")
    assert grammar.places == {"here": 1.0, "there": 1.0}


def test_shares_of_the_shipped_grammars():
    def shares(name: str) -> dict[str, float]:
        path = ROOT / "configs" / "generation" / name
        config = from_layers(Config, load_preset(path))
        config.prompt.check()
        total = sum(c.share for c in config.prompt.conditions.values())
        return {name: c.share / total for name, c in config.prompt.conditions.items()}

    paper = shares("dginstyle.yaml")
    assert paper == {"plain": 0.5, **dict.fromkeys(("snow", "rain", "sunny", "fog", "night"), 0.1)}
    wanted = {"snow", "rain", "fog", "night", "sunny", "dusk", "overcast", "dawn"}
    assert wanted < set(shares("gta_sd15.yaml"))


def test_prompts_of_the_reference_preset_are_the_published_ones():
    """The bare class list, or a scene in a weather that ends with a period."""
    path = ROOT / "configs" / "generation" / "dginstyle.yaml"
    grammar = from_layers(Config, load_preset(path)).prompt
    classes = join_classes(np.array([[0, 13], [9, 255]], np.uint8), grammar, None)
    found = {
        render_prompt(grammar, classes, condition=name, time=time, place=place)
        for name, condition in grammar.conditions.items()
        for time in condition.times
        for place in grammar.places
    }
    scene = "A city street scene with road terrain car, in {} weather."
    words = ("snowy", "rainy", "sunny", "foggy", "night")
    assert found == {"road terrain car", *map(scene.format, words)}


def test_training_and_generation_sample_classes_with_the_same_probabilities(tmp_path):
    counts = np.random.default_rng(0).integers(0, 9000, (6, 19))
    counts[:, 16] = 0  # a class that no file holds
    samples = [
        Sample(str(i), tmp_path, None, {"class_pixels": row}) for i, row in enumerate(counts)
    ]
    sampling = RareClassSampling(temperature=0.01, min_pixels=3000)
    index = index_classes(samples, sampling)
    planner = Planner(counts, Grammar(), seed=0, sampling=sampling)
    assert np.array_equal(index.probabilities, planner.probabilities)
    assert index.probabilities[16] == 0 and index.probabilities.sum() == pytest.approx(1)
    for files, label_maps in zip(index.files_with_class, planner.serving, strict=True):
        assert np.array_equal(files, label_maps)
