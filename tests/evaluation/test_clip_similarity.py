"""CLIPSIM's arithmetic."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torchmetrics.functional import pairwise_cosine_similarity

from videogen.config import UserError
from videogen.evaluation.clip_similarity import clip_similarity

IMAGES = np.random.default_rng(0).normal(size=(5, 16, 32))
TEXTS = np.random.default_rng(1).normal(size=(5, 32))


def test_is_the_mean_over_frames_of_torchmetrics_cosine() -> None:
    wanted = [
        float(pairwise_cosine_similarity(torch.from_numpy(frames), torch.from_numpy(text)[None]).mean())
        for frames, text in zip(IMAGES, TEXTS, strict=True)
    ]
    np.testing.assert_allclose(clip_similarity(IMAGES, TEXTS), wanted, rtol=1e-10)


def test_does_not_depend_on_the_lengths_of_the_features_and_on_the_batch() -> None:
    together = clip_similarity(IMAGES, TEXTS)
    np.testing.assert_allclose(clip_similarity(7 * IMAGES, 0.1 * TEXTS), together, rtol=1e-12)
    alone = [clip_similarity(IMAGES[i : i + 1], TEXTS[i : i + 1])[0] for i in range(5)]
    np.testing.assert_allclose(alone, together, rtol=1e-12)


def test_is_one_where_frames_and_text_agree_and_minus_one_where_they_oppose() -> None:
    frames = np.repeat(TEXTS[:, None], 3, axis=1)
    np.testing.assert_allclose(clip_similarity(frames, TEXTS), 1.0)
    np.testing.assert_allclose(clip_similarity(-frames, TEXTS), -1.0)


@pytest.mark.parametrize("bad", [0.0, np.nan, np.inf])
def test_features_without_a_direction_are_refused(bad: float) -> None:
    with pytest.raises(UserError, match="zero or not finite"):
        clip_similarity(IMAGES, np.full_like(TEXTS, bad))


def test_other_shapes_are_a_mistake() -> None:
    with pytest.raises(ValueError, match=r"\(N, F, D\)"):
        clip_similarity(IMAGES, TEXTS[:4])
