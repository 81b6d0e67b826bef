"""Fidelity, motion and flicker: torchmetrics' PSNR and SSIM, exact warps, and videos that cannot hide."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

from videogen.config import UserError
from videogen.data.diorama import Diorama
from videogen.evaluation.fidelity import (
    MAX_PSNR,
    dis_flows,
    motion_amount,
    psnr,
    reference_fidelity,
    ssim,
    warp,
    warping_error,
)
from videogen.video import read_video

HEIGHT, WIDTH = 40, 48


def picture(seed: int = 0, height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    """A smooth random texture, uint8."""
    coarse = torch.rand(1, 3, height // 4, width // 4, generator=torch.Generator().manual_seed(seed))
    smooth = torch.nn.functional.interpolate(coarse, size=(height, width), mode="bicubic").clamp(0, 1)
    return np.rint(255 * smooth[0].permute(1, 2, 0).numpy()).astype(np.uint8)


def sliding(count: int, step: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """A window that slides over a large picture by `step` (x, y) pixels a frame: frames and their exact flow."""
    dx, dy = step
    large = picture(1, HEIGHT + 8 * count, WIDTH + 8 * count)
    frames = np.stack([large[dy * t : dy * t + HEIGHT, dx * t : dx * t + WIDTH] for t in range(count)])
    return frames, np.broadcast_to(np.array([-dx, -dy], np.float32), (count - 1, HEIGHT, WIDTH, 2))


FROZEN = np.repeat(picture()[None], 5, axis=0)


def test_psnr_and_ssim_equal_torchmetrics() -> None:
    first, second = picture(0), picture(1)
    a, b = (torch.from_numpy(image).double().permute(2, 0, 1)[None] / 255 for image in (first, second))
    torch.set_default_dtype(torch.float64)  # or torchmetrics' log 10 is float32
    try:
        assert psnr(first, second) == pytest.approx(float(peak_signal_noise_ratio(a, b, data_range=1.0)), rel=1e-8)
    finally:
        torch.set_default_dtype(torch.float32)
    wanted = structural_similarity_index_measure(a, b, data_range=1.0)
    assert isinstance(wanted, torch.Tensor)
    assert ssim(first, second) == pytest.approx(float(wanted), rel=1e-8)


def test_a_video_that_begins_with_its_reference_is_faithful() -> None:
    assert reference_fidelity(FROZEN, FROZEN[0]) == {"psnr": MAX_PSNR, "ssim": pytest.approx(1.0, rel=1e-12)}
    other = reference_fidelity(FROZEN, picture(7))
    assert other["psnr"] < 20
    assert other["ssim"] < 0.5


@pytest.mark.parametrize("metric", [psnr, ssim])
def test_images_of_different_sizes_are_refused(metric: Any) -> None:
    with pytest.raises(UserError, match="resize one first"):
        metric(picture(), picture()[:-1])
    with pytest.raises(ValueError, match="uint8"):
        metric(picture().astype(np.float32), picture())


def test_ssim_of_images_smaller_than_its_window_is_refused() -> None:
    with pytest.raises(UserError, match="at least 11 pixels"):
        ssim(picture()[:10], picture()[:10])


def test_a_frozen_video_does_not_move_and_does_not_flicker() -> None:
    motion = motion_amount(FROZEN, fps=8)
    assert (motion.flow, motion.change, motion.still) == (0.0, 0.0, 1.0)
    assert warping_error(FROZEN) < 1e-25


def test_motion_is_measured_in_frame_heights_a_second() -> None:
    frames, flows = sliding(4, (3, 4))
    assert motion_amount(frames, fps=8, flows=flows).flow == pytest.approx(5 * 8 / HEIGHT, rel=1e-6)
    assert motion_amount(frames, fps=8).flow == pytest.approx(5 * 8 / HEIGHT, rel=0.25)  # as DIS sees it
    assert motion_amount(frames, fps=8).still == 0.0
    assert motion_amount(frames, fps=8).change > 0.01


@pytest.mark.parametrize("step", [(0, 0), (2, 0), (0, 3), (3, 1)])
def test_a_perfectly_warped_pair_has_no_warping_error(step: tuple[int, int]) -> None:
    frames, flows = sliding(3, step)
    assert warping_error(frames, flows) < 1e-20
    assert warping_error(frames, flows, -flows) < 1e-20


def test_motion_alone_is_no_flicker_but_flicker_is() -> None:
    frames, flows = sliding(5, (2, 1))
    moved = warping_error(frames)
    flickering = frames.copy()
    flickering[1::2] = np.clip(flickering[1::2].astype(int) + 20, 0, 255)
    still = warping_error(frames, np.zeros_like(flows))
    assert moved < 0.2 * still
    assert warping_error(flickering) > 3 * moved
    assert warping_error(flickering, flows) == pytest.approx((20 / 255) ** 2, rel=0.2)


def test_places_that_leave_the_picture_do_not_count() -> None:
    frames, flows = sliding(2, (5, 0))
    spoilt = frames.copy()
    spoilt[0, :, :5] = 255 - spoilt[0, :, :5]  # what the next frame no longer shows
    assert warping_error(spoilt, flows) < 1e-20
    assert warping_error(frames, flows + 1e4) == 0.0  # all of it left


def test_places_that_are_hidden_do_not_count_where_both_flows_are_known() -> None:
    frames, flows = sliding(2, (2, 0))
    spoilt, backward = frames.copy(), -flows
    spoilt[0, 10:20, 10:20] = 0
    backward = backward.copy()
    backward[0, 5:25, 3:25] = 30.0  # what lies there in the next frame came from elsewhere
    assert warping_error(spoilt, flows) > 1e-3
    assert warping_error(spoilt, flows, backward) < 1e-20


def test_exact_flow_of_diorama_explains_most_of_its_change() -> None:
    source = Diorama(64, num_frames=4, fps=(8.0,), flow=True, seed=3)
    ratios = []
    for index in range(6):
        clip = source.clip(index)
        assert clip.flow is not None
        forward = clip.flow[:3, 1].transpose(0, 2, 3, 1)  # to the next frame
        ratios.append(warping_error(clip.frames, forward) / max(warping_error(clip.frames, 0 * forward), 1e-9))
    assert np.median(ratios) < 0.8


REAL = Path(__file__).resolve().parents[3] / "shared" / "data" / "clips" / "bikes.mp4"


@pytest.mark.skipif(not REAL.is_file(), reason=f"needs {REAL}")
def test_a_real_clip_moves_and_hardly_flickers() -> None:
    clip = read_video(REAL)
    frames = np.stack([np.asarray(Image.fromarray(frame).resize((256, 256))) for frame in clip.frames[40:44]])
    flickering = frames.copy()
    flickering[1::2] = np.clip(flickering[1::2].astype(int) + 12, 0, 255)
    assert motion_amount(frames, clip.fps).flow > 0.1
    assert warping_error(flickering) > 4 * warping_error(frames) > 0


def test_warp_reads_between_pixels() -> None:
    ramp = np.repeat(np.arange(8.0)[None, :, None], 4, axis=0)
    flow = np.broadcast_to(np.array([0.25, 0.0]), (4, 8, 2))
    np.testing.assert_allclose(warp(ramp, flow)[:, :7, 0], ramp[:, :7, 0] + 0.25, rtol=1e-12)


@pytest.mark.parametrize("frames", [FROZEN[:1], FROZEN[:1, :16, :16]])
def test_one_frame_has_no_motion(frames: np.ndarray) -> None:
    for measure in (warping_error, lambda video: motion_amount(video, 8)):
        with pytest.raises(UserError, match="one frame"):
            measure(frames)


def test_flow_of_another_shape_is_a_mistake() -> None:
    with pytest.raises(ValueError, match="flows must be"):
        warping_error(FROZEN, np.zeros((2, HEIGHT, WIDTH, 2)))


def test_flow_needs_some_pixels() -> None:
    with pytest.raises(UserError, match="at least 16 pixels"):
        dis_flows(FROZEN[:, :15])


def test_without_opencv_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise ImportError(name)

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(UserError, match=r"reference-videogen\[data\]"):
        dis_flows(FROZEN)
