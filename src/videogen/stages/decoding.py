"""From latents to frames (section 3.4) by the video decoder, in overlapping windows of time so that memory stays bounded."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from videogen.models.video_decoder import VideoDecoder


@torch.no_grad()
def decode_video(
    decoder: VideoDecoder,
    latents: Tensor,
    *,
    window: int = 16,
    overlap: int = 4,
    on_step: Callable[[int, Tensor], None] | None = None,
) -> Tensor:
    """Scaled latents (B, F, C, h, w) -> frames (B, F, 3, H, W) in [-1, 1].

    Windows of `window` frames see `overlap` more on each side, whose output is dropped, so no seam shows. The result is the
    same for any batch. on_step(i, frames done) is called after window i, `num_windows` times.
    """
    total = latents.shape[1]
    parts = []
    for index, begin in enumerate(range(0, total, window)):
        first, last = max(0, begin - overlap), min(total, begin + window + overlap)
        frames = torch.cat([decoder(sample[None, first:last]) for sample in latents])
        parts.append(frames[:, begin - first : begin - first + window].clamp(-1, 1))
        if on_step is not None:
            on_step(index, torch.tensor(min(total, begin + window)))
    return torch.cat(parts, dim=1)


def num_windows(frames: int, window: int = 16) -> int:
    """How many windows `decode_video` makes of so many frames."""
    return -(-frames // window)
