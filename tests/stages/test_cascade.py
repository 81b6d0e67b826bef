"""The cascade (section 3.2), stage by stage, on tiny real networks."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from diffusers import DDIMScheduler
from torch import Tensor

from tiny import TEXT, generators, randn
from videogen.config import Guidance
from videogen.models.unet import VideoUNet, resize_condition
from videogen.pipeline import VideoGenPipeline
from videogen.stages import cascade
from videogen.stages.cascade import Details, blurred, expected_latents, generate_base, reference_latents, super_resolve
from videogen.stages.conditions import encode_frames, resize_frames

FRAMES = 3
CLOSE: dict[str, Any] = {"rtol": 0, "atol": 1e-4}  # for other batches, where convolutions may pick another algorithm


@pytest.fixture(scope="module")
def text() -> Tensor:
    """States of two empty prompts, then of two others."""
    empty = randn(1, 5, TEXT).expand(2, -1, -1)
    return torch.cat([empty, randn(2, 5, TEXT, seed=1)])


def base(pipe: VideoGenPipeline, text: Tensor, reference: Tensor | None, *seeds: int, **options: Any) -> Tensor:
    count = len(text) // 2
    fps = options.pop("fps", torch.full((count,), 4.0))
    options = {"num_steps": 2, "guidance": Guidance(4.0), **options}
    return generate_base(
        pipe.base, pipe.scheduler, text, reference, (count, FRAMES, 4, 2, 2), fps, generators(*seeds), **options
    )


def enlarge(pipe: VideoGenPipeline, text: Tensor, reference: Tensor | None, low: Tensor, *seeds: int, **options: Any) -> Tensor:
    fps = options.pop("fps", torch.full((len(low),), 4.0))
    options = {"num_steps": 4, **options}
    return super_resolve(pipe.super_resolution_1, pipe.scheduler, text, reference, low, fps, generators(*seeds), **options)


def test_the_reference_has_latents_at_each_networks_size(tiny_pipe: VideoGenPipeline) -> None:
    """Section 3.2: the *image* is resized and encoded, not its latents."""
    images = randn(2, 3, 32, 48).clamp(-1, 1)
    small, middle, large = reference_latents(tiny_pipe.vae, images, levels=3)
    assert [part.shape for part in (small, middle, large)] == [(2, 4, 2, 3), (2, 4, 4, 6), (2, 4, 8, 12)]
    assert torch.equal(large, encode_frames(tiny_pipe.vae, images))
    assert torch.equal(small, encode_frames(tiny_pipe.vae, resize_frames(images, (8, 12))))


def test_base_latents_are_the_same_alone_and_in_a_batch(tiny_pipe: VideoGenPipeline, text: Tensor) -> None:
    reference = randn(2, 4, 2, 2, seed=2)
    both = base(tiny_pipe, text, reference, 7, 8)
    assert both.shape == (2, FRAMES, 4, 2, 2)
    torch.testing.assert_close(base(tiny_pipe, text[1::2], reference[1:], 8), both[1:], **CLOSE)
    assert torch.equal(base(tiny_pipe, text, reference, 7, 8), both)
    assert not torch.allclose(base(tiny_pipe, text, reference, 7, 9)[1], both[1])


def test_everything_conditions_the_base(tiny_pipe: VideoGenPipeline, text: Tensor) -> None:
    reference = randn(2, 4, 2, 2, seed=2)
    plain = base(tiny_pipe, text, reference, 7, 8)
    assert not torch.allclose(base(tiny_pipe, text, reference, 7, 8, fps=torch.tensor([9.0, 9.0])), plain)
    assert not torch.allclose(base(tiny_pipe, text, reference + 1, 7, 8), plain)
    assert not torch.allclose(base(tiny_pipe, text.flip(0), reference, 7, 8), plain)
    assert torch.equal(base(tiny_pipe, text, None, 7, 8), base(tiny_pipe, text, torch.zeros(2, 4, 2, 2), 7, 8))


def test_guidance_of_0_ignores_the_prompt_and_of_1_the_negative_one(tiny_pipe: VideoGenPipeline, text: Tensor) -> None:
    other = text.flip(0)
    mixed = torch.cat([text[:2], other[2:]])  # another prompt
    for scale, ignored in ((0.0, mixed), (1.0, torch.cat([other[:2], text[2:]]))):
        found, expected = (base(tiny_pipe, states, None, 7, 8, guidance=Guidance(scale)) for states in (ignored, text))
        torch.testing.assert_close(found, expected, **CLOSE)


def test_super_resolution_doubles_and_is_the_same_alone_and_in_a_batch(tiny_pipe: VideoGenPipeline, text: Tensor) -> None:
    prompts, reference, low = text[2:], randn(2, 4, 4, 6, seed=2), randn(2, FRAMES, 4, 2, 3, seed=3)
    both = enlarge(tiny_pipe, prompts, reference, low, 7, 8)
    assert both.shape == (2, FRAMES, 4, 4, 6)
    torch.testing.assert_close(enlarge(tiny_pipe, prompts[1:], reference[1:], low[1:], 8), both[1:], **CLOSE)
    assert not torch.allclose(enlarge(tiny_pipe, prompts, reference, low + 0.5, 7, 8), both)
    assert not torch.allclose(enlarge(tiny_pipe, prompts, None, low, 7, 8), both)


def test_what_rests_is_expected_to_be_the_reference_and_what_is_new_the_low_resolution() -> None:
    low, reference = randn(2, 1, 4, 4, 6).expand(-1, 3, -1, -1, -1).clone(), randn(2, 4, 8, 12, seed=1)
    low[:, 2, :, :, 3:] += 5  # the right half of the last frame: as nothing looks in the first
    expected, enlarged = expected_latents(low, reference, (8, 12)), resize_condition(low, (8, 12))
    torch.testing.assert_close(expected[:, :2], reference[:, None].expand(-1, 2, -1, -1, -1), rtol=0, atol=1e-4)
    torch.testing.assert_close(expected[:, 2, :, :, :4], reference[..., :4], rtol=0, atol=1e-4)
    torch.testing.assert_close(expected[:, 2, :, :, 7:], enlarged[:, 2, :, :, 7:], rtol=0, atol=1e-4)


def test_what_moves_is_expected_to_look_as_it_does_in_the_reference() -> None:
    first, reference = randn(1, 4, 6, 8), randn(1, 4, 12, 16, seed=1)
    low = torch.stack([first, first.roll((1, 2), (2, 3))], dim=1)  # down and right, by a whole latent of the low resolution
    expected = expected_latents(low, reference, (12, 16))
    torch.testing.assert_close(expected[0, 1, :, 4:-2, 6:-2], reference[0, :, 2:-4, 2:-6], rtol=0, atol=1e-4)


def test_wrong_outlines_are_expected_to_be_as_in_the_reference_if_they_are_blurred() -> None:
    """The second frame's low resolution is where the first has gone to, as a network makes it that does not know what it is."""
    reference = torch.zeros(1, 4, 24, 24)
    reference[..., 4:12, 4:12] = 2
    reference[..., 6:10, 6:10] = 0  # a ring
    truth = reference.roll((6, 8), (2, 3))
    low = torch.stack([F.avg_pool2d(reference, 2), blurred(F.avg_pool2d(truth, 2), 1)], dim=1)
    sharp, soft = (F.mse_loss(expected_latents(low, reference, (24, 24), blur)[:, 1], truth) for blur in (0, 1))
    assert soft < 0.5 * sharp


