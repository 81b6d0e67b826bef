"""VideoDecoder (section 3.4): what it equals before training, and what reaches what."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL

from tiny import IMAGE_CODER, alive, randn
from videogen.models.initialization import decoder_tensors, initialize_from
from videogen.models.pretrained import load_network
from videogen.models.video_decoder import VideoDecoder

SHARED = ("latent_channels", "block_out_channels", "layers_per_block", "norm_num_groups", "mid_block_add_attention")
LIKE_SD = {**IMAGE_CODER, "block_out_channels": (8, 16, 16), "layers_per_block": 2, "mid_block_add_attention": True}


def pair(arguments: dict[str, Any]) -> tuple[AutoencoderKL, VideoDecoder]:
    """An autoencoder with random weights, and the video decoder that starts from it."""
    torch.manual_seed(0)
    image = alive(AutoencoderKL(**arguments, scaling_factor=0.7))
    video = VideoDecoder(**{name: image.config[name] for name in SHARED}, scaling_factor=0.7).eval()
    initialize_from(video, decoder_tensors(image.state_dict()))
    return image, video


@pytest.mark.parametrize("arguments", [IMAGE_CODER, LIKE_SD], ids=["like mini", "like SD"])
@torch.no_grad()
def test_it_starts_as_the_image_decoder_frame_by_frame(arguments: dict[str, Any]) -> None:
    """Tolerance: float32 rounding of outputs of size 1; convolutions may pick another algorithm for another batch."""
    image, video = pair(arguments)
    latents = randn(2, 3, 4, 6, 5)
    frames = video(latents)
    assert frames.shape == (2, 3, 3, 24, 20)
    expected = torch.stack([image.decode(latents[:, i] / 0.7).sample for i in range(3)], dim=1)
    torch.testing.assert_close(frames, expected, rtol=0, atol=1e-5)


@torch.no_grad()
def test_frames_are_alone_at_the_start_and_see_each_other_after_training() -> None:
    _, video = pair(LIKE_SD)
    latents = randn(1, 4, 4, 4, 4)
    other = latents.clone()
    other[:, -1] += 1

    def changed() -> list[bool]:
        difference = (video(other) - video(latents)).abs().amax(dim=(0, 2, 3, 4))
        return [value > 1e-5 for value in difference.tolist()]

    assert changed() == [False, False, False, True]
    video.decoder.conv_out.temporal.weight[:, :, 2] += 0.1  # the tap on the next frame
    assert changed() == [False, False, True, True]
    attention = video.decoder.mid_block.attentions[0].temporal_attention
    attention.to_out[0].weight += torch.eye(16)
    assert changed() == [True] * 4


def test_every_weight_is_trained_after_a_step() -> None:
    video = alive(pair(LIKE_SD)[1])
    video(randn(1, 3, 4, 4, 4)).square().mean().backward()
    still = [name for name, item in video.named_parameters() if item.grad is None or not item.grad.abs().max() > 0]
    assert [name for name in still if not name.endswith("to_k.bias")] == []  # a bias of all keys cancels in the softmax


@torch.no_grad()
def test_saving_and_loading_changes_no_bit(tmp_path: Path) -> None:
    video, latents = alive(pair(LIKE_SD)[1]), randn(1, 3, 4, 4, 4)
    video.save_pretrained(tmp_path)
    loaded = load_network(VideoDecoder, tmp_path)
    assert loaded.config.scaling_factor == 0.7
    assert torch.equal(loaded(latents), video(latents))


@torch.no_grad()
def test_it_compiles_to_one_graph() -> None:
    video, latents = alive(pair(LIKE_SD)[1]), randn(1, 3, 4, 4, 4)
    compiled = torch.compile(video, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(latents), video(latents), rtol=0, atol=1e-5)
