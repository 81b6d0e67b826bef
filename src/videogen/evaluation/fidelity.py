"""Does a video keep its reference, does it move, does it flicker: what FVD and CLIPSIM of section 4.1 do not show.

Pure functions of pixels, float64. Optical flow is classical (DIS of OpenCV, in the extra `data`) or given.
"""

from __future__ import annotations

import importlib
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from videogen.config import UserError
from videogen.models.ifrnet import backward_warp

MAX_PSNR = 100.0  # of equal images, dB: means stay finite


def psnr(first: np.ndarray, second: np.ndarray) -> float:
    """Of two uint8 images or videos of one shape, dB, over all their pixels; at most MAX_PSNR."""
    _check_alike(first, second)
    error = np.square(first.astype(np.float64) - second).mean() / 255**2
    return MAX_PSNR if error == 0 else min(MAX_PSNR, float(-10 * np.log10(error)))


def ssim(first: np.ndarray, second: np.ndarray) -> float:
    """Structural similarity (Wang et al. 2004) of two uint8 images (H, W, 3), -1..1: mean over channels and places.

    Gaussian window of 11x11, sigma 1.5, K1 0.01, K2 0.03, borders reflected. Raises UserError below 11 pixels a side.
    """
    _check_alike(first, second)
    if min(first.shape[:2]) < 11:
        raise UserError(f"SSIM needs sides of at least 11 pixels, not {first.shape[1]}x{first.shape[0]}")
    a, b = (image.astype(np.float64) / 255 for image in (first, second))
    mean_a, mean_b = _blur(a), _blur(b)
    var_a, var_b, both = _blur(a * a) - mean_a**2, _blur(b * b) - mean_b**2, _blur(a * b) - mean_a * mean_b
    c1, c2 = 0.01**2, 0.03**2
    lightness = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
    return float((lightness * (2 * both + c2) / (var_a + var_b + c2)).mean())


def _blur(x: np.ndarray) -> np.ndarray:
    """Gaussian-weighted means of the 11x11 window around each place (H, W, C)."""
    weights = np.exp(-0.5 * (np.arange(-5, 6) / 1.5) ** 2)
    weights /= weights.sum()
    x = np.pad(x, ((5, 5), (5, 5), (0, 0)), mode="reflect")
    for axis in (0, 1):
        x = np.lib.stride_tricks.sliding_window_view(x, 11, axis) @ weights
    return x


def reference_fidelity(frames: np.ndarray, reference: np.ndarray) -> dict[str, float]:
    """The first frame of a video uint8 (F, H, W, 3) against its reference uint8 (H, W, 3): `psnr` and `ssim`.

    Raises UserError where the sizes differ: fit the reference first, as the pipeline does (`image_to_tensor`).
    """
    return {"psnr": psnr(frames[0], reference), "ssim": ssim(frames[0], reference)}


@dataclass(frozen=True)
class Motion:
    """How much a video moves; all are 0 for a frozen one.

    flow: mean length of the optical flow between neighbours, frame heights a second; change: mean absolute difference of
    neighbours, 0..1; still: share of neighbours that are equal in every pixel.
    """

    flow: float
    change: float
    still: float


def motion_amount(frames: np.ndarray, fps: float, flows: np.ndarray | None = None) -> Motion:
    """Of a video uint8 (F, H, W, 3). flows: as `warping_error` takes them; None: DIS. Raises UserError below two frames."""
    _check_frames(frames)
    flows = dis_flows(frames) if flows is None else _checked_flows(flows, frames)
    lengths = np.linalg.norm(flows.astype(np.float64), axis=-1)
    steps = np.array([np.abs(b.astype(np.float64) - a).mean() for a, b in itertools.pairwise(frames)])
    return Motion(float(lengths.mean() * fps / frames.shape[1]), float(steps.mean() / 255), float((steps == 0).mean()))