def test_what_has_grown_is_found_among_blurred_things(monkeypatch: pytest.MonkeyPatch) -> None:
    reference = randn(1, 4, 24, 24, seed=1)
    grown = F.interpolate(reference, (34, 34), mode="bilinear")[..., 5:-5, 5:-5]
    low = F.avg_pool2d(torch.cat([reference, grown]), 2)[None]

    def error() -> float:
        return float(F.mse_loss(expected_latents(low, reference, (24, 24), 1)[0, 1, :, 4:-4, 4:-4], grown[0, :, 4:-4, 4:-4]))

    found = error()
    monkeypatch.setattr(cascade, "BLURRED", dataclasses.replace(cascade.BLURRED, sizes=(1.0,)))
    assert found < 0.5 * error()


def test_the_search_is_exact_under_autocast() -> None:
    low, reference = randn(1, 3, 4, 4, 6), randn(1, 4, 8, 12, seed=1)
    with torch.autocast("cpu", torch.bfloat16):
        under = expected_latents(low, reference, (8, 12))
    torch.testing.assert_close(under, expected_latents(low, reference, (8, 12)))


def test_no_reference_adds_nothing_to_the_low_resolution() -> None:
    low, reference = randn(2, 3, 4, 4, 6), randn(2, 4, 8, 12, seed=1)
    enlarged = resize_condition(low, (8, 12))
    assert torch.equal(expected_latents(low, None, (8, 12)), enlarged)
    reference[1] = 0
    both = expected_latents(low, reference, (8, 12))
    assert torch.equal(both[1], enlarged[1])
    assert not torch.allclose(both[0], enlarged[0])


def test_a_silent_network_leaves_what_is_expected(tiny_pipe: VideoGenPipeline, text: Tensor) -> None:
    """One that counts from its condition; at zero terminal signal-to-noise the noise it begins with says nothing."""
    config = {**tiny_pipe.super_resolution_1.config, "condition_channels": 8, "condition_error": 0.05}
    silent, low, reference = VideoUNet.from_config(config), randn(1, FRAMES, 4, 2, 3), randn(1, 4, 4, 6, seed=1)
    scheduler = DDIMScheduler.from_config(
        tiny_pipe.scheduler.config, rescale_betas_zero_snr=True, prediction_type="v_prediction"
    )
    fps = torch.tensor([4.0])
    made = super_resolve(silent, scheduler, text[2:3], reference, low, fps, generators(7), num_steps=1)
    torch.testing.assert_close(made, expected_latents(low, reference, (4, 6)), rtol=0, atol=1e-4)


