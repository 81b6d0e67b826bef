"""Statements about LPIPS: it is the published formula, frozen, and loads whole files only."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from videogen.config import AutoencoderOptions, UserError, VideoDecoderOptions
from videogen.models.lpips import LPIPS, load_lpips
from videogen.training.objectives.reconstruction import AutoencoderObjective

CONVOLUTIONS = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)  # torchvision's numbers of VGG-16's layers
POOLINGS = (4, 9, 16, 23)
CHANNELS = (64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512)


@functools.cache
def random_weights() -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """(VGG-16, heads) under the published names, scaled so that no layer dies out."""
    generator = torch.Generator().manual_seed(0)
    vgg: dict[str, Tensor] = {}
    for number, before, after in zip(CONVOLUTIONS, (3, *CHANNELS), CHANNELS, strict=False):
        scale = (2 / (9 * before)) ** 0.5
        vgg[f"features.{number}.weight"] = torch.randn(after, before, 3, 3, generator=generator) * scale
        vgg[f"features.{number}.bias"] = torch.randn(after, generator=generator) * 0.1
    widths = enumerate((64, 128, 256, 512, 512))
    heads = {f"lin{i}.model.1.weight": torch.rand(1, width, 1, 1, generator=generator) for i, width in widths}
    return vgg, heads


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("lpips")
    vgg, heads = random_weights()
    save_file(vgg, place / "vgg16.safetensors")
    save_file(heads, place / "lpips.safetensors")
    return place


@pytest.fixture(scope="module")
def network(folder: Path) -> LPIPS:
    return load_lpips(folder)


def images(count: int, seed: int, side: int = 32) -> Tensor:
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def published(first: Tensor, second: Tensor) -> Tensor:
    """LPIPS written down from the paper, equation 1, and the numbers of its version 0.1, layer by layer."""
    vgg, heads = random_weights()
    shift, scale = torch.tensor([-0.030, -0.088, -0.188]), torch.tensor([0.458, 0.448, 0.450])
    a, b = ((x - shift.view(1, 3, 1, 1)) / scale.view(1, 3, 1, 1) for x in (first, second))
    total, stage = torch.zeros(len(first)), 0
    for number in range(30):
        if number in CONVOLUTIONS:
            weight, bias = vgg[f"features.{number}.weight"], vgg[f"features.{number}.bias"]
            a, b = (F.relu(F.conv2d(x, weight, bias, padding=1)) for x in (a, b))
        if number in POOLINGS:
            a, b = F.max_pool2d(a, 2), F.max_pool2d(b, 2)
        if number + 1 in (*POOLINGS, 30):
            unit_a, unit_b = (x / (x.square().sum(1, keepdim=True).sqrt() + 1e-10) for x in (a, b))
            weights = heads[f"lin{stage}.model.1.weight"]
            total = total + ((unit_a - unit_b) ** 2 * weights).sum(1).mean((1, 2))
            stage += 1
    assert stage == 5
    return total


def test_it_is_the_published_formula(network: LPIPS) -> None:
    first, second = images(2, 1), images(2, 2)
    found = network(first, second)
    assert found.shape == (2,)
    torch.testing.assert_close(found, published(first, second), rtol=1e-4, atol=1e-6)


def test_it_is_a_distance_that_knows_no_order_and_no_batch(network: LPIPS) -> None:
    first, second = images(2, 1), images(2, 2)
    assert network(first, first).eq(0).all()
    torch.testing.assert_close(network(first, second), network(second, first))
    torch.testing.assert_close(network(first, second)[1:], network(first[1:], second[1:]))
    assert (network(first, second) > 0).all()


def test_only_the_images_get_gradients(network: LPIPS) -> None:
    made = images(1, 3).requires_grad_()
    network(made, images(1, 4)).sum().backward()
    assert made.grad is not None
    assert torch.isfinite(made.grad).all()
    assert made.grad.abs().max() > 0
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in network.parameters())


def test_dead_features_give_no_nan() -> None:
    network = LPIPS()
    for parameter in network.parameters():
        nn.init.zeros_(parameter)
    made = images(1, 3).requires_grad_()
    network(made, images(1, 4)).sum().backward()
    assert made.grad is not None
    assert made.grad.eq(0).all()


def test_the_reconstruction_loss_takes_it_with_its_weight(folder: Path) -> None:
    made, true = images(2, 5), images(2, 6)
    plain, _ = AutoencoderObjective(AutoencoderOptions()).reconstruction(made, true, 0)
    objective = AutoencoderObjective(AutoencoderOptions(lpips=str(folder), lpips_weight=0.5))
    loss, scalars = objective.reconstruction(made.requires_grad_(), true, 0)
    torch.testing.assert_close(loss - plain, 0.5 * published(made, true).mean(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(scalars["lpips"], published(made, true).mean().detach(), rtol=1e-4, atol=1e-6)
    assert not scalars["lpips"].requires_grad
    loss.backward()
    assert made.grad is not None


def test_the_video_decoder_has_the_same_options() -> None:
    assert VideoDecoderOptions(image_model="model").lpips is None
    assert VideoDecoderOptions(image_model="model").lpips_weight == 1.0


def spoil(folder: Path, place: Path, file: str, change: dict[str, Tensor | None]) -> None:
    """A copy of the weights in `place` with some tensors of one file replaced (None: left out)."""
    for name, tensors in zip(("vgg16.safetensors", "lpips.safetensors"), random_weights(), strict=True):
        if name == file:
            changed = {**tensors, **change}
            save_file({key: value for key, value in changed.items() if value is not None}, place / name)
        else:
            (place / name).symlink_to(folder / name)


@pytest.mark.parametrize(
    ("file", "key", "value", "fault"),
    [
        ("lpips.safetensors", "lin3.model.1.weight", None, r"lacks lin3\.model\.1\.weight"),
        ("lpips.safetensors", "lin5.model.1.weight", torch.zeros(1), r"unknown tensor lin5\.model\.1\.weight"),
        ("lpips.safetensors", "lin0.model.1.weight", torch.zeros(1, 63, 1, 1), r"is \(1, 63, 1, 1\), expected \(1, 64, 1, 1\)"),
        ("vgg16.safetensors", "features.0.bias", torch.full((64,), float("nan")), r"features\.0\.bias holds values"),
    ],
)
def test_wrong_weights_are_named(folder: Path, tmp_path: Path, file: str, key: str, value: Tensor | None, fault: str) -> None:
    spoil(folder, tmp_path, file, {key: value})
    with pytest.raises(UserError, match=rf"{file}.*{fault}"):
        load_lpips(tmp_path)


def test_missing_and_damaged_files_are_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot read LPIPS weights from .*vgg16\.safetensors"):
        load_lpips(tmp_path)
    (tmp_path / "vgg16.safetensors").symlink_to(folder / "vgg16.safetensors")
    (tmp_path / "lpips.safetensors").write_bytes(b"\x80\x02}q\x00.")
    with pytest.raises(UserError, match=r"cannot read LPIPS weights from .*lpips\.safetensors"):
        load_lpips(tmp_path)
