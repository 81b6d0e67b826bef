"""Moments, groups and intervals: the same for every batch size and number of processes, and what the closed forms say."""

from __future__ import annotations

import math

import numpy as np
import pytest
from safetensors.numpy import load, save

from videogen.config import UserError
from videogen.evaluation.statistics import (
    GroupedMoments,
    Moments,
    bootstrap,
    centred_interval,
    group_of,
    mean_interval,
    wilson,
)

N, D = 203, 7
FEATURES = np.random.default_rng(0).normal(3.0, 2.0, (N, D)) @ np.random.default_rng(1).normal(size=(D, D))


def gathered(batch: int, processes: int, features: np.ndarray = FEATURES, groups: int = 20) -> GroupedMoments:
    """The moments of all samples, of which process r sees every `processes`-th from r on, `batch` at a time."""
    total = GroupedMoments(features.shape[1], groups)
    for rank in range(processes):
        part = GroupedMoments(features.shape[1], groups)
        mine = np.arange(rank, len(features), processes)
        for start in range(0, len(mine), batch):
            chosen = mine[start : start + batch]
            part.add(features[chosen], chosen)
        total.merge(part)
    return total


@pytest.mark.parametrize(("batch", "processes"), [(1, 1), (7, 1), (N, 1), (5, 2), (64, 3), (1, 4)])
def test_streamed_moments_are_numpys_whatever_the_batches_and_processes(batch: int, processes: int) -> None:
    whole = gathered(batch, processes).whole()
    assert whole.count == N
    np.testing.assert_allclose(whole.mean, FEATURES.mean(0), rtol=1e-12)
    np.testing.assert_allclose(whole.covariance, np.cov(FEATURES.T), rtol=1e-12, atol=1e-12 * whole.covariance.max())


def test_moments_far_from_zero_keep_their_digits() -> None:
    far = FEATURES + 1e7
    np.testing.assert_allclose(gathered(3, 2, far).whole().covariance, np.cov(FEATURES.T), rtol=1e-6, atol=1e-6)


def test_halves_and_replicates_do_not_depend_on_batches_and_processes() -> None:
    one, other = gathered(N, 1), gathered(4, 3)
    for a, b in [*zip(one.halves(), other.halves(), strict=True)]:
        np.testing.assert_allclose(a.scatter, b.scatter, rtol=1e-11, atol=1e-9)
    a, b = (moments.resampled(np.random.default_rng(5)) for moments in (one, other))
    np.testing.assert_allclose(a.mean, b.mean, rtol=1e-12)


def test_halves_are_disjoint_and_whole_together() -> None:
    first, second = gathered(16, 1).halves()
    assert first.count + second.count == N
    assert abs(first.count - second.count) <= 20
    first.merge(second)
    np.testing.assert_allclose(first.mean, FEATURES.mean(0), rtol=1e-12)


def test_groups_of_any_beginning_are_balanced_and_do_not_follow_the_order() -> None:
    homes = group_of(np.arange(2000), 20)
    assert (np.bincount(homes) == 100).all()
    assert (np.bincount(homes[:500], minlength=20) == 25).all()
    classes = np.arange(2000) % 20  # samples in an order with the same period as the groups
    assert len(set(classes[homes == 0])) > 15


def test_a_group_depends_on_its_own_index_only() -> None:
    assert group_of([71, 5, 1999], 20).tolist() == [int(group_of(np.arange(2000), 20)[i]) for i in (71, 5, 1999)]


def test_state_survives_a_file() -> None:
    moments = gathered(16, 1)
    again = GroupedMoments.from_state(load(save(moments.state())))
    again.add(FEATURES[:3], [N, N + 1, N + 2])
    moments.add(FEATURES[:3], [N, N + 1, N + 2])
    assert again.count == moments.count == N + 3
    assert (again.whole().scatter == moments.whole().scatter).all()


def test_memory_does_not_grow_with_the_samples() -> None:
    def held(moments: GroupedMoments) -> int:
        return sum(array.nbytes for array in moments.state().values())

    few, many = (gathered(500, 1, np.zeros((n, D))) for n in (100, 5000))
    assert held(few) == held(many)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_features_that_are_not_finite_are_refused(bad: float) -> None:
    with pytest.raises(UserError, match="not finite"):
        Moments(2).add(np.array([[0.0, bad]]))


def test_features_of_another_width_are_a_mistake() -> None:
    with pytest.raises(ValueError, match=r"\(N, 2\)"):
        Moments(2).add(np.zeros((4, 3)))
    with pytest.raises(ValueError, match="indices"):
        GroupedMoments(2).add(np.zeros((4, 2)), [0, 1])


def test_one_sample_has_no_covariance() -> None:
    moments = Moments(2)
    moments.add(np.zeros((1, 2)))
    with pytest.raises(UserError, match="at least 2 samples"):
        _ = moments.covariance


def test_interval_of_a_mean_is_normal_theorys() -> None:
    values = FEATURES[:, :1]
    low, high = mean_interval(gathered(10, 2, values))
    error = values.std(ddof=1) / math.sqrt(N)
    assert (low, high) == pytest.approx((values.mean() - 1.96 * error, values.mean() + 1.96 * error), rel=1e-4)


def test_bootstrap_of_a_mean_comes_near_normal_theory_and_is_repeatable() -> None:
    values = FEATURES[:, 0]
    interval = bootstrap(values, np.mean, seed=0)
    error = values.std() / math.sqrt(N)
    assert interval == pytest.approx((values.mean() - 1.96 * error, values.mean() + 1.96 * error), abs=0.3 * error)
    assert bootstrap(values, np.mean, seed=0) == interval
    assert bootstrap(values, np.mean, seed=1) != interval


def test_bootstrap_of_nothing_is_refused() -> None:
    with pytest.raises(UserError, match="at least one value"):
        bootstrap(np.zeros(0), np.mean, seed=0)


def test_a_centred_interval_lies_around_its_value() -> None:
    replicates = np.linspace(9, 11, 101)  # all shifted by 10
    assert centred_interval(0.0, list(replicates)) == pytest.approx((-0.95, 0.95))


@pytest.mark.parametrize(
    ("successes", "n", "expected"),  # the first: Newcombe 1998, Statistics in Medicine 17, table I, method 3
    [(81, 263, (0.2553, 0.3662)), (0, 20, (0.0, 0.1611)), (20, 20, (0.8389, 1.0)), (0, 0, (0.0, 1.0))],
)
def test_wilson_intervals(successes: int, n: int, expected: tuple[float, float]) -> None:
    assert wilson(successes, n) == pytest.approx(expected, abs=5e-5)


def test_wilson_wants_a_rate() -> None:
    with pytest.raises(ValueError, match="successes"):
        wilson(3, 2)
