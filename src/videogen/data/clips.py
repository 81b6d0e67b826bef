"""Clips, sources of clips, and batches of them that depend only on (seed, step): the data side of section 4.1."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Clip:
    """One captioned clip.

    frames: uint8 (F, H, W, 3), sRGB. fps: frames a second. flow: float32 (F, 2, 2, H, W) or None; `flow[i, 0]` leads from
    frame i to frame i-1 and `flow[i, 1]` to frame i+1, each as (x, y) in pixels: frame_i(p) = frame_j(p + flow(p)).
    """

    frames: np.ndarray
    caption: str
    fps: float
    flow: np.ndarray | None = None


class ClipSource(Protocol):
    """Random access to clips: `clip(index)` is a pure function of the index, 0 <= index < len(source)."""

    def __len__(self) -> int: ...

    def clip(self, index: int) -> Clip: ...


@dataclass(frozen=True)
class ClipBatch:
    """frames: float32 (B, F, 3, H, W) in [-1, 1]; captions: B strings; fps: float32 (B,); flow: (B, F, 2, 2, H, W) or None."""

    frames: Tensor
    captions: list[str]
    fps: Tensor
    flow: Tensor | None = None

    def __len__(self) -> int:
        return len(self.captions)

    def to(self, device: torch.device | str) -> ClipBatch:
        flow = None if self.flow is None else self.flow.to(device)
        return ClipBatch(self.frames.to(device), self.captions, self.fps.to(device), flow)

    def __getitem__(self, part: slice) -> ClipBatch:
        flow = None if self.flow is None else self.flow[part]
        return ClipBatch(self.frames[part], self.captions[part], self.fps[part], flow)


def collate(clips: list[Clip]) -> ClipBatch:
    """A batch from clips of equal size and length."""
    frames = torch.from_numpy(np.stack([clip.frames for clip in clips])).permute(0, 1, 4, 2, 3)
    flow = None
    if clips[0].flow is not None:
        flow = torch.from_numpy(np.stack([clip.flow for clip in clips if clip.flow is not None]))
    return ClipBatch(
        frames=frames.float().div_(127.5).sub_(1.0).contiguous(),
        captions=[clip.caption for clip in clips],
        fps=torch.tensor([clip.fps for clip in clips], dtype=torch.float32),
        flow=flow,
    )
