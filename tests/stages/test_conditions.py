"""The conditions of section 3.2: text states and frame latents, on tiny real parts."""

from __future__ import annotations

import pytest
import torch

from tiny import TEXT, clips, randn
from videogen.pipeline import VideoGenPipeline
from videogen.stages.conditions import encode_frames, encode_text, resize_frames


def test_a_prompt_has_the_same_states_alone_and_in_a_batch(tiny_pipe: VideoGenPipeline) -> None:
    parts = tiny_pipe.tokenizer, tiny_pipe.text_encoder
    prompts = ["a red ball bounces", "", "a blue star 🎈 over the sea " * 40]
    states = encode_text(*parts, prompts)
    assert states.shape == (3, tiny_pipe.tokenizer.model_max_length, TEXT)
    assert states.isfinite().all()
    for i, prompt in enumerate(prompts):
        torch.testing.assert_close(states[i : i + 1], encode_text(*parts, [prompt]), rtol=0, atol=1e-5)
    assert not torch.allclose(states[0], states[1])


def test_frames_become_the_encoders_mean_scaled(tiny_pipe: VideoGenPipeline) -> None:
    vae, frames = tiny_pipe.vae, clips(2, 3).frames
    latents = encode_frames(vae, frames)
    assert latents.shape == (2, 3, 4, 8, 8)
    with torch.no_grad():
        expected = vae.encode(frames[1]).latent_dist.mean * vae.config.scaling_factor
    torch.testing.assert_close(latents[1], expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(encode_frames(vae, frames, chunk=1), latents, rtol=0, atol=1e-6)
    assert encode_frames(vae, frames.bfloat16()).dtype == torch.bfloat16


def test_resizing_keeps_constants_means_and_leading_axes() -> None:
    frames = randn(2, 3, 3, 32, 48)
    assert resize_frames(frames, (32, 48)) is frames
    small = resize_frames(frames, (8, 12))
    assert small.shape == (2, 3, 3, 8, 12)
    assert small.std() < 0.5 * frames.std()  # antialiased: white noise is averaged, not picked
    assert torch.equal(small[1, 2], resize_frames(frames[1, 2][None], (8, 12))[0])
    torch.testing.assert_close(resize_frames(torch.full((1, 3, 9, 7), 0.3), (4, 5)), torch.full((1, 3, 4, 5), 0.3))


@pytest.mark.parametrize("frames", [1, 33])
def test_any_number_of_frames(tiny_pipe: VideoGenPipeline, frames: int) -> None:
    assert encode_frames(tiny_pipe.vae, torch.zeros(frames, 3, 8, 8)).shape == (frames, 4, 2, 2)
