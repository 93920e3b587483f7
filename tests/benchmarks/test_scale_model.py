"""The model of many GPUs against hand calculation, and the pages that show its tables."""

import dataclasses
import re
import sys
from pathlib import Path

import pytest

from benchmarks import scale_tables
from benchmarks.scale_model import MODES, Case, Inputs, loads, most_gpus, shares, simulate
from pipeline.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
EVEN = dataclasses.replace(Inputs(), variation=0.0)


@pytest.mark.parametrize("mode", MODES)
def test_one_gpu_needs_start_and_images(mode) -> None:
    outcome = simulate(Case(1, 1000, mode), EVEN)
    image_s = (20 * 10 * 2.176 + 17.86) / (790 * 0.45)
    assert outcome.hours == pytest.approx((60 + 5.7 / 5 + 1000 * image_s) / 3600)
    assert outcome.losses == 0 and outcome.lost_gpu_hours == 0


@pytest.mark.parametrize("mode", MODES)
def test_losses_cost_time_and_all_images_are_made(mode) -> None:
    calm = simulate(Case(16, 40_000, mode), EVEN)
    rough = simulate(Case(16, 40_000, mode, losses_per_node_hour=1.0), EVEN)
    assert calm.hours < rough.hours < 3 * calm.hours
    assert rough.losses > 0 and rough.lost_gpu_hours > 0
    assert rough.efficiency < calm.efficiency <= 1


def test_static_shares_hold_every_image_once() -> None:
    for gpus, images in ((1, 999), (7, 10_000), (1000, 50_000)):
        counts = shares(Case(gpus, images, "shards"))
        assert sum(counts) == images and max(counts) - min(counts) <= 250
        assert min(counts) > 0


@pytest.mark.parametrize("mode", MODES)
def test_limit_is_where_a_resource_is_used_up(mode) -> None:
    inputs = Inputs()
    most = most_gpus(mode, inputs)

    def used_up(gpus: int) -> bool:
        found = loads(Case(gpus, gpus * 1000, mode), inputs).values()
        return any(load > capacity for load, capacity in found)

    assert not used_up(most) and used_up(most + 1)


@pytest.mark.parametrize("word", ["speed=1", "steps=x", "steps=0", "gpu_hour_usd=inf"])
def test_wrong_inputs_are_refused_in_one_line(word, monkeypatch) -> None:
    monkeypatch.setattr(sys, "argv", ["scale_tables.py", "--set", word])
    with pytest.raises(UserError, match=f"--set {word}"):
        scale_tables.main()


def rows_of(text: str) -> set[str]:
    """Return the rows of all Markdown tables, spaces made equal."""
    lines = (line for line in text.splitlines() if line.startswith("|"))
    return {re.sub(r"\s+", " ", line).strip() for line in lines}


def test_pages_show_what_the_program_prints() -> None:
    """Every table of docs/scale.md is the program's; docs/performance.md shows its last one."""
    inputs = Inputs()
    printed = {title: rows_of(make(inputs)) for title, make in scale_tables.TABLES.items()}
    last = printed.pop("Time by kind of GPU")
    page = rows_of((ROOT / "docs/scale.md").read_text())
    assert not set().union(*printed.values()) - page
    assert not last - rows_of((ROOT / "docs/performance.md").read_text())


def test_readme_shows_figures_of_the_model() -> None:
    inputs, number = Inputs(), scale_tables.number
    page = rows_of((ROOT / "README.md").read_text())
    for images, tiles in ((10_000, 9), (50_000, 9), (50_000, 81)):
        hours = [simulate(Case(gpus, images, "claims", tiles), inputs).hours for gpus in (8, 64)]
        gpu_hours = inputs.image_s(tiles) * images / 3600
        assert f"| {images:,} | {tiles} | {' | '.join(map(number, (gpu_hours, *hours)))} |" in page
