"""Facts about the degradation of the video decoder's input."""

import pytest
import torch
import torch.nn.functional as F

from videogen.data.degradation import _blur, _gaussian, degrade


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def clip(frames: int = 4, size: int = 32) -> torch.Tensor:
    """A still image with edges and a ramp, repeated."""
    image = torch.linspace(-1, 1, size).expand(3, size, size).clone()
    image[0, size // 4 : size // 2] = 1.0
    image[2, :, size // 2 :] = -1.0
    return image.expand(frames, 3, size, size)


def test_strength_zero_is_the_identity() -> None:
    assert torch.equal(degrade(clip(), generator(), 0.0), clip())


def test_it_is_a_pure_function_of_frames_generator_and_strength() -> None:
    frames = clip()
    assert torch.equal(degrade(frames, generator(3), 1.0), degrade(frames, generator(3), 1.0))
    assert torch.equal(frames, clip())
    assert not torch.equal(degrade(frames, generator(3), 1.0), degrade(frames, generator(4), 1.0))


@pytest.mark.parametrize("seed", range(8))
def test_shape_type_and_range_stay(seed: int) -> None:
    degraded = degrade(clip(3, 20)[..., :16].to(torch.bfloat16), generator(seed), 1.0)
    assert degraded.shape == (3, 3, 20, 16)
    assert degraded.dtype == torch.bfloat16
    assert degraded.abs().max() <= 1
    assert degraded.isfinite().all()


def test_more_strength_does_more_harm() -> None:
    errors = [
        sum((degrade(clip(), generator(seed), strength) - clip()).abs().mean().item() for seed in range(12))
        for strength in (0.1, 0.5, 1.0)
    ]
    assert 0 < errors[0] < errors[1] < errors[2]


def test_frames_of_a_still_clip_differ_by_their_noise_only() -> None:
    loudest = 2**0.5 * 2 * 25 / 255  # of two frames in [-1, 1]
    for seed in range(8):
        degraded = degrade(clip(), generator(seed), 1.0)
        assert 0 < (degraded[1:] - degraded[0]).std() < loudest + 0.05  # 0.05: what compression makes of it
        picture = torch.corrcoef(torch.stack([degraded.mean(dim=0).flatten(), clip()[0].flatten()]))[0, 1]
        assert picture > 0.5


def test_blur_is_the_convolution_with_a_kernel_of_sum_one() -> None:
    kernel, frames = _gaussian(9, 4.0, 1.0, 0.6), torch.rand(2, 3, 20, 24, generator=generator())
    padded = F.pad(frames, [4] * 4, mode="replicate").flatten(0, 1)[:, None]
    expected = F.conv2d(padded, kernel[None, None]).view_as(frames)  # the kernel is symmetric about its centre
    torch.testing.assert_close(_blur(frames, kernel), expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(_blur(torch.ones(1, 3, 5, 6), kernel), torch.ones(1, 3, 5, 6))


@pytest.mark.parametrize("strength", [-0.1, 1.1, float("nan")])
def test_a_strength_outside_zero_to_one_is_an_error(strength: float) -> None:
    with pytest.raises(ValueError, match="strength must lie in 0"):
        degrade(clip(), generator(), strength)
