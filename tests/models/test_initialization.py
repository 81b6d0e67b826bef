"""Starting weights (section 3.5): every tensor by its own name, exactly the temporal ones new, only the input widened."""

from __future__ import annotations

import re

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import nn
from torch.nn.functional import avg_pool2d

from tiny import CODER, IMAGE_CODER, LIKE_SD, UNET, alive, clips, randn
from videogen.config import UserError
from videogen.models.initialization import decoder_tensors, initialize_as_resampler, initialize_from
from videogen.models.unet import VideoUNet
from videogen.models.video_decoder import VideoDecoder

WITH_ATTENTION = {"mid_block_add_attention": True}
BARE = {"down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"), "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D")}
FULL = {"down_block_types": ("CrossAttnDownBlock2D",) * 2, "up_block_types": ("CrossAttnUpBlock2D",) * 2}
PIECES = {"norm.weight", "norm.bias", "to_q.weight", "to_k.weight", "to_v.weight", "to_out.0.weight", "to_out.0.bias"}


def expected_new(image: nn.Module, *, attentions: list[str]) -> set[str]:
    """A temporal child for every 3x3 convolution of the image network, a temporal attention for every spatial one."""
    convolutions = [
        name for name, layer in image.named_modules() if isinstance(layer, nn.Conv2d) and layer.kernel_size == (3, 3)
    ]
    new = {f"{name}.temporal.{kind}" for name in convolutions for kind in ("weight", "bias")}
    return new | {f"{place}.temporal_attention.{piece}" for place in attentions for piece in PIECES}


@pytest.fixture
def image() -> UNet2DConditionModel:
    torch.manual_seed(0)
    return alive(UNet2DConditionModel(**UNET))


def test_from_an_image_network_exactly_the_temporal_layers_and_fps_are_new(image: UNet2DConditionModel) -> None:
    network = VideoUNet(**UNET)
    report = initialize_from(network, image.state_dict())
    blocks = [name.removesuffix(".attn1") for name, _ in image.named_modules() if name.endswith(".attn1")]
    assert len(blocks) == 4
    fps = {f"fps_embedding.linear_{i}.{kind}" for i in (1, 2) for kind in ("weight", "bias")}
    assert set(report.new) == expected_new(image, attentions=blocks) | fps
    assert report.widened == ("conv_in.weight",)
    assert set(report.copied) == image.state_dict().keys() - {"conv_in.weight"}
    own = network.state_dict()
    for name in report.copied:
        assert torch.equal(own[name], image.state_dict()[name]), name
    assert torch.equal(network.conv_in.weight[:, :4], image.conv_in.weight)
    assert network.conv_in.weight.shape[1] == 8
    assert not network.conv_in.weight[:, 4:].any()


@pytest.mark.parametrize("arguments", [{}, WITH_ATTENTION], ids=["plain", "with attention"])
def test_from_an_autoencoder_exactly_the_temporal_layers_are_new(arguments: dict[str, bool]) -> None:
    source = AutoencoderKL(**{**IMAGE_CODER, **arguments})
    video = VideoDecoder(**{**CODER, **arguments})
    tensors = decoder_tensors(source.state_dict())
    report = initialize_from(video, tensors)
    attentions = ["mid_block.attentions.0"] if arguments else []
    assert set(report.new) == {f"decoder.{name}" for name in expected_new(source.decoder, attentions=attentions)}
    assert report.widened == ()
    assert set(report.copied) == tensors.keys()
    assert "decoder.conv_in.weight" in tensors
    assert not any(name.startswith(("encoder", "quant_conv")) for name in tensors)


@torch.no_grad()
def test_the_next_level_starts_as_the_one_below() -> None:
    torch.manual_seed(0)
    below = alive(VideoUNet(sample_size=2, **UNET))
    level = VideoUNet(sample_size=4, condition_channels=4, **UNET).eval()
    report = initialize_from(level, below.state_dict())
    assert (report.new, report.widened) == ((), ("conv_in.weight",))
    own = level.state_dict()
    for name, tensor in below.state_dict().items():
        assert torch.equal(own[name][:, : tensor.shape[1]] if name in report.widened else own[name], tensor), name
    given = {
        "sample": randn(1, 3, 4, 4, 4), "timestep": torch.tensor([70]), "fps": torch.tensor([8.0]),
        "text": randn(1, 5, UNET["cross_attention_dim"]), "reference": randn(1, 4, 4, 4),
    }  # fmt: skip
    found = level(**given, condition=randn(1, 3, 4, 2, 2))  # not seen yet: its input weights are zero
    torch.testing.assert_close(found, below(**given), rtol=0, atol=1e-5)
    level_2 = VideoUNet(sample_size=8, condition_channels=4, **UNET)
    assert initialize_from(level_2, level.state_dict()).widened == ()  # of equal shape: every tensor as it is
    assert all(torch.equal(tensor, own[name]) for name, tensor in level_2.state_dict().items())


