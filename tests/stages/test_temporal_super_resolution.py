"""Flow-based temporal super-resolution (section 3.3)."""

from functools import partial
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler
from torch import Tensor

from videogen.config import UserError
from videogen.models.ifrnet import IFRNet
from videogen.models.unet import VideoUNet
from videogen.stages.temporal_super_resolution import (
    blend_middle,
    interleave,
    low_pass,
    merge_frequencies,
    middle_frames,
    num_passes,
    refiner_condition,
    slerp_middle,
    temporal_super_resolution,
    upsample_time,
)


def latents(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def generators(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def with_random_weights(network: Any, seed: int = 0) -> Any:
    """Zero-initialised layers set to something, so that every part counts."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return network.eval()


@pytest.fixture(scope="module")
def flow_network() -> IFRNet:
    return with_random_weights(IFRNet(in_channels=4, channels=(8, 8, 12, 16)))


@pytest.fixture(scope="module")
def refiner() -> VideoUNet:
    return with_random_weights(
        VideoUNet(
            sample_size=8,
            reference=False,
            condition_channels=12,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            block_out_channels=(8, 16),
            layers_per_block=1,
            attention_head_dim=2,
            cross_attention_dim=None,
            norm_num_groups=4,
        )
    )


@pytest.fixture
def options(flow_network: IFRNet, refiner: VideoUNet) -> dict[str, Any]:
    return {
        "middle": partial(middle_frames, flow_network),
        "refiner": refiner,
        "scheduler": DDIMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, clip_sample=False),
        "num_steps": 2,
    }


def test_the_frequency_split_sums_to_its_input() -> None:
    x = latents(2, 3, 4, 16, 16)
    assert torch.equal(merge_frequencies(x, x), x)


@pytest.mark.parametrize("factor", [1, 2, 4])
def test_merging_is_low_of_coarse_plus_high_of_refined(factor: int) -> None:
    coarse, refined = latents(2, 2, 3, 4, 16, 12, dtype=torch.float64)
    expected = low_pass(coarse, factor) + refined - low_pass(refined, factor)
    torch.testing.assert_close(merge_frequencies(coarse, refined, factor), expected)


def test_the_low_pass_is_linear() -> None:
    x, y = latents(2, 1, 3, 4, 9, 16, dtype=torch.float64)
    torch.testing.assert_close(low_pass(2 * x - 3 * y), 2 * low_pass(x) - 3 * low_pass(y))


def test_the_low_pass_keeps_constants_and_removes_the_finest_pattern() -> None:
    constant = torch.full((1, 2, 4, 16, 16), 0.7)
    torch.testing.assert_close(low_pass(constant), constant)
    rows, columns = torch.meshgrid(torch.arange(16.0), torch.arange(16.0), indexing="ij")
    checkers = 1 - 2 * ((rows + columns) % 2).expand(1, 1, 1, 16, 16)
    assert low_pass(checkers).abs().max() < 0.05
    slow = torch.cos(2 * torch.pi * columns / 16).expand(1, 1, 1, 16, 16)
    assert (low_pass(slow) - slow)[..., 2:-2].abs().max() < 0.05


def test_the_low_pass_takes_half_precision_and_tiny_latents() -> None:
    assert low_pass(latents(1, 1, 4, 8, 8).bfloat16()).dtype == torch.bfloat16
    assert low_pass(latents(1, 2, 4, 1, 1), factor=4).shape == (1, 2, 4, 1, 1)


def test_slerp_keeps_the_norm_and_halves_the_angle() -> None:
    both = latents(2, 2, 4, 8, 8, dtype=torch.float64)
    both = both / both.flatten(2).norm(dim=2)[..., None, None, None]
    middle = slerp_middle(both)
    torch.testing.assert_close(middle.flatten(1).norm(dim=1), torch.ones(2, dtype=torch.float64))
    to_first, to_second = (torch.linalg.vecdot(middle[:, 0].flatten(1), both[:, i].flatten(1)).acos() for i in (0, 1))
    torch.testing.assert_close(to_first, to_second)


def test_equal_neighbours_have_themselves_between() -> None:
    still = latents(2, 1, 4, 16, 16).expand(-1, 3, -1, -1, -1)
    torch.testing.assert_close(slerp_middle(still), still[:, :2])
    assert torch.equal(blend_middle(still), still[:, :2])
    torch.testing.assert_close(middle_frames(IFRNet(4, (8, 8, 12, 16)), still), still[:, :2])


def test_opposite_and_empty_neighbours_stay_finite() -> None:
    x = latents(1, 1, 4, 8, 8)
    assert slerp_middle(torch.cat([x, -x, 0 * x, 0 * x], dim=1)).isfinite().all()


@pytest.mark.parametrize("name", ["flow", "slerp", "blend"])
def test_a_middle_depends_on_its_two_neighbours_only(name: str, flow_network: IFRNet) -> None:
    middle = {"flow": partial(middle_frames, flow_network), "slerp": slerp_middle, "blend": blend_middle}[name]
    x = latents(2, 4, 4, 16, 16)
    whole = middle(x)
    assert whole.shape == (2, 3, 4, 16, 16)
    torch.testing.assert_close(whole[:1, 1:2], middle(x[:1, 1:3]), rtol=1e-4, atol=1e-5)


def test_interleaving_alternates() -> None:
    given, new = torch.tensor([[0.0, 2.0, 4.0]]), torch.tensor([[1.0, 3.0]])
    assert torch.equal(interleave(given, new), torch.tensor([[0.0, 1.0, 2.0, 3.0, 4.0]]))


def test_the_refiner_sees_coarse_first_second() -> None:
    coarse, first, second = latents(3, 1, 2, 4, 8, 8)
    condition = refiner_condition(coarse, first, second)
    for part, expected in zip(condition.split(4, dim=2), (coarse, first, second), strict=True):
        assert torch.equal(part, expected)


def test_given_frames_come_out_unchanged_with_one_new_between(options: dict[str, Any]) -> None:
    x = latents(2, 5, 4, 8, 8)
    result = upsample_time(x, fps=torch.tensor([8.0, 4.0]), generators=generators(1, 2), **options)
    assert result.shape == (2, 9, 4, 8, 8)
    assert torch.equal(result[:, ::2], x)
    assert result.isfinite().all()


def test_without_a_refiner_the_new_frames_are_the_coarse_ones(options: dict[str, Any]) -> None:
    x = latents(1, 3, 4, 8, 8)
    options["refiner"] = None
    result = upsample_time(x, fps=torch.tensor([8.0]), generators=generators(1), **options)
    assert torch.equal(result[:, 1::2], options["middle"](x))


def test_the_refiner_decides_high_frequencies_only(options: dict[str, Any]) -> None:
    x = latents(1, 3, 4, 8, 8)
    call = partial(upsample_time, x, fps=torch.tensor([8.0]))
    coarse = options["middle"](x)
    one, other = (call(generators=generators(seed), **options)[:, 1::2] for seed in (1, 2))
    assert not torch.allclose(one, coarse)
    assert not torch.allclose(one, other)
    for new in (one, other):
        assert low_pass(new - coarse).square().mean() < 0.2 * (new - coarse).square().mean()


def test_a_sample_is_the_same_alone_and_in_a_batch(options: dict[str, Any]) -> None:
    x, fps = latents(2, 4, 4, 8, 8), torch.tensor([8.0, 16.0])
    both = upsample_time(x, fps=fps, generators=generators(1, 2), **options)
    alone = upsample_time(x[1:], fps=fps[1:], generators=generators(2), **options)
    torch.testing.assert_close(both[1:], alone, rtol=1e-4, atol=1e-5)


def test_nothing_crosses_windows_but_the_given_frame_at_the_seam(options: dict[str, Any]) -> None:
    """6 new frames in windows of at most 4 are 3 and 3, which meet at given frame 3."""
    x = latents(1, 7, 4, 8, 8)
    changed = x.clone()
    changed[:, 4:] += 1
    call = partial(upsample_time, fps=torch.tensor([8.0]), **options)
    apart = [call(frames, generators=generators(1), window=4)[:, :7] for frames in (x, changed)]
    together = [call(frames, generators=generators(1), window=6)[:, :7] for frames in (x, changed)]
    torch.testing.assert_close(apart[0], apart[1], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(together[0], together[1], rtol=1e-3, atol=1e-3)


def test_fps_reaches_the_refiner_and_doubles_every_pass(options: dict[str, Any]) -> None:
    x = latents(1, 2, 4, 8, 8)
    twice = temporal_super_resolution(x, 4, fps=torch.tensor([2.0]), generators=generators(1), **options)
    shared = generators(1)
    by_hand = upsample_time(x, fps=torch.tensor([4.0]), generators=shared, **options)
    by_hand = upsample_time(by_hand, fps=torch.tensor([8.0]), generators=shared, **options)
    assert torch.equal(twice, by_hand)
    other = upsample_time(x, fps=torch.tensor([32.0]), generators=generators(1), **options)
    assert not torch.equal(other, upsample_time(x, fps=torch.tensor([4.0]), generators=generators(1), **options))


def test_three_passes_make_121_frames_of_16(options: dict[str, Any]) -> None:
    x = latents(1, 16, 4, 8, 8)
    options["refiner"] = None
    result = temporal_super_resolution(x, 8, fps=torch.tensor([4.0]), generators=generators(0), **options)
    assert result.shape[1] == 121
    assert torch.equal(result[:, ::8], x)


def test_every_step_is_reported_once_whatever_the_window(options: dict[str, Any]) -> None:
    steps: list[int] = []
    upsample_time(
        latents(1, 5, 4, 8, 8),
        fps=torch.tensor([8.0]),
        generators=generators(0),
        window=1,
        on_step=lambda index, timestep: steps.append(index),
        **options,
    )
    assert steps == [0, 1]


def test_a_single_frame_and_factor_1_are_left_alone(options: dict[str, Any]) -> None:
    call = partial(temporal_super_resolution, fps=torch.tensor([4.0]), generators=generators(0), **options)
    single, many = latents(1, 1, 4, 8, 8), latents(1, 3, 4, 8, 8)
    assert torch.equal(call(single, 8), single)
    assert torch.equal(call(many, 1), many)


@pytest.mark.parametrize("factor", [0, -2, 3, 6])
def test_other_factors_are_refused(factor: int) -> None:
    with pytest.raises(UserError, match="power of two"):
        num_passes(factor)


def test_powers_of_two_are_that_many_passes() -> None:
    assert [num_passes(factor) for factor in (1, 2, 4, 8)] == [0, 1, 2, 3]
