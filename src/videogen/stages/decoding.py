"""From latents to frames (section 3.4) by the video decoder, in overlapping windows of time and tiles of space.

Works for any video in a Stable Diffusion's latents; see docs/real_video.md for what windows and tiles cost in exactness.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from videogen.models.video_decoder import VideoDecoder
from videogen.stages.tiling import tiled

WINDOW = 16  # frames
OVERLAP = 4  # frames more on each side
TILE = 96  # latents along a side


def decode_video(
    decoder: VideoDecoder,
    latents: Tensor,
    *,
    window: int = WINDOW,
    overlap: int = OVERLAP,
    tile: int | None = TILE,
    on_step: Callable[[int, Tensor], None] | None = None,
) -> Tensor:
    """Scaled latents (B, F, C, h, w) -> frames (B, F, 3, H, W) in [-1, 1].

    Windows of `window` frames see `overlap` more on each side, whose output is dropped, so no seam shows. tile: latents along
    a side above which space is cut into overlapping tiles; None: never. The result is the same for any batch.
    on_step(i, frames done) is called after window i, `num_windows` times.
    """
    parts, done = [], 0
    for index, part in enumerate(decoded_windows(decoder, latents, window=window, overlap=overlap, tile=tile)):
        parts.append(part)
        done += part.shape[1]
        if on_step is not None:
            on_step(index, torch.tensor(done))
    return torch.cat(parts, dim=1)


@torch.no_grad()
def decoded_windows(
    decoder: VideoDecoder,
    latents: Tensor,
    *,
    frames: range | None = None,
    window: int = WINDOW,
    overlap: int = OVERLAP,
    tile: int | None = TILE,
) -> Iterator[Tensor]:
    """`decode_video` window by window: (B, at most `window`, 3, H, W) each, so that a long video is never whole in memory.

    frames: which of them to decode, the others are only seen from there; default: all.
    """
    frames = range(latents.shape[1]) if frames is None else frames

    def decode(part: Tensor) -> Tensor:
        return torch.cat([_decode_space(decoder, sample[None], tile) for sample in part])

    for begin in range(frames.start, frames.stop, window):
        end = min(begin + window, frames.stop)
        first, last = max(0, begin - overlap), min(latents.shape[1], end + overlap)
        yield decode(latents[:, first:last])[:, begin - first : end - first].clamp(-1, 1)


def _decode_space(decoder: VideoDecoder, latents: Tensor, tile: int | None) -> Tensor:
    if tile is None:
        return decoder(latents)
    return tiled(decoder, decoder, latents, tile=tile, overlap=tile // 4)


def num_windows(frames: int, window: int = WINDOW) -> int:
    """How many windows `decode_video` makes of so many frames."""
    return -(-frames // window)
