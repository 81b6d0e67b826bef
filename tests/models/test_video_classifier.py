"""Promises of the network that judges Diorama's clips (ours): size, what it sees, and what it leaves on disk."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tiny import CLASSIFIER, alive, randn
from videogen.config import read_recipe
from videogen.data.diorama import ATTRIBUTES
from videogen.models.pretrained import load_network
from videogen.models.video_classifier import VideoClassifier
from videogen.training.objectives import build_objective

CLASSES = {"colour": 3, "shape": 2}


@pytest.fixture(scope="module")
def network() -> VideoClassifier:
    torch.manual_seed(0)
    return alive(VideoClassifier(CLASSES, ("blur",), **CLASSIFIER))


def test_the_recipe_makes_a_small_network() -> None:
    recipe = read_recipe("mini/video_classifier")
    network = build_objective(recipe, Path()).build(recipe.network)
    assert sum(item.numel() for item in network.parameters()) < 1_000_000
    features = network(randn(1, recipe.data.num_frames, 3, recipe.data.size, recipe.data.size))
    assert features.shape == (1, recipe.network["features"])
    assert {name: scores.shape[1] for name, scores in network.classify(features).items()} == {
        name: len(known) for name, known in ATTRIBUTES.items()
    }


@pytest.mark.parametrize(("frames", "height", "width"), [(4, 16, 16), (16, 32, 48), (1, 64, 64), (5, 17, 31)])
def test_clips_of_any_size_become_features(network: VideoClassifier, frames: int, height: int, width: int) -> None:
    features = network(randn(2, frames, 3, height, width))
    assert features.shape == (2, CLASSIFIER["features"])
    assert features.isfinite().all()
    assert {name: scores.shape for name, scores in network.classify(features).items()} == {"colour": (2, 3), "shape": (2, 2)}


def test_a_clip_is_judged_alone_and_the_order_of_its_frames_matters(network: VideoClassifier) -> None:
    clips = randn(3, 8, 3, 32, 32)
    together = network(clips)
    torch.testing.assert_close(torch.cat([network(clip[None]) for clip in clips]), together, rtol=1e-4, atol=1e-5)
    assert (network(clips.flip(1)) - together).abs().max() > 1e-3


def test_what_was_saved_is_loaded(network: VideoClassifier, tmp_path: Path) -> None:
    network.save_pretrained(tmp_path)
    loaded = load_network(VideoClassifier, tmp_path)
    assert loaded.config["classes"] == CLASSES
    clips = randn(1, 4, 3, 16, 16)
    torch.testing.assert_close(loaded(clips), network(clips))
