"""Inception Score (section 4.1; Salimans et al. 2016, arXiv 1606.03498), a pure function of class probabilities.

exp of the mean divergence between each sample's class distribution and that of all: 1 .. number of classes. Of C3D
probabilities over UCF-101's classes it is the video Inception Score of Saito et al. 2020 (TGAN v2, arXiv 1811.09245), whose
+- is the deviation over ten sets of 2,048 samples: `splits=10` over 20,480 samples. It is biased by the samples a split.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from videogen.evaluation.statistics import centred_interval, checked, group_of

SUBGROUPS = 10  # groups a split, for the bootstrap
REPLICATES = 1000


def inception_score(probabilities: np.ndarray, splits: int = 10, seed: int = 0) -> tuple[float, float]:
    """(mean, standard deviation) over the splits, of class probabilities (N, K). See `InceptionScore`."""
    score = InceptionScore(np.shape(probabilities)[1], splits, seed)
    score.add(probabilities, np.arange(len(probabilities)))
    return score.value()


class InceptionScore:
    """The score gathered sample by sample. State: for each group, how many, sum of p (K,), sum of p log p.

    A sample's index decides its split (see `group_of`): consecutive splits of samples sorted by class would see only a few
    classes each.
    """

    def __init__(self, classes: int, splits: int = 10, seed: int = 0) -> None:
        if splits < 1:
            raise ValueError(f"splits must be at least 1, not {splits}")
        self.splits, self.seed = splits, seed
        self.sums = np.zeros((splits * SUBGROUPS, classes + 2))

    def add(self, probabilities: np.ndarray, indices: Sequence[int] | np.ndarray) -> None:
        """Class probabilities (N, K), rows summing to 1, and the index of each sample in the whole set (N,)."""
        p = checked(probabilities, self.sums.shape[1] - 2)
        if (p < 0).any() or (abs(p.sum(1) - 1) > 1e-3).any():
            raise ValueError("rows must be probabilities: not negative, and summing to 1")
        rows = np.column_stack([np.ones(len(p)), p, xlogx(p).sum(1)])
        np.add.at(self.sums, group_of(indices, len(self.sums), self.seed), rows)

    def merge(self, other: InceptionScore) -> None:
        """As if all samples of `other`, which another process saw, had been added here."""
        if self.sums.shape != other.sums.shape or self.splits != other.splits or self.seed != other.seed:
            raise ValueError("only scores of the same classes, splits and seed can be merged")
        self.sums += other.sums

    @property
    def count(self) -> int:
        return int(self.sums[:, 0].sum())

    def value(self) -> tuple[float, float]:
        """(mean, standard deviation) of the scores of the splits that have samples; (nan, nan) without any."""
        return _score(self.sums.reshape(self.splits, SUBGROUPS, -1).sum(1))

    def interval(self, seed: int = 0, n: int = REPLICATES) -> tuple[float, float]:
        """95% interval of the mean, from resampling the groups inside each split; centred on it (see `centred_interval`)."""
        generator = np.random.default_rng(seed)
        groups = self.sums.reshape(self.splits, SUBGROUPS, -1)
        found = []
        for _ in range(n):
            drawn = generator.integers(SUBGROUPS, size=(self.splits, SUBGROUPS))
            mean, _ = _score(np.take_along_axis(groups, drawn[:, :, None], axis=1).sum(1))
            found.append(mean)
        return centred_interval(self.value()[0], [mean for mean in found if np.isfinite(mean)])

    def state(self) -> dict[str, np.ndarray]:
        """All there is, as arrays by name, to be saved as safetensors; `from_state` makes the same again."""
        return {"sums": self.sums.copy(), "splits": np.array([self.splits]), "seed": np.array([self.seed])}

    @classmethod
    def from_state(cls, state: Mapping[str, np.ndarray]) -> InceptionScore:
        made = cls(state["sums"].shape[1] - 2, int(state["splits"][0]), int(state["seed"][0]))
        made.sums = np.array(state["sums"], np.float64)
        return made


def _score(sums: np.ndarray) -> tuple[float, float]:
    """Rows (count, sum of p, sum of p log p) -> mean and standard deviation of the rows' scores."""
    sums = sums[sums[:, 0] > 0]
    if not len(sums):
        return float("nan"), float("nan")
    means = sums[:, 1:] / sums[:, :1]
    scores = np.exp(means[:, -1] - xlogx(means[:, :-1]).sum(1))
    return float(scores.mean()), float(scores.std())


def xlogx(p: np.ndarray) -> np.ndarray:
    """p log p, 0 at p = 0."""
    found: np.ndarray = p * np.log(np.where(p > 0, p, 1.0))
    return found


def softmax(logits: np.ndarray) -> np.ndarray:
    """Logits (N, K) -> probabilities (N, K), in float64."""
    logits = np.asarray(logits, np.float64)
    powers = np.exp(logits - logits.max(1, keepdims=True))
    probabilities: np.ndarray = powers / powers.sum(1, keepdims=True)
    return probabilities
