"""Noise levels: conversions, inversion, what is visited and kept."""

from collections.abc import Callable

import pytest
import torch
from diffusers import DDIMInverseScheduler, DDIMScheduler

from pipeline.errors import UserError
from segtrain.diffusion.trajectories import (
    DIFF_37,
    DIFF_37_SAVED,
    Inversion,
    Noised,
    Schedule,
    Trajectory,
    Visit,
)

PREDICTIONS = ("epsilon", "v_prediction", "sample")


def _schedule(prediction: str, **options: object) -> Schedule:
    return Schedule(DDIMScheduler(prediction_type=prediction, **options))


def _walk(
    trajectory: Trajectory,
    latents: torch.Tensor,
    schedule: Schedule,
    model: Callable[[Visit], torch.Tensor],
) -> list[Visit]:
    visit, visits = trajectory.start(latents, schedule), []
    while visit is not None:
        visits.append(visit)
        visit = trajectory.follow(visit, model(visit), schedule)
    return visits


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("zero_snr", [False, True])
def test_an_output_stands_for_the_clean_latent_and_the_noise(prediction, zero_snr) -> None:
    schedule = _schedule(prediction, rescale_betas_zero_snr=zero_snr)
    clean, noise = torch.randn(2, 2, 4, 8, 8, dtype=torch.float64)
    for timestep in (0, 1, 91, 500, 990):
        alpha = schedule.alpha(timestep)
        output = {
            "epsilon": noise,
            "sample": clean,
            "v_prediction": alpha**0.5 * noise - (1 - alpha) ** 0.5 * clean,
        }[prediction]
        noisy = schedule.noised(clean, noise, timestep)
        for found, true in zip(
            schedule.split(output, noisy, timestep), (clean, noise), strict=True
        ):
            torch.testing.assert_close(found, true)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_a_step_up_is_the_inverse_of_a_ddim_step_down(prediction: str) -> None:
    scheduler = DDIMScheduler(prediction_type=prediction, clip_sample=False, steps_offset=0)
    scheduler.set_timesteps(100)  # steps of 10
    output = torch.randn(1, 4, 8, 8, dtype=torch.float64)
    latents = torch.randn(1, 4, 8, 8, dtype=torch.float64)
    inversion = Inversion((10, 20), (10,), to_the_end=True)
    visits = _walk(inversion, latents, Schedule(scheduler), lambda _: output)
    up, schedule = visits[1].latents, Schedule(scheduler)
    clean, noise = schedule.split(output, latents, 0)
    # an epsilon model that sees the same noise at t = 10 leads back
    same = {"epsilon": noise, "sample": clean}.get(prediction)
    if same is None:
        alpha = schedule.alpha(10)
        same = alpha**0.5 * noise - (1 - alpha) ** 0.5 * clean
    back = scheduler.step(same, 10, up).prev_sample
    torch.testing.assert_close(back, latents, rtol=1e-5, atol=1e-6)


def test_inversion_equals_the_inverse_scheduler_of_diffusers() -> None:
    options = {"num_train_timesteps": 1000, "clip_sample": False, "timestep_spacing": "leading"}
    inverse = DDIMInverseScheduler(**options, steps_offset=0)
    inverse.set_timesteps(50)
    latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    model = lambda latents: torch.tanh(latents).roll(1, -1)  # noqa: E731
    expected = [latents]
    for timestep in inverse.timesteps[:4]:
        expected.append(inverse.step(model(expected[-1]), timestep, expected[-1]).prev_sample)
    # its first step leads to the level of t = 0, where ours starts
    visits = _walk(
        Inversion((20, 40, 60), (0, 20, 40)),
        expected[1],
        _schedule("epsilon"),
        lambda visit: model(visit.latents),
    )
    assert len(visits) == 3
    for visit, wanted in zip(visits, expected[1:], strict=False):
        torch.testing.assert_close(visit.latents, wanted, rtol=1e-4, atol=1e-5)


def test_the_published_preset_visits_and_keeps_its_levels() -> None:
    latents = torch.zeros(2, 4, 2, 2)
    model = lambda visit: torch.zeros_like(visit.latents)  # noqa: E731
    whole = _walk(
        Inversion(DIFF_37, DIFF_37_SAVED, to_the_end=True), latents, _schedule("epsilon"), model
    )
    early = _walk(Inversion(DIFF_37, DIFF_37_SAVED), latents, _schedule("epsilon"), model)
    assert (len(whole), len(early)) == (37, 34)
    kept = {int(v.timesteps[0]): v.kept[0] for v in early if v.kept[0] is not None}
    assert kept == {level: place for place, level in enumerate(DIFF_37_SAVED)}
    assert [v.is_last for v in early] == [False] * 33 + [True]


def test_noised_levels_share_their_noise_and_come_as_one_batch() -> None:
    schedule, latents = _schedule("epsilon"), torch.randn(3, 4, 8, 8)
    (visit,) = _walk(Noised((10, 200)), latents, schedule, lambda _: torch.empty(0))
    assert visit.timesteps.tolist() == [10] * 3 + [200] * 3 and visit.kept == (0, 1)
    low, high = visit.latents.double().chunk(2)
    noises = [
        (x - schedule.alpha(t) ** 0.5 * latents) / (1 - schedule.alpha(t)) ** 0.5
        for x, t in ((low, 10), (high, 200))
    ]
    torch.testing.assert_close(*noises, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(noises[0][0], noises[0][2], rtol=1e-3, atol=1e-3)


def test_eta_keeps_the_variance_of_the_level() -> None:
    schedule = _schedule("epsilon")
    noise = torch.randn(1, 4, 64, 64, generator=torch.Generator().manual_seed(1))

    def model(visit: Visit) -> torch.Tensor:  # knows the noise in latents whose image is zero
        return visit.latents / (1 - schedule.alpha(int(visit.timesteps[0]))) ** 0.5

    start = (1 - schedule.alpha(0)) ** 0.5 * noise
    rates = {}
    for eta in (0.0, 1.0):
        visits = _walk(Inversion((20, 40, 80), (40,), eta=eta), start, schedule, model)
        for visit in visits[1:]:
            level = 1 - schedule.alpha(int(visit.timesteps[0]))
            assert float(visit.latents.var()) == pytest.approx(level, rel=0.1)
        pair = torch.stack([visits[1].latents.flatten(), visits[2].latents.flatten()])
        rates[eta] = float(pair.corrcoef()[0, 1])
    assert rates[0.0] > 0.999 and rates[1.0] < 0.95  # the fresh noise is fresh


@pytest.mark.parametrize(
    "make",
    [
        lambda: Inversion((20, 10), (20,)),
        lambda: Inversion((), ()),
        lambda: Inversion((10, 20), (20,)),
        lambda: Inversion((10, 20), (5,)),
    ],
)
def test_impossible_levels_are_refused(make: Callable[[], object]) -> None:
    with pytest.raises(UserError, match="targets|never visited"):
        make()