@torch.no_grad()
def test_attention_may_be_new_in_a_block_that_has_none_and_starts_as_the_identity() -> None:
    torch.manual_seed(0)
    source, network = alive(VideoUNet(**{**UNET, **BARE})), alive(VideoUNet(**{**UNET, **FULL}))
    report = initialize_from(network, source.state_dict())
    assert report.new
    assert all(name.startswith(("down_blocks.0.attentions.", "up_blocks.1.attentions.")) for name in report.new)
    given = {
        "sample": randn(1, 3, 4, 4, 4), "timestep": torch.tensor([70]), "fps": torch.tensor([8.0]),
        "text": randn(1, 5, UNET["cross_attention_dim"]), "reference": randn(1, 4, 4, 4),
    }  # fmt: skip
    torch.testing.assert_close(network(**given), source(**given), rtol=0, atol=1e-5)
    tensors = source.state_dict()
    lost = next(name for name in tensors if ".attentions." in name)  # of a block that has attention: nothing new
    with pytest.raises(UserError, match="1 missing tensors"):
        initialize_from(network, {name: item for name, item in tensors.items() if name != lost})


@torch.no_grad()
def test_attention_may_be_left_out_of_a_whole_block_and_only_of_a_whole_one() -> None:
    torch.manual_seed(0)
    source, network = alive(VideoUNet(**{**UNET, **FULL})), alive(VideoUNet(**{**UNET, **BARE}))
    report = initialize_from(network, source.state_dict())
    own, given = network.state_dict(), source.state_dict()
    assert set(report.left_out) == given.keys() - own.keys() != set()
    assert all(name.startswith(("down_blocks.0.attentions.", "up_blocks.1.attentions.")) for name in report.left_out)
    assert all(torch.equal(tensor, given[name]) for name, tensor in own.items())
    lost = next(name for name in own if ".attentions." in name)
    with pytest.raises(UserError, match="0 unknown tensors"):
        initialize_from(network, {name: item for name, item in given.items() if name != lost})


@torch.no_grad()
def test_the_embedding_of_a_whole_text_may_be_new_and_starts_at_zero() -> None:
    torch.manual_seed(0)
    source = alive(VideoUNet(**LIKE_SD))
    network = alive(VideoUNet(**UNET))
    report = initialize_from(network, source.state_dict())
    assert report.new
    assert all(name.startswith("add_embedding.") for name in report.new)
    given = {
        "sample": randn(1, 3, 4, 4, 4), "timestep": torch.tensor([70]), "fps": torch.tensor([8.0]),
        "text": randn(1, 5, UNET["cross_attention_dim"]), "reference": randn(1, 4, 4, 4),
    }  # fmt: skip
    torch.testing.assert_close(network(**given), source(**given), rtol=0, atol=1e-5)
    tensors = network.state_dict()
    del tensors["add_embedding.norm1.bias"]
    with pytest.raises(UserError, match="1 missing tensors"):
        initialize_from(network, tensors)


def test_weights_of_another_family_are_refused_by_name(image: UNet2DConditionModel) -> None:
    tensors = image.state_dict()
    with pytest.raises(UserError, match=r"1 unknown tensors \['extra'\], 0 missing"):
        initialize_from(VideoUNet(**UNET), {**tensors, "extra": torch.zeros(1)})
    with pytest.raises(UserError, match=r"0 unknown tensors \[\], 1 missing tensors \['conv_out.bias'\]"):
        initialize_from(VideoUNet(**UNET), {name: item for name, item in tensors.items() if name != "conv_out.bias"})
    with pytest.raises(UserError, match=re.escape("conv_out.bias is (5,), expected (4,)")):
        initialize_from(VideoUNet(**UNET), {**tensors, "conv_out.bias": torch.zeros(5)})
    with pytest.raises(UserError, match=re.escape("conv_in.weight is (8, 9, 3, 3), expected (8, 8, 3, 3)")):
        initialize_from(VideoUNet(**UNET), {**tensors, "conv_in.weight": torch.zeros(8, 9, 3, 3)})


def test_a_refused_source_changes_nothing(image: UNet2DConditionModel) -> None:
    network = VideoUNet(**UNET)
    before = {name: item.clone() for name, item in network.state_dict().items()}
    with pytest.raises(UserError):
        initialize_from(network, {**image.state_dict(), "conv_out.bias": torch.zeros(5)})
    assert all(torch.equal(item, before[name]) for name, item in network.state_dict().items())


@torch.no_grad()
def test_a_resampling_autoencoder_starts_with_the_shrunk_image_as_latents() -> None:
    """Group norms, padding and the random channels leave it approximate: correlations instead of equality."""
    torch.manual_seed(0)
    autoencoder = AutoencoderKL(**IMAGE_CODER).eval()
    initialize_as_resampler(autoencoder)
    images = clips(4, 1).frames[:, 0]
    posterior = autoencoder.encode(images).latent_dist
    for latent, colour in zip(posterior.mean[:, :3].unbind(1), avg_pool2d(images, 4).unbind(1), strict=True):
        assert torch.corrcoef(torch.stack([latent.flatten(), colour.flatten()]))[0, 1] > 0.95
    assert posterior.std.max() < 0.06
    made = autoencoder.decode(posterior.mean).sample
    assert torch.corrcoef(torch.stack([made.flatten(), images.flatten()]))[0, 1] > 0.9
    with pytest.raises(UserError, match=r"block_out_channels must be at least 8 each, not \[4, 8, 8\]"):
        initialize_as_resampler(AutoencoderKL(**{**IMAGE_CODER, "block_out_channels": (4, 8, 8)}))
