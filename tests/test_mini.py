"""The weights that come with the package: whole, small, and good for a video on any machine."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import videogen
from videogen.pipeline import VideoGenPipeline

FOLDER = Path(videogen.__file__).parent / "pretrained" / "mini"
PROMPT = "a red ball bounces over a meadow at sunset"


@pytest.fixture(scope="module")
def mini() -> VideoGenPipeline:
    return VideoGenPipeline.from_pretrained("mini")


def test_mini_is_at_most_60_megabytes_and_holds_no_pickle() -> None:
    files = [path for path in FOLDER.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 60_000_000
    assert {path.suffix for path in files} <= {".json", ".safetensors", ".txt"}


def test_every_component_of_mini_is_there(mini: VideoGenPipeline) -> None:
    assert all(component is not None for component in mini.components.values())
    assert mini.size == (256, 256)


def test_mini_paints_what_the_prompt_names(mini: VideoGenPipeline) -> None:
    generators = [torch.Generator().manual_seed(seed) for seed in range(2)]
    prompts = [PROMPT, "a blue ball rests over a snowfield"]
    output = mini(prompts, num_frames=2, temporal_factor=1, generator=generators, output_type="np", num_inference_steps=10)
    assert output.reference is not None
    red, blue = (np.asarray(picture, dtype=np.float32) for picture in output.reference)
    middle = np.s_[80:200, 68:188]
    redness = (red[..., 0] - red[..., 1:].max(-1))[middle]
    blueness = (blue[..., 2] - blue[..., :2].max(-1))[middle]
    assert (redness > 60).sum() > 600  # of 14400 pixels
    assert (blueness > 60).sum() > 600


def test_the_same_seed_gives_the_same_video(mini: VideoGenPipeline) -> None:
    videos = [
        mini(PROMPT, num_frames=3, temporal_factor=2, num_inference_steps=2, output_type="np", generator=torch.manual_seed(5))
        for _ in range(2)
    ]
    assert videos[0].frames.shape == (1, 5, 256, 256, 3)
    assert np.array_equal(videos[0].frames, videos[1].frames)
