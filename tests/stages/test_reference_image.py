"""The reference image (section 3.1): generated, or any picture."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from tiny import generators, randn
from videogen.config import Guidance
from videogen.pipeline import VideoGenPipeline
from videogen.stages.conditions import encode_text
from videogen.stages.reference_image import generate_reference, image_to_tensor, native_size

GREY = 128 / 127.5 - 1


@pytest.mark.parametrize(
    "mode", ["RGB", "L", "1", "P", "CMYK", "YCbCr", "HSV", "LAB", "RGBA", "LA", "PA", "RGBX", "I", "F", "I;16"]
)
@pytest.mark.parametrize("size", [(50, 70), (31, 7), (1, 1)])
def test_pictures_of_every_mode_and_size(mode: str, size: tuple[int, int]) -> None:
    picture = Image.effect_noise(size, 80)
    picture = picture.convert("LA").convert("PA") if mode == "PA" else picture.convert(mode)
    pixels = image_to_tensor(picture, (32, 48))
    assert (pixels.shape, pixels.dtype) == ((3, 32, 48), torch.float32)
    assert -1 <= pixels.min() <= pixels.max() <= 1


def test_transparency_is_white_and_grey_is_grey() -> None:
    clear, grey, deep = Image.new("LA", (9, 9), (0, 0)), Image.new("L", (9, 5), 128), Image.new("I;16", (9, 5), 32896)
    for picture, colour in ((clear, 1.0), (grey, GREY), (deep, GREY)):
        torch.testing.assert_close(image_to_tensor(picture, (4, 4)), torch.full((3, 4, 4), colour))


def test_a_picture_of_the_right_size_is_taken_as_it_is() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (32, 48, 3), dtype=np.uint8)
    expected = torch.from_numpy(pixels).permute(2, 0, 1) / 127.5 - 1
    assert torch.equal(image_to_tensor(Image.fromarray(pixels), (32, 48)), expected)


@pytest.mark.parametrize(("size", "seen"), [((60, 20), slice(20, 40)), ((20, 20), slice(0, 20))])
def test_the_centre_is_kept_and_nothing_is_stretched(size: tuple[int, int], seen: slice) -> None:
    """A wide picture with a red centre square on black: the square fills the frame."""
    pixels = np.zeros((size[1], size[0], 3), np.uint8)
    pixels[:, seen] = (255, 0, 0)
    found = image_to_tensor(Image.fromarray(pixels), (10, 10))
    torch.testing.assert_close(found[0], torch.ones(10, 10))
    tall = image_to_tensor(Image.fromarray(pixels).transpose(Image.Transpose.ROTATE_90), (10, 10))
    torch.testing.assert_close(tall[0], torch.ones(10, 10))


def test_a_line_of_pixels_costs_no_memory() -> None:
    """Scaled to cover the frame before being cut, this one would take 200 GB."""
    assert image_to_tensor(Image.new("L", (500_000, 1)), (64, 64)).shape == (3, 64, 64)


def test_a_generated_reference_is_the_same_alone_and_in_a_batch(tiny_pipe: VideoGenPipeline) -> None:
    """Tolerance: convolutions may pick another algorithm for another batch."""
    steps: list[int] = []

    def make(prompts: list[str], seeds: tuple[int, ...], scale: float = 4.0) -> torch.Tensor:
        text = encode_text(tiny_pipe.tokenizer, tiny_pipe.text_encoder, [""] * len(prompts) + prompts)
        return generate_reference(
            tiny_pipe.unet, tiny_pipe.vae, tiny_pipe.scheduler, text, (32, 48), generators(*seeds),
            num_steps=2, guidance=Guidance(scale), on_step=lambda index, _: steps.append(index),
        )  # fmt: skip

    images = make(["a red ball", "a blue star"], (3, 4))
    assert (images.shape, steps) == ((2, 3, 32, 48), [0, 1])
    torch.testing.assert_close(make(["a blue star"], (4,)), images[1:], rtol=0, atol=1e-4)
    assert not torch.allclose(make(["a blue star"], (5,)), images[1:], atol=1e-2)
    assert torch.equal(make(["a ball"], (3,), 0.0), make(["a star"], (3,), 0.0))  # without guidance the prompt is not seen
    assert not torch.equal(make(["a ball"], (3,)), make(["a star"], (3,)))


@pytest.mark.parametrize(
    ("video", "drawn"),
    [((16, 16), (16, 16)), ((64, 64), (16, 16)), ((8, 8), (16, 16)), ((32, 64), (16, 32)), ((64, 40), (24, 16))],
)
def test_the_network_draws_at_its_own_size_in_the_shape_of_the_video(
    tiny_pipe: VideoGenPipeline, video: tuple[int, int], drawn: tuple[int, int]
) -> None:
    factor, levels = tiny_pipe.vae_factor, len(tiny_pipe.unet.config.block_out_channels)
    own = tiny_pipe.unet.config.sample_size * factor
    scaled = tuple(side * own // 16 for side in video), tuple(side * own // 16 for side in drawn)
    assert own % 16 == 0, (own, factor, levels)
    assert native_size(tiny_pipe.unet, scaled[0], factor) == scaled[1]


def test_only_the_asked_part_of_a_picture_counts() -> None:
    picture = randn(3, 40, 20, seed=3).clamp(-1, 1).add(1).mul(127.5).byte().permute(1, 2, 0).numpy()
    whole = image_to_tensor(Image.fromarray(picture), (20, 20))
    assert torch.equal(whole, image_to_tensor(Image.fromarray(picture[10:30]), (20, 20)))
