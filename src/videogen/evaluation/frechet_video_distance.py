"""Frechet Video Distance (section 4.1; Unterthiner et al. 2018, arXiv 1812.01717), a pure function of feature moments.

FVD is the squared 2-Wasserstein distance of two Gaussians with the features' means and covariances:
|m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)). It is biased upwards by a term that falls as 1/N, so values of different sample
counts must not be compared; the distance of two halves of one set, which "should" be 0, shows how much.
"""

from __future__ import annotations

import numpy as np

from videogen.config import UserError
from videogen.evaluation.statistics import GroupedMoments, Moments, centred_interval

REPLICATES = 200


def frechet_distance(first: Moments, second: Moments) -> float:
    """Of two sets of features of one network, >= 0. Raises UserError below two samples, ValueError on other dimensions."""
    if first.mean.shape != second.mean.shape:
        raise ValueError(f"features have {len(first.mean)} and {len(second.mean)} dimensions")
    a, b = first.covariance, second.covariance
    # tr (AB)^(1/2) is the sum of the singular values of A^(1/2) B^(1/2): exact where A or B is singular, never complex.
    overlap = np.linalg.svd(square_root(a) @ square_root(b), compute_uv=False).sum()
    step = first.mean - second.mean
    return max(0.0, float(step @ step + np.trace(a) + np.trace(b) - 2 * overlap))


def square_root(covariance: np.ndarray) -> np.ndarray:
    """Symmetric root of a positive semi-definite (D, D)."""
    values, vectors = np.linalg.eigh(covariance)
    root: np.ndarray = (vectors * np.sqrt(np.maximum(values, 0.0))) @ vectors.T
    return root


def rank_deficient(samples: int, dimensions: int) -> bool:
    """Whether the covariance of so many samples must be singular: then FVD's value is dominated by its bias."""
    return samples - 1 < dimensions


def noise_floor(moments: GroupedMoments) -> float:
    """Distance between two disjoint halves of one set; each has half the samples, so more bias than the whole.

    Raises UserError below four samples.
    """
    if moments.count < 4:
        raise UserError(f"a noise floor needs at least 4 samples, not {moments.count}")
    return frechet_distance(*moments.halves())


def frechet_interval(
    first: GroupedMoments, second: GroupedMoments, seed: int = 0, n: int = REPLICATES
) -> tuple[float, tuple[float, float]]:
    """(standard deviation, 95% interval) of the distance over `n` resamplings of the groups of both sets.

    The interval is centred on the distance (see `centred_interval`) and cut at 0.
    """
    generator = np.random.default_rng(seed)
    found = [frechet_distance(first.resampled(generator), second.resampled(generator)) for _ in range(n)]
    low, high = centred_interval(frechet_distance(first.whole(), second.whole()), found)
    return float(np.std(found)), (max(0.0, low), max(0.0, high))
