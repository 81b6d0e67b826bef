"""IFRNet and backward warping (section 3.3)."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from videogen.models.ifrnet import IFRNet, backward_warp, enlarge_flow, latent_flow_loss, shrink_flow


def latent_network(seed: int = 0) -> IFRNet:
    """A tiny latent flow network whose zeroed outputs are set to something, so that flows, mask and residual live."""
    torch.manual_seed(seed)
    network = IFRNet(in_channels=4, channels=(8, 8, 12, 16))
    for parameter in network.parameters():
        if parameter.ndim == 4:
            torch.nn.init.normal_(parameter, std=0.05)
    return network


def frames(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def constant_flow(x: float, y: float, size: tuple[int, int], batch: int = 1, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.tensor([x, y], dtype=dtype)[:, None, None].expand(batch, 2, *size)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_zero_flow_is_the_identity_bit_for_bit(dtype: torch.dtype) -> None:
    x = frames(2, 4, 32, 64, dtype=dtype)
    assert torch.equal(backward_warp(x, torch.zeros(2, 2, 32, 64, dtype=dtype)), x)


def test_zero_flow_is_the_identity_to_rounding_at_odd_sizes() -> None:
    x = frames(1, 3, 23, 48, dtype=torch.float64)
    torch.testing.assert_close(backward_warp(x, torch.zeros(1, 2, 23, 48, dtype=torch.float64)), x, rtol=0, atol=1e-12)


def test_integer_flow_shifts_and_repeats_the_border() -> None:
    x = frames(1, 2, 8, 16)
    left = backward_warp(x, constant_flow(3, 0, (8, 16)))  # out(p) = x(p + (3, 0))
    assert torch.equal(left[..., :-3], x[..., 3:])
    assert torch.equal(left[..., -3:], x[..., -1:].expand(-1, -1, -1, 3))
    down = backward_warp(x, constant_flow(0, -2, (8, 16)))
    assert torch.equal(down[..., 2:, :], x[..., :-2, :])
    assert torch.equal(down[..., :2, :], x[..., :1, :].expand(-1, -1, 2, -1))


def test_fractional_flow_interpolates_linearly() -> None:
    ramp = torch.arange(16.0).expand(1, 1, 8, 16)
    assert torch.allclose(backward_warp(ramp, constant_flow(0.25, 0.5, (8, 16)))[..., :-1], ramp[..., :-1] + 0.25)


def test_every_pixel_and_sample_has_its_own_flow() -> None:
    x, flow = frames(2, 1, 8, 8), torch.zeros(2, 2, 8, 8)
    flow[1, 0, 4, 2] = 5
    out = backward_warp(x, flow)
    assert out[1, 0, 4, 2] == x[1, 0, 4, 7]
    out[1, 0, 4, 2] = x[1, 0, 4, 2]
    assert torch.equal(out, x)


def test_warping_has_the_right_gradient() -> None:
    x = frames(1, 2, 4, 4, dtype=torch.float64).requires_grad_()
    flow = (0.3 + 0.1 * frames(1, 2, 4, 4, seed=1, dtype=torch.float64)).requires_grad_()
    assert torch.autograd.gradcheck(backward_warp, (x, flow))


def test_shrunk_flow_is_the_same_motion_in_latent_pixels() -> None:
    shrunk = shrink_flow(constant_flow(8.0, -4.0, (64, 128), batch=2), (8, 32))
    assert torch.equal(shrunk, constant_flow(2.0, -0.5, (8, 32), batch=2))


def test_enlarging_undoes_shrinking_of_a_constant_flow() -> None:
    flow = constant_flow(3.0, 5.0, (16, 16))
    assert torch.allclose(enlarge_flow(shrink_flow(flow, (8, 8)), 2), flow)


def test_parameters_are_those_of_the_published_weights() -> None:
    """IFRNet_Vimeo90K: names and shapes as ltkong218/IFRNet (models/IFRNet.py) lays them out."""
    expected: dict[str, tuple[int, ...]] = {}

    def convolution(name: str, inputs: int, outputs: int, prelu: str | None = None) -> None:
        expected.update({f"{name}.weight": (outputs, inputs, 3, 3), f"{name}.bias": (outputs,)})
        if prelu is not None:
            expected[f"{prelu}.weight"] = (outputs,)

    for level, (before, after) in enumerate([(3, 32), (32, 48), (48, 72), (72, 96)], start=1):
        for index, inputs in enumerate((before, after)):
            name = f"encoder.pyramid{level}.{index}"
            convolution(f"{name}.0", inputs, after, prelu=f"{name}.1")
    for level, inputs, hidden, outputs in [(4, 193, 192, 76), (3, 220, 216, 52), (2, 148, 144, 36), (1, 100, 96, 8)]:
        name = f"decoder{level}.convblock"
        convolution(f"{name}.0.0", inputs, hidden, prelu=f"{name}.0.1")
        for index, channels in ((1, hidden), (2, 32), (3, hidden), (4, 32)):
            convolution(f"{name}.1.conv{index}.0", channels, channels, prelu=f"{name}.1.conv{index}.1")
        convolution(f"{name}.1.conv5", hidden, hidden, prelu=f"{name}.1.prelu")
        expected.update({f"{name}.2.weight": (hidden, outputs, 4, 4), f"{name}.2.bias": (outputs,)})
    assert {name: tuple(value.shape) for name, value in IFRNet().state_dict().items()} == expected


def test_a_new_network_is_the_average_of_both_frames() -> None:
    first, second = frames(2, 2, 4, 16, 16)
    result = IFRNet(in_channels=4, channels=(8, 8, 12, 16))(first, second)
    assert torch.equal(result.flow_to_first, torch.zeros(2, 2, 16, 16))
    assert torch.equal(result.mask, torch.full((2, 1, 16, 16), 0.5))
    torch.testing.assert_close(result.frame, (first + second) / 2)


@pytest.mark.parametrize("size", [(8, 8), (16, 16), (32, 32), (17, 23), (1, 5)])
def test_any_size_goes_in_and_comes_out(size: tuple[int, int]) -> None:
    first, second = frames(2, 2, 4, *size)
    result = latent_network()(first, second)
    assert result.frame.shape == result.warped.shape == (2, 4, *size)
    assert result.flow_to_first.shape == result.flow_to_second.shape == (2, 2, *size)
    assert result.mask.shape == (2, 1, *size)


def test_the_frame_is_made_as_the_result_says() -> None:
    first, second = frames(2, 1, 4, 24, 16)
    result = latent_network()(first, second)
    moved = backward_warp(first, result.flow_to_first), backward_warp(second, result.flow_to_second)
    assert torch.equal(result.warped, result.mask * moved[0] + (1 - result.mask) * moved[1])
    assert not torch.equal(result.frame, result.warped)


def test_a_constant_added_to_both_frames_passes_through() -> None:
    """The network works on frames without their common mean, also where it pads."""
    first, second = frames(2, 1, 4, 12, 20)
    network = latent_network()
    plain, brighter = network(first, second), network(first + 5.0, second + 5.0)
    torch.testing.assert_close(brighter.flow_to_first, plain.flow_to_first, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(brighter.frame, plain.frame + 5.0, rtol=1e-4, atol=1e-4)


def test_samples_do_not_see_each_other_and_each_has_its_time() -> None:
    network = latent_network()
    first, second = frames(2, 2, 4, 16, 16)
    both = network(first, second, torch.tensor([0.25, 0.75]))
    for index, time in enumerate((0.25, 0.75)):
        alone = network(first[index : index + 1], second[index : index + 1], time)
        torch.testing.assert_close(alone.frame, both.frame[index : index + 1], rtol=1e-4, atol=1e-5)
    assert not torch.equal(network(first, second, 0.25).frame, network(first, second, 0.75).frame)


def test_the_loss_is_zero_only_for_the_true_flow_and_frame() -> None:
    network = IFRNet(in_channels=4, channels=(8, 8, 12, 16))
    first = frames(1, 4, 16, 16)
    result = network(first, first)
    still, moving = torch.zeros(1, 2, 16, 16), constant_flow(3.0, 4.0, (16, 16))
    assert latent_flow_loss(result, first, still, still) < 4e-3  # Charbonnier's floor of 1e-3 a term
    loss = latent_flow_loss(result, first, moving, still)
    torch.testing.assert_close(loss, torch.tensor(2.5), rtol=2e-3, atol=0.0)  # 5 pixels one way, 0 the other
    assert latent_flow_loss(result, first + 1, still, still) > 1.9  # the frame and the warped frame


def test_every_parameter_learns_and_the_loss_falls() -> None:
    torch.manual_seed(0)
    network = IFRNet(in_channels=4, channels=(8, 8, 12, 16))
    target = torch.nn.functional.interpolate(frames(4, 4, 4, 4), size=(16, 16), mode="bicubic")
    first, second = target.roll(1, 3), target.roll(-1, 3)  # moves to the left by one pixel a frame
    to_first, to_second = constant_flow(1.0, 0.0, (16, 16), batch=4), constant_flow(-1.0, 0.0, (16, 16), batch=4)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    losses = []
    for _ in range(30):
        loss = latent_flow_loss(network(first, second), target, to_first, to_second)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in network.parameters())


def test_a_saved_network_comes_back_the_same(tmp_path: Path) -> None:
    network, (first, second) = latent_network(), frames(2, 1, 4, 16, 16)
    network.save_pretrained(tmp_path)
    loaded = IFRNet.from_pretrained(tmp_path, use_safetensors=True, low_cpu_mem_usage=False)
    torch.testing.assert_close(loaded(first, second).frame, network(first, second).frame)