def warping_error(frames: np.ndarray, flows: np.ndarray | None = None, backward: np.ndarray | None = None) -> float:
    """Flicker: mean squared difference between a frame and the next one warped back onto it (Lai et al. 2018, 1808.00449).

    frames: uint8 (F, H, W, 3), values counted in 0..1; flows: (F - 1, H, W, 2), pixels (x, y), pixel p of frame t is at
    p + flow(p) in frame t + 1; backward: the same from t + 1 to t. Pixels that leave the picture or, where backward flow is
    known, are hidden (Ruder et al. 2016) do not count; without flows both are DIS's. 0 where every pixel is hidden.
    Raises UserError below two frames.
    """
    _check_frames(frames)
    if flows is None:
        flows, backward = dis_flows(frames), dis_flows(frames[::-1])[::-1]
    flows = _checked_flows(flows, frames)
    backward = None if backward is None else _checked_flows(backward, frames)
    total, counted = 0.0, 0
    for t, flow in enumerate(flows):
        mask = _visible(flow, None if backward is None else backward[t])
        here, there = (frame.astype(np.float64) / 255 for frame in (frames[t], frames[t + 1]))
        total += float(np.square(here - warp(there, flow)).mean(-1)[mask].sum())
        counted += int(mask.sum())
    return total / counted if counted else 0.0


def warp(image: np.ndarray, flow: np.ndarray) -> np.ndarray:
    """Image (H, W, C) and flow (H, W, 2), pixels (x, y) -> image at p + flow(p), bilinear, float64 (H, W, C)."""
    found = backward_warp(_planes(image), _planes(flow))
    return np.asarray(found[0].permute(1, 2, 0))


def _planes(x: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(x, np.float64)).permute(2, 0, 1)[None]


def _visible(flow: np.ndarray, backward: np.ndarray | None) -> np.ndarray:
    """Pixels (H, W) whose place in the next frame is inside it and, by the consistency of both flows, not hidden."""
    height, width = flow.shape[:2]
    x, y = flow[..., 0] + np.arange(width), flow[..., 1] + np.arange(height)[:, None]
    mask: np.ndarray = (x >= 0) & (x <= width - 1) & (y >= 0) & (y <= height - 1)
    if backward is not None:
        back = warp(backward, flow)
        lengths = np.square(flow).sum(-1) + np.square(back).sum(-1)
        mask &= np.square(flow + back).sum(-1) <= 0.01 * lengths + 0.5
    return mask


def dis_flows(frames: Sequence[np.ndarray] | np.ndarray) -> np.ndarray:
    """Optical flow from each frame uint8 (F, H, W, 3) to the next by DIS (Kroeger et al. 2016): float32 (F - 1, H, W, 2).

    Raises UserError where OpenCV is not installed or the frames are below 16 pixels a side.
    """
    cv2 = opencv()
    if min(frames[0].shape[:2]) < 16:
        raise UserError("optical flow needs sides of at least 16 pixels")
    method = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    grey = [cv2.cvtColor(np.ascontiguousarray(frame), cv2.COLOR_RGB2GRAY) for frame in frames]
    return np.stack([method.calc(a, b, None) for a, b in itertools.pairwise(grey)])


def opencv() -> Any:
    """The module cv2, of the extra `data`. Raises UserError where it is missing."""
    try:
        return importlib.import_module("cv2")
    except ImportError:
        raise UserError('this metric needs OpenCV: pip install "reference-videogen[data]"') from None


def _check_alike(first: np.ndarray, second: np.ndarray) -> None:
    if first.dtype != np.uint8 or second.dtype != np.uint8:
        raise ValueError(f"images must be uint8, not {first.dtype} and {second.dtype}")
    if first.shape != second.shape:
        raise UserError(f"images of {first.shape} and {second.shape} cannot be compared: resize one first")


def _check_frames(frames: np.ndarray) -> None:
    if frames.ndim != 4 or frames.dtype != np.uint8:
        raise ValueError(f"frames must be uint8 (F, H, W, 3), not {frames.dtype} {frames.shape}")
    if len(frames) < 2:
        raise UserError("a video of one frame has no motion to measure")


def _checked_flows(flows: np.ndarray, frames: np.ndarray) -> np.ndarray:
    wanted = (len(frames) - 1, *frames.shape[1:3], 2)
    if flows.shape != wanted:
        raise ValueError(f"flows must be {wanted}, not {flows.shape}")
    return flows.astype(np.float64)
