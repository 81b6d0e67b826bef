"""Windowed decoding (section 3.4)."""

from __future__ import annotations

import pytest
import torch

from tiny import CODER, alive, randn
from videogen.models.pseudo3d import PseudoConv3d
from videogen.models.video_decoder import VideoDecoder
from videogen.stages.decoding import decode_video, num_windows


@pytest.fixture(scope="module")
def decoder() -> VideoDecoder:
    torch.manual_seed(0)
    return alive(VideoDecoder(**CODER))


def receptive_field(decoder: VideoDecoder) -> int:
    """How many frames away a frame can be seen, without attention: each temporal convolution reaches one further."""
    return sum(isinstance(layer, PseudoConv3d) for layer in decoder.modules())


@torch.no_grad()
def test_windows_that_see_far_enough_equal_the_whole(decoder: VideoDecoder) -> None:
    """Tolerance: float32 rounding of pixels of size 1, since convolutions may pick another algorithm for another length."""
    latents = randn(1, 41, 4, 2, 2)
    whole = decoder(latents).clamp(-1, 1)
    reach = receptive_field(decoder)
    assert reach == 20
    torch.testing.assert_close(decode_video(decoder, latents, window=5, overlap=reach), whole, rtol=0, atol=1e-5)
    torch.testing.assert_close(decode_video(decoder, latents, window=41, overlap=0), whole, rtol=0, atol=1e-5)
    assert not torch.allclose(decode_video(decoder, latents, window=5, overlap=0), whole, atol=1e-3)  # seams


def test_every_number_of_frames_comes_back_whole(decoder: VideoDecoder) -> None:
    """No frame is lost, doubled or moved: without temporal neighbours every frame must equal itself alone."""
    torch.manual_seed(0)
    apart = VideoDecoder(**{**CODER, "block_out_channels": (8,)}).eval()  # as it starts: nothing leaks between frames
    latents = randn(1, 40, 4, 2, 2)
    alone = torch.cat([decode_video(apart, latents[:, i : i + 1]) for i in range(40)], dim=1)
    for frames in range(1, 41):
        told: list[tuple[int, int]] = []
        found = decode_video(
            apart, latents[:, :frames], window=7, overlap=2, on_step=lambda i, done, told=told: told.append((i, int(done)))
        )
        assert found.shape == (1, frames, 3, 2, 2)
        torch.testing.assert_close(found, alone[:, :frames], rtol=0, atol=1e-5)
        assert told == [(i, min(frames, 7 * (i + 1))) for i in range(num_windows(frames, 7))]


def test_a_video_is_the_same_alone_and_in_a_batch_bit_for_bit(decoder: VideoDecoder) -> None:
    latents = randn(3, 9, 4, 2, 3)
    assert torch.equal(decode_video(decoder, latents, window=4)[1:2], decode_video(decoder, latents[1:2], window=4))


def test_pixels_stay_in_range(decoder: VideoDecoder) -> None:
    frames = decode_video(decoder, 100 * randn(1, 3, 4, 2, 2))
    assert frames.abs().max() == 1
