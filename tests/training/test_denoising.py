"""What the denoising objectives share (section 3.2, DDPM): losses, and the squares of latents that are learnt from."""

from __future__ import annotations

import itertools

import pytest
import torch

from tiny import generators, randn
from videogen import diffusion
from videogen.config import UserError, VideoDiffusionOptions
from videogen.pipeline import VideoGenPipeline
from videogen.training.objectives.denoising import anywhere, changing_places, crop, denoising_loss


def test_crops_are_where_a_clip_changes_and_nowhere_in_particular_where_nothing_does() -> None:
    latents = randn(1, 1, 4, 12, 16).repeat(2, 3, 1, 1, 1)
    latents[0, 2, :, 9:11, 2:4] += 3
    seen = [changing_places(latents, 4, generators(seed, seed)) for seed in range(20)]
    assert all(top <= 9 and top + 4 >= 11 and left <= 2 and left + 4 >= 4 for (top, left), _ in seen)
    assert len({still for _, still in seen}) > 10
    cropped = crop(latents, [(7, 1), (0, 3)], 4)
    assert torch.equal(cropped[0], latents[0, ..., 7:11, 1:5])
    assert torch.equal(cropped[1], latents[1, ..., :4, 3:7])
    for side in (0, 13):
        with pytest.raises(UserError, match=f"options.crop is {side} but the latents are 16x12: it must be 1 to 12"):
            changing_places(latents, side, generators(1, 2))


def test_relative_errors_count_alike_at_all_levels_of_noise(tiny_pipe: VideoGenPipeline) -> None:
    """Who gives the best linear guess has an error of 1, whatever the noise; who knows the truth has none."""
    scheduler, error = tiny_pipe.scheduler, 0.05
    known = randn(64, 2, 4, 8, 8)
    clean = known + error**0.5 * randn(64, 2, 4, 8, 8, seed=1)

    def score(predict: diffusion.Predict, high_noise: float) -> float:
        given = generators(*range(64))
        value, _ = denoising_loss(scheduler, predict, clean, given, high_noise=high_noise, known_error=error)
        return float(value)

    guess = diffusion.counted_from(lambda noisy, timestep: torch.zeros_like(noisy), scheduler, known, error)
    for high_noise in (0.05, 1.0, 20.0):
        assert score(guess, high_noise) == pytest.approx(1.0, abs=0.05)
        assert score(lambda x, t: diffusion.output_for(scheduler, x, clean, t), high_noise) == pytest.approx(0.0, abs=1e-6)


def test_squares_from_anywhere_lie_everywhere() -> None:
    """Also in the corners, and as often where nothing changes."""
    still = torch.zeros(400, 2, 1, 5, 6)
    still[:, 1:, :, 0, 0] = 1.0
    corners = anywhere(still, 4, generators(*range(400)))
    counts = {corner: corners.count(corner) for corner in itertools.product(range(2), range(3))}
    assert sum(counts.values()) == 400
    assert all(40 < count < 95 for count in counts.values())  # 6 kinds, 66.7 expected
    for where in (anywhere, changing_places):
        with pytest.raises(UserError, match=r"options.crop is 6 but the latents are 6x5: it must be 1 to 5"):
            where(still, 6, generators(*range(400)))


def test_squares_from_anywhere_want_a_size() -> None:
    with pytest.raises(UserError, match=r"options.crop_anywhere says where squares are: set options.crop"):
        VideoDiffusionOptions(image_model="there", crop_anywhere=True)
