"""Pseudo-3-D layers against the textbook layers that they are a fast layout of (section 3.2)."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tiny import CODER, alive, randn
from videogen.models import pseudo3d
from videogen.models.pseudo3d import PseudoConv3d, TemporalAttention, frame_positions
from videogen.models.video_decoder import VideoDecoder

CHANNELS_LAST = torch.channels_last


@pytest.mark.parametrize("memory", [torch.contiguous_format, CHANNELS_LAST])
@pytest.mark.parametrize(("stride", "frames"), [(1, 5), (2, 3), (1, 1)])
def test_the_convolution_is_a_2d_one_then_a_1d_one_over_time(memory: torch.memory_format, stride: int, frames: int) -> None:
    layer = alive(PseudoConv3d(3, 6, 3, stride=stride, padding=1).double(), scale=0.3)
    x = randn(2 * frames, 3, 8, 6, dtype=torch.float64)
    spatial = F.conv2d(x, layer.weight, layer.bias, stride, padding=1)  # (B*F, C, H, W)
    _, channels, height, width = spatial.shape
    lines = spatial.unflatten(0, (2, frames)).permute(0, 3, 4, 2, 1).reshape(-1, channels, frames)  # (B*H*W, C, F)
    lines = F.conv1d(lines, layer.temporal.weight[..., 0], layer.temporal.bias, padding=1)
    expected = lines.view(2, height, width, channels, frames).permute(0, 4, 3, 1, 2).flatten(0, 1)
    found = layer(x.contiguous(memory_format=memory), frames)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def test_the_convolution_starts_as_the_2d_one_bit_for_bit_and_keeps_the_layout() -> None:
    layer = PseudoConv3d(4, 8, 3, padding=1)
    x = randn(6, 4, 8, 8).contiguous(memory_format=CHANNELS_LAST)
    found = layer(x, 3)
    assert torch.equal(found, nn.Conv2d.forward(layer, x))
    assert found.is_contiguous(memory_format=CHANNELS_LAST)


@pytest.mark.parametrize("size", [1, 700, 5000])
def test_in_inference_large_videos_are_worked_on_in_parts_with_the_same_result(
    monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    decoder, latents = alive(VideoDecoder(**CODER)), randn(2, 5, 4, 6, 3)
    whole = decoder(latents).detach()
    monkeypatch.setattr(pseudo3d, "PART", size)
    assert torch.equal(decoder(latents), whole)  # with gradients: never in parts
    seen = []
    decoder.decoder.up_blocks[-1].resnets[0].norm1.register_forward_hook(lambda _, given, __: seen.append(len(given[0])))
    with torch.no_grad():
        torch.testing.assert_close(decoder(latents), whole, rtol=0, atol=1e-5)
    assert sum(seen) == 10
    assert len(seen) > 1


def naive(layer: TemporalAttention, x: Tensor, frames: int) -> Tensor:
    """Position by position, head by head, with the softmax written out."""
    video = x.unflatten(0, (-1, frames))  # (B, F, N, C)
    positions = frame_positions(frames, x.shape[-1], x)
    out = video.clone()
    for b in range(video.shape[0]):
        for n in range(video.shape[2]):
            tokens = layer.norm(video[b, :, n]) + positions  # (F, C)
            heads = []
            parts = (linear(tokens).chunk(layer.num_heads, dim=-1) for linear in (layer.to_q, layer.to_k, layer.to_v))
            for q, k, v in zip(*parts, strict=True):
                heads.append((q @ k.T / q.shape[-1] ** 0.5).softmax(-1) @ v)
            out[b, :, n] += layer.to_out[0](torch.cat(heads, dim=-1))
    return out.flatten(0, 1)


@pytest.mark.parametrize(
    ("channels", "frames", "height", "width"), [(16, 5, 3, 4), (128, 3, 2, 2), (8, 1, 2, 3), (192, 2, 1, 5)]
)
def test_temporal_attention_mixes_the_frames_of_each_position(channels: int, frames: int, height: int, width: int) -> None:
    layer = alive(TemporalAttention(channels).double(), scale=0.2)
    assert layer.num_heads == max(1, channels // 64)
    x = randn(2 * frames, height * width, channels, dtype=torch.float64)
    torch.testing.assert_close(layer(x, frames, height), naive(layer, x, frames), rtol=0, atol=1e-12)


def test_temporal_attention_starts_as_the_identity_bit_for_bit() -> None:
    x = randn(8, 6, 16)
    assert torch.equal(TemporalAttention(16)(x, 4, 2), x)


def test_frames_are_told_apart() -> None:
    layer = alive(TemporalAttention(16), scale=0.3)
    still = randn(1, 6, 16).expand(4, -1, -1)
    out = layer(still, 4, 2)
    assert not torch.allclose(out[0], out[3])
    assert frame_positions(5, 7, still).shape == (5, 7)
    assert frame_positions(300, 16, still).unique(dim=0).shape == (300, 16)