def test_a_blur_spreads_a_point_and_keeps_what_there_is() -> None:
    point = torch.zeros(2, 3, 4, 11, 13)
    point[..., 5, 6] = 1
    spread = blurred(point, 2)
    assert torch.equal(blurred(point, 0), point)
    torch.testing.assert_close(spread.sum(dim=(3, 4)), torch.ones(2, 3, 4))
    rows, columns = torch.meshgrid(torch.arange(11) - 5.0, torch.arange(13) - 6.0, indexing="ij")
    for offsets in (rows, columns):
        torch.testing.assert_close((spread * offsets.square()).sum(dim=(3, 4)), torch.full((2, 3, 4), 4 / 3))
    torch.testing.assert_close(blurred(torch.ones(1, 2, 4, 3, 5), 3), torch.ones(1, 2, 4, 3, 5))


def test_super_resolution_does_not_see_what_a_blur_hides(tiny_pipe: VideoGenPipeline, text: Tensor) -> None:
    """A pattern that repeats every three latents has a mean of zero over 3x3 of them, but at the edges."""
    config = {**tiny_pipe.super_resolution_1.config, "condition_channels": 8, "condition_error": 0.05}
    low, fps = randn(1, FRAMES, 4, 9, 9), torch.tensor([4.0])
    pattern = torch.tensor([1.0, -2.0, 1.0]).repeat(3).expand(9, 9)
    for blur, alike in ((1, True), (0, False)):
        silent = VideoUNet.from_config({**config, "condition_blur": blur})
        made = [
            super_resolve(silent, tiny_pipe.scheduler, text[2:3], None, each, fps, generators(7), num_steps=1)
            for each in (low, low + pattern)
        ]
        assert torch.allclose(made[0][..., 4:-4], made[1][..., 4:-4], atol=1e-4) == alike


def test_details_are_steps_from_a_first_result(tiny_pipe: VideoGenPipeline, text: Tensor) -> None:
    """The first step alone is from pure noise; the others go on from it below a fraction of the schedule."""
    low, told, details = randn(2, FRAMES, 4, 2, 2), dict[int, int](), Details(0.3, 1.0)
    one = enlarge(tiny_pipe, text[2:], None, low, 7, 8, num_steps=1)
    torch.testing.assert_close(enlarge(tiny_pipe, text, None, low, 7, 8, num_steps=1, details=details), one, **CLOSE)

    def tell(index: int, timestep: Tensor) -> None:
        told[index] = int(timestep)

    made = enlarge(tiny_pipe, text, None, low, 7, 8, num_steps=4, details=details, on_step=tell)
    assert list(told) == [0, 1, 2, 3]
    assert told[0] == 999
    assert 300 >= told[1] > told[2] > told[3] > 0
    near, far = ((made - other).square().mean() for other in (one, enlarge(tiny_pipe, text[2:], None, low, 1, 2, num_steps=1)))
    assert 0 < near < far
    again = enlarge(tiny_pipe, text[1::2], None, low[1:], 8, num_steps=4, details=details)
    torch.testing.assert_close(again, made[1:], **CLOSE)


def test_details_alone_are_guided(tiny_pipe: VideoGenPipeline, text: Tensor) -> None:
    """The result follows the negative prompt in the steps after the first only, and leads away from it."""
    low, reference = randn(2, FRAMES, 4, 2, 2), randn(2, 4, 4, 4)
    other = torch.cat([text[:2].flip(2), text[2:]])

    def made(text: Tensor, scale: float, steps: int) -> Tensor:
        return enlarge(tiny_pipe, text, reference, low, 7, 8, num_steps=steps, details=Details(0.4, scale))

    assert torch.equal(made(text, 5.0, 1), made(other, 5.0, 1))
    assert torch.equal(made(text, 1.0, 3), made(other, 1.0, 3))
    assert not torch.allclose(made(text, 5.0, 3), made(other, 5.0, 3), atol=1e-3)
    ignored, followed, led = (made(text, scale, 2) for scale in (0.0, 1.0, 2.0))
    assert (led - ignored).square().mean() > (followed - ignored).square().mean() > 0
    alone = enlarge(tiny_pipe, text[1::2], reference[1:], low[1:], 8, num_steps=3, details=Details(0.4, 5.0))
    torch.testing.assert_close(alone, made(text, 5.0, 3)[1:], **CLOSE)


def test_every_step_is_told_of(tiny_pipe: VideoGenPipeline, text: Tensor) -> None:
    told: list[int] = []
    base(tiny_pipe, text, None, 7, 8, num_steps=3, on_step=lambda index, _: told.append(index))
    enlarge(tiny_pipe, text[2:], None, randn(2, FRAMES, 4, 2, 2), 7, 8, on_step=lambda index, _: told.append(index))
    assert told == [0, 1, 2, 0, 1, 2, 3]
