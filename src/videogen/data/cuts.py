"""Scene cuts by classical means (section 4.1: clips without cuts; ours): what the histogram and the residual of frames tell."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import numpy as np
from PIL import Image

HISTOGRAM_CUT = 0.5  # share of pixels that change their bin: a cut whatever came before
FADE = 0.03  # mean change of a pixel, 1 being black to white, below which that is a fade
RESIDUAL_CUT = 0.1  # mean change of a pixel that is a cut
SURPRISE = 2.4  # where it is so many times the largest of the changes before
MEMORY = 4  # changes that are remembered
SIZE = (96, 54)  # width and height at which frames are compared


def histogram_changes(frames: np.ndarray) -> np.ndarray:
    """uint8 (F, H, W, 3) -> (F-1,): the share of pixels that change their bin in the luma histogram, 0 .. 1."""
    luma = frames.reshape(len(frames), -1, 3).mean(axis=2) // 16  # 16 bins
    histograms = np.stack([np.bincount(row.astype(np.int64), minlength=16) for row in luma]) / luma.shape[1]
    return np.asarray(np.abs(np.diff(histograms, axis=0)).sum(axis=1) / 2)


class CutDetector:
    """Tells, frame by frame, where a new shot begins. It looks back only, so it serves streams too.

    A cut changes the histogram by half, or changes pixels by a tenth and far more than any of the last changes did: a whip pan
    changes as much, but so did the frames before it.
    """

    def __init__(self) -> None:
        self._before: np.ndarray | None = None
        self._changes: deque[float] = deque(maxlen=MEMORY)

    def __call__(self, frame: np.ndarray) -> bool:
        """Does a new shot begin with this frame, uint8 (H, W, 3)? Never with the first."""
        small = np.asarray(Image.fromarray(frame).resize(SIZE, Image.Resampling.BOX))
        before, self._before = self._before, small
        if before is None:
            return False
        residual = float(np.abs(small.astype(np.int16) - before).mean() / 255)
        change = histogram_changes(np.stack([before, small]))[0]
        cut = bool(change >= HISTOGRAM_CUT and residual >= FADE)
        if self._changes:
            cut = cut or (residual >= RESIDUAL_CUT and residual >= SURPRISE * max(self._changes))
        self._changes.append(residual)
        return cut


def find_cuts(frames: Sequence[np.ndarray] | np.ndarray) -> list[int]:
    """The indices at which new shots begin, without 0; frames uint8 (F, H, W, 3)."""
    detector = CutDetector()
    return [index for index, frame in enumerate(frames) if detector(frame)]
