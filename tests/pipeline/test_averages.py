"""Moving averages: the update rule of all stages, and how averages start."""

import pytest
import torch

from pipeline.averages import ema_share, mean_then_ema_share, update_average


def test_the_first_averages_are_the_mean_of_all_weights_so_far():
    values = [torch.tensor([float(value)]) for value in (3, -1, 4, 10)]
    average = values[0].clone()
    for count, value in enumerate(values[1:], start=1):
        update_average([average], [value], mean_then_ema_share(0.999, count))
        assert float(average) == pytest.approx(float(torch.stack(values[: count + 1]).mean()))


def test_shares_fall_to_one_minus_the_decay():
    for share in (ema_share, mean_then_ema_share):
        shares = [share(0.99, count) for count in range(1, 2000)]
        assert shares == sorted(shares, reverse=True)
        assert shares[0] > 0.4 and shares[-1] == pytest.approx(0.01)


def test_an_average_takes_no_gradient():
    average, weight = torch.zeros(2), torch.nn.Parameter(torch.ones(2))
    update_average([average], [weight], 0.25)
    assert average.tolist() == [0.25, 0.25] and not average.requires_grad
