"""What all metrics of section 4 share: moments gathered sample by sample, and how far a number can be trusted.

Every sample has an index, its place in the whole set. Indices decide which of a fixed number of groups a sample falls into,
so halves, splits and intervals are the same for every batch size and every number of processes, and memory holds one set of
sums a group, however many samples there are. float64 throughout.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from videogen.config import UserError

Z = 1.959963984540054  # the 97.5% point of the normal distribution: all intervals are at 95%
GROUPS = 20


def group_of(indices: Sequence[int] | np.ndarray, groups: int, seed: int = 0) -> np.ndarray:
    """The group, 0..groups-1, of each sample index (N,): int64 (N,).

    Each run of `groups` indices that begins at a multiple of it is dealt over all groups in an order of its own, so the groups
    of a whole set differ in size by one at most, and no order of the samples (by class, by prompt) lines up with them.
    """
    indices = np.asarray(indices, dtype=np.int64)
    found = np.empty(len(indices), np.int64)
    for block in np.unique(indices // groups):
        mine = indices // groups == block
        found[mine] = np.random.default_rng([seed, int(block)]).permutation(groups)[indices[mine] % groups]
    return found


class Moments:
    """Count, mean (D,) and covariance (D, D) of samples seen so far (Chan, Golub, LeVeque 1979: exact under any merging)."""

    def __init__(self, dimensions: int) -> None:
        self.count = 0
        self.mean = np.zeros(dimensions)
        self.scatter = np.zeros((dimensions, dimensions))  # sum of outer products of the distances to the mean

    def add(self, features: np.ndarray) -> None:
        """Samples (N, D), N may be 0. Raises UserError where a value is not finite."""
        features = checked(features, len(self.mean))
        if len(features):
            mean = features.mean(0)
            self._join(len(features), mean, features - mean)

    def merge(self, other: Moments) -> None:
        """As if all samples of `other` had been added here."""
        if other.count:
            self.scatter += other.scatter
            self._join(other.count, other.mean, np.zeros((0, len(self.mean))))

    def _join(self, count: int, mean: np.ndarray, centred: np.ndarray) -> None:
        """Take in `count` samples by their mean and their distances to it; the distance of the means is one more row."""
        total = self.count + count
        step = mean - self.mean
        rows = np.vstack([centred, step * math.sqrt(self.count * count / total)])
        self.scatter += rows.T @ rows
        self.mean = self.mean + step * (count / total)
        self.count = total

    @property
    def covariance(self) -> np.ndarray:
        """Unbiased, (D, D). Raises UserError below two samples."""
        if self.count < 2:
            raise UserError(f"a covariance needs at least 2 samples, not {self.count}")
        return self.scatter / (self.count - 1)


class GroupedMoments:
    """Moments of each group of samples, and what follows from them: of the whole, of two halves, of a resampling."""

    def __init__(self, dimensions: int, groups: int = GROUPS, seed: int = 0) -> None:
        self.seed = seed
        self.parts = [Moments(dimensions) for _ in range(groups)]

    def add(self, features: np.ndarray, indices: Sequence[int] | np.ndarray) -> None:
        """Samples (N, D) and the index of each in the whole set (N,)."""
        features = checked(features, len(self.parts[0].mean))
        homes = group_of(indices, len(self.parts), self.seed)
        if len(homes) != len(features):
            raise ValueError(f"{len(features)} samples came with {len(homes)} indices")
        for home in np.unique(homes):
            self.parts[home].add(features[homes == home])

    def merge(self, other: GroupedMoments) -> None:
        """As if all samples of `other`, which another process saw, had been added here."""
        if len(self.parts) != len(other.parts) or self.seed != other.seed:
            raise ValueError("only moments of the same grouping can be merged")
        for mine, theirs in zip(self.parts, other.parts, strict=True):
            mine.merge(theirs)

    @property
    def count(self) -> int:
        return sum(part.count for part in self.parts)

    def whole(self) -> Moments:
        """Of all samples."""
        return merged(self.parts)

    def halves(self) -> tuple[Moments, Moments]:
        """Of two disjoint halves of the samples, in numbers that differ by one a block of indices at most."""
        return merged(self.parts[0::2]), merged(self.parts[1::2])

    def resampled(self, generator: np.random.Generator) -> Moments:
        """Of as many non-empty groups, drawn with replacement: one replicate of a bootstrap over groups."""
        filled = [part for part in self.parts if part.count]
        return merged([filled[i] for i in generator.integers(len(filled), size=len(filled))])

    def state(self) -> dict[str, np.ndarray]:
        """All there is, as arrays by name, to be saved as safetensors; `from_state` makes the same again."""
        return {
            "count": np.array([part.count for part in self.parts], np.int64),
            "mean": np.stack([part.mean for part in self.parts]),
            "scatter": np.stack([part.scatter for part in self.parts]),
            "seed": np.array([self.seed], np.int64),
        }

    @classmethod
    def from_state(cls, state: Mapping[str, np.ndarray]) -> GroupedMoments:
        groups, dimensions = state["mean"].shape
        made = cls(dimensions, groups, int(state["seed"][0]))
        for index, part in enumerate(made.parts):
            part.count = int(state["count"][index])
            part.mean = np.array(state["mean"][index])
            part.scatter = np.array(state["scatter"][index])
        return made


def merged(parts: Sequence[Moments]) -> Moments:
    """Moments of all samples of all parts."""
    total = Moments(len(parts[0].mean))
    for part in parts:
        total.merge(part)
    return total


def checked(features: np.ndarray, dimensions: int) -> np.ndarray:
    """The same as float64 (N, dimensions). Raises ValueError on another shape, UserError where a value is not finite."""
    features = np.asarray(features, dtype=np.float64)
    if features.ndim != 2 or features.shape[1] != dimensions:
        raise ValueError(f"features must be (N, {dimensions}), not {features.shape}")
    if not np.isfinite(features).all():
        raise UserError("a feature network returned numbers that are not finite: are its weights whole?")
    return features


def mean_interval(moments: GroupedMoments) -> tuple[float, float]:
    """95% interval of the mean of samples (N, 1): normal, from the unbiased deviation. Raises UserError below two samples."""
    whole = moments.whole()
    error = math.sqrt(float(whole.covariance[0, 0]) / whole.count)
    return float(whole.mean[0]) - Z * error, float(whole.mean[0]) + Z * error


def centred_interval(value: float, replicates: Sequence[float]) -> tuple[float, float]:
    """95% interval of a value from its bootstrap replicates, moved so that their mean lies on the value.

    Frechet distance and Inception Score depend on the number of *different* samples, of which a resampling has fewer: their
    replicates are all shifted one way, and only their scatter is the value's.
    """
    low, high = np.quantile(replicates, (0.025, 0.975)) - (np.mean(replicates) - value)
    return float(low), float(high)


def bootstrap(values: np.ndarray, statistic: Callable[[np.ndarray], float], seed: int, n: int = 1000) -> tuple[float, float]:
    """95% percentile interval of statistic(values) over `n` resamplings of the rows of `values`, each with its own seed."""
    values = np.asarray(values)
    if not len(values):
        raise UserError("an interval needs at least one value")
    generator = np.random.default_rng(seed)
    found = [float(statistic(values[generator.integers(len(values), size=len(values))])) for _ in range(n)]
    low, high = np.quantile(found, (0.025, 0.975))
    return float(low), float(high)


def wilson(successes: float, n: int) -> tuple[float, float]:
    """95% Wilson score interval of a rate, 0..1; (0, 1) without trials. Ties may count as half a success."""
    if not 0 <= successes <= n:
        raise ValueError(f"successes must lie in 0..{n}, not {successes}")
    if n == 0:
        return 0.0, 1.0
    rate, square = successes / n, Z * Z / n
    centre = (rate + square / 2) / (1 + square)
    reach = Z * math.sqrt(rate * (1 - rate) / n + square / (4 * n)) / (1 + square)
    return max(0.0, centre - reach), min(1.0, centre + reach)
