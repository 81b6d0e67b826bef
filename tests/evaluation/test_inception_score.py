"""The Inception Score's arithmetic: torchmetrics' on random features, and the closed forms."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from safetensors.numpy import load, save
from torchmetrics.image.inception import InceptionScore as TorchmetricsScore

from videogen.config import UserError
from videogen.evaluation.inception_score import InceptionScore, inception_score, softmax
from videogen.evaluation.statistics import group_of

N, K = 400, 11
LOGITS = np.random.default_rng(0).normal(0.0, 3.0, (N, K))


def theirs(logits: np.ndarray, splits: int) -> tuple[float, float]:
    """torchmetrics' mean and (unbiased) deviation, its random order undone."""
    torch.manual_seed(0)
    order = torch.randperm(len(logits))
    ordered = torch.empty(logits.shape, dtype=torch.float64)
    ordered[order] = torch.from_numpy(logits)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns that it keeps all features, and that they came past `update`
        metric = TorchmetricsScore(feature=torch.nn.Identity(), splits=splits)
        metric.features = [ordered]
        torch.manual_seed(0)
        mean, deviation = metric.compute()
    return float(mean), float(deviation)


def test_equals_torchmetrics_in_one_split() -> None:
    assert inception_score(softmax(LOGITS), splits=1)[0] == pytest.approx(theirs(LOGITS, 1)[0], rel=1e-10)


def test_equals_torchmetrics_in_four_splits_of_the_same_samples() -> None:
    """Theirs are consecutive, so our groups are put one after the other; their deviation divides by splits - 1."""
    order = np.argsort(group_of(np.arange(N), 40) // 10, kind="stable")
    mean, deviation = inception_score(softmax(LOGITS), splits=4)
    assert (mean, deviation * np.sqrt(4 / 3)) == pytest.approx(theirs(LOGITS[order], 4), rel=1e-10)


def test_is_the_number_of_classes_for_sure_and_even_predictions() -> None:
    sure = np.tile(np.eye(K), (300, 1))
    assert inception_score(sure, splits=1) == pytest.approx((K, 0.0), rel=1e-12)


def test_is_one_where_all_samples_look_alike() -> None:
    assert inception_score(np.tile(softmax(LOGITS[:1]), (100, 1))) == pytest.approx((1.0, 0.0), abs=1e-12)


def test_samples_sorted_by_class_are_mixed_over_the_splits() -> None:
    sorted_by_class = np.repeat(np.eye(K), 200, axis=0)
    assert inception_score(sorted_by_class, splits=10)[0] > 0.95 * K


@pytest.mark.parametrize(("batch", "processes"), [(1, 1), (7, 2), (400, 3)])
def test_does_not_depend_on_batches_and_processes(batch: int, processes: int) -> None:
    probabilities, total = softmax(LOGITS), InceptionScore(K, splits=4)
    for rank in range(processes):
        part, mine = InceptionScore(K, splits=4), np.arange(rank, N, processes)
        for start in range(0, len(mine), batch):
            part.add(probabilities[mine[start : start + batch]], mine[start : start + batch])
        total.merge(InceptionScore.from_state(load(save(part.state()))))
    assert total.count == N
    assert total.value() == pytest.approx(inception_score(probabilities, splits=4), rel=1e-12)
    batched = InceptionScore(K, splits=4)
    batched.add(probabilities, np.arange(N))
    assert total.interval(n=50) == pytest.approx(batched.interval(n=50), rel=1e-10)


def test_interval_holds_the_score_and_narrows_with_the_samples() -> None:
    widths = []
    for count in (400, 6400):
        score = InceptionScore(K, splits=1)
        score.add(softmax(np.random.default_rng(1).normal(0, 3, (count, K))), np.arange(count))
        low, high = score.interval(n=200)
        assert low < score.value()[0] < high
        widths.append(high - low)
    assert widths[1] < widths[0] / 2


def test_memory_does_not_grow_with_the_samples() -> None:
    score = InceptionScore(K)
    before = score.sums.nbytes
    score.add(softmax(LOGITS), np.arange(N))
    assert score.sums.nbytes == before


def test_without_samples_there_is_no_score() -> None:
    assert np.isnan(InceptionScore(K).value()).all()


@pytest.mark.parametrize("rows", [np.full((2, K), 0.5), -np.eye(K)])
def test_what_is_no_probability_is_a_mistake(rows: np.ndarray) -> None:
    with pytest.raises(ValueError, match="probabilities"):
        inception_score(rows)


def test_predictions_that_are_not_finite_are_refused() -> None:
    with pytest.raises(UserError, match="not finite"):
        inception_score(np.full((2, K), np.nan))


def test_softmax_of_huge_logits_is_finite() -> None:
    assert softmax(np.array([[1e4, 0.0], [-1e4, -1e4]])).tolist() == [[1.0, 0.0], [0.5, 0.5]]
