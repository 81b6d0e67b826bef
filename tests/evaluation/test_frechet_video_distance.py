"""FVD's arithmetic: torchmetrics' on random features, the closed forms, and how far it can be trusted."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torchmetrics.image.fid import _compute_fid

from videogen.config import UserError
from videogen.evaluation.frechet_video_distance import (
    frechet_distance,
    frechet_interval,
    noise_floor,
    rank_deficient,
    square_root,
)
from videogen.evaluation.statistics import GroupedMoments, Moments


def moments_of(features: np.ndarray) -> Moments:
    moments = Moments(features.shape[1])
    moments.add(features)
    return moments


def grouped(features: np.ndarray) -> GroupedMoments:
    moments = GroupedMoments(features.shape[1])
    moments.add(features, np.arange(len(features)))
    return moments


def mixed(count: int, dimensions: int, seed: int) -> np.ndarray:
    """Correlated random features."""
    generator = np.random.default_rng(seed)
    return generator.normal(seed, 1.0, (count, dimensions)) @ generator.normal(size=(dimensions, dimensions))


def test_equals_torchmetrics_on_random_features() -> None:
    first, second = mixed(300, 24, 0), mixed(280, 24, 1)
    wanted = _compute_fid(*(torch.from_numpy(x) for f in (first, second) for x in (f.mean(0), np.cov(f.T))))
    assert frechet_distance(moments_of(first), moments_of(second)) == pytest.approx(float(wanted), rel=1e-8)


def test_equals_the_closed_form_of_covariances_that_commute() -> None:
    first, second = Moments(3), Moments(3)
    for moments, mean, deviations in ((first, [0, 0, 0], [1, 2, 3]), (second, [3, 4, 0], [2, 2, 7])):
        moments.count, moments.mean, moments.scatter = 2, np.array(mean, float), np.diag(np.square(deviations).astype(float))
    assert frechet_distance(first, second) == pytest.approx(25 + 1 + 0 + 16, rel=1e-12)


def test_is_symmetric_and_zero_to_itself() -> None:
    first, second = moments_of(mixed(300, 24, 0)), moments_of(mixed(280, 24, 1))
    assert frechet_distance(first, second) == pytest.approx(frechet_distance(second, first), rel=1e-10)
    assert frechet_distance(first, first) <= 1e-9 * np.trace(first.covariance)


@pytest.mark.parametrize(("batch", "processes"), [(1, 1), (9, 2), (300, 3)])
def test_does_not_depend_on_batches_and_processes(batch: int, processes: int) -> None:
    features, other = mixed(300, 24, 0), moments_of(mixed(280, 24, 1))
    total = GroupedMoments(24)
    for rank in range(processes):
        part, mine = GroupedMoments(24), np.arange(rank, 300, processes)
        for start in range(0, len(mine), batch):
            part.add(features[mine[start : start + batch]], mine[start : start + batch])
        total.merge(part)
    assert frechet_distance(total.whole(), other) == pytest.approx(frechet_distance(moments_of(features), other), rel=1e-10)
    assert noise_floor(total) == pytest.approx(noise_floor(grouped(features)), rel=1e-10)


def test_fewer_samples_than_dimensions_still_give_the_right_distance_and_are_told() -> None:
    features = mixed(10, 24, 0)
    moments = moments_of(features)
    assert rank_deficient(10, 24)
    assert rank_deficient(24, 24)
    assert not rank_deficient(25, 24)
    shifted = moments_of(features + 1.0)
    assert frechet_distance(moments, shifted) == pytest.approx(24.0, rel=1e-8)


def test_noise_floor_is_the_distance_of_two_halves_and_falls_with_the_samples() -> None:
    floors = [noise_floor(grouped(np.random.default_rng(3).normal(size=(count, 16)))) for count in (100, 1000, 10_000)]
    assert floors[0] > 5 * floors[1] > 25 * floors[2] > 0


def test_noise_floor_wants_four_samples() -> None:
    with pytest.raises(UserError, match="at least 4"):
        noise_floor(grouped(np.zeros((3, 2))))


def test_interval_holds_the_distance_and_narrows_with_the_samples() -> None:
    widths = []
    for count in (200, 3200):
        first, second = (grouped(mixed(count, 6, seed)) for seed in (0, 1))
        spread, (low, high) = frechet_interval(first, second, n=60)
        assert low <= frechet_distance(first.whole(), second.whole()) <= high
        assert spread == pytest.approx((high - low) / 3.92, rel=0.5)
        widths.append(high - low)
    assert widths[1] < widths[0] / 2
    assert frechet_interval(first, second, n=20) == frechet_interval(first, second, n=20)


def test_spread_is_the_real_scatter_of_the_distance() -> None:
    """Two sets, drawn 40 times anew: the deviation told is the real scatter of the distance."""
    values, spreads = [], []
    for seed in range(40):
        pair = [grouped(np.random.default_rng([seed, side]).normal(side * 0.5, 1.0, (400, 4))) for side in (0, 1)]
        values.append(frechet_distance(pair[0].whole(), pair[1].whole()))
        spreads.append(frechet_interval(*pair, n=30)[0])
    assert np.mean(spreads) == pytest.approx(np.std(values), rel=0.35)


def test_features_of_different_networks_are_a_mistake() -> None:
    with pytest.raises(ValueError, match="3 and 4 dimensions"):
        frechet_distance(moments_of(mixed(10, 3, 0)), moments_of(mixed(10, 4, 0)))


def test_square_root_squares_to_its_matrix() -> None:
    covariance = np.cov(mixed(100, 8, 0).T)
    np.testing.assert_allclose(square_root(covariance) @ square_root(covariance), covariance, rtol=1e-9, atol=1e-9)
