"""Clips, sources of clips, and batches of them that depend only on (seed, step): the data side of section 4.1."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Clip:
    """One captioned clip.

    frames: uint8 (F, H, W, 3), sRGB. fps: frames a second. flow: float32 (F, 2, 2, H, W) or None; `flow[i, 0]` leads from
    frame i to frame i-1 and `flow[i, 1]` to frame i+1, each as (x, y) in pixels: frame_i(p) = frame_j(p + flow(p)).
    labels: int64 (A,) or None; the class of each attribute where the source knows them (`diorama.ATTRIBUTES`).
    middle: (x, y) of the object's middle in the first frame, in pixels, or None where the source does not know it.
    paraphrases: other captions of the same clip, where the source has some.
    """

    frames: np.ndarray
    caption: str
    fps: float
    flow: np.ndarray | None = None
    labels: np.ndarray | None = None
    middle: tuple[float, float] | None = None
    paraphrases: tuple[str, ...] = ()


class ClipSource(Protocol):
    """Random access to clips: `clip(index)` is a pure function of the index, 0 <= index < len(source)."""

    def __len__(self) -> int: ...

    def clip(self, index: int) -> Clip: ...


@dataclass(frozen=True)
class ClipBatch:
    """frames: float32 (B, F, 3, H, W) in [-1, 1]; captions: B strings; fps: float32 (B,); flow: (B, F, 2, 2, H, W) or None;
    labels: int64 (B, A) or None; paraphrases: for each clip its other captions."""

    frames: Tensor
    captions: list[str]
    fps: Tensor
    flow: Tensor | None = None
    labels: Tensor | None = None
    paraphrases: list[tuple[str, ...]] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.captions)

    def to(self, device: torch.device | str) -> ClipBatch:
        flow, labels = (None if each is None else each.to(device) for each in (self.flow, self.labels))
        return ClipBatch(self.frames.to(device), self.captions, self.fps.to(device), flow, labels, self.paraphrases)

    def __getitem__(self, part: slice) -> ClipBatch:
        flow, labels = (None if each is None else each[part] for each in (self.flow, self.labels))
        return ClipBatch(self.frames[part], self.captions[part], self.fps[part], flow, labels, self.paraphrases[part])


@dataclass(frozen=True)
class ReadyBatch:
    """What an objective learns from of B clips, made by its frozen networks (`Objective.ready`): tensors (B, ...) by name, and
    B captions."""

    parts: Mapping[str, Tensor]
    captions: list[str]

    def __len__(self) -> int:
        return len(self.captions)

    def to(self, device: torch.device | str) -> ReadyBatch:
        return ReadyBatch({name: each.to(device) for name, each in self.parts.items()}, self.captions)

    def __getitem__(self, part: slice) -> ReadyBatch:
        return ReadyBatch({name: each[part] for name, each in self.parts.items()}, self.captions[part])


def collate(clips: list[Clip]) -> ClipBatch:
    """A batch from clips of equal size and length."""
    frames = torch.from_numpy(np.stack([clip.frames for clip in clips])).permute(0, 1, 4, 2, 3)
    flow, labels = (_joined([getattr(clip, name) for clip in clips]) for name in ("flow", "labels"))
    return ClipBatch(
        frames=frames.float().div_(127.5).sub_(1.0).contiguous(),
        captions=[clip.caption for clip in clips],
        fps=torch.tensor([clip.fps for clip in clips], dtype=torch.float32),
        flow=flow,
        labels=labels,
        paraphrases=[clip.paraphrases for clip in clips],
    )


def _joined(arrays: list[np.ndarray | None]) -> Tensor | None:
    known = [each for each in arrays if each is not None]
    return torch.from_numpy(np.stack(known)) if known else None
