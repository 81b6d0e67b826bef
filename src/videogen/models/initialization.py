"""Starting weights (section 3.5): an image network becomes a video network; level n of the cascade becomes level n + 1.

Every tensor of the source loads by its own name. What has no source must be exactly the new temporal layers, the fps
embedding, the embedding of a whole text and attention in blocks where the source has none, and only `conv_in` may grow (new
input channels start at zero): checked, not mapped. All that is new starts such that the network computes what the source
does. Only the attention of whole blocks may be left out, where a larger network of the cascade cannot afford it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from diffusers import AutoencoderKL
from diffusers.models.downsampling import Downsample2D
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.upsampling import Upsample2D
from torch import Tensor, nn

from videogen.config import UserError


@dataclass(frozen=True)
class InitReport:
    """Names of tensors: copied as they are, widened with zeros, new (identity or zero at the start), and left out (the source's
    attention, in blocks that have none here)."""

    copied: tuple[str, ...]
    widened: tuple[str, ...]
    new: tuple[str, ...]
    left_out: tuple[str, ...] = ()


def is_new_in_video(name: str) -> bool:
    """Whether a tensor exists only in the video network: a temporal child or the fps embedding."""
    return any(part.startswith("temporal") for part in name.split(".")) or name.startswith("fps_embedding.")


def why_new(name: str) -> str:
    """Why a tensor of a video network has no source, and how it starts."""
    if name.startswith("fps_embedding."):
        return "frame rate embedding (3.2), its last layer zero"
    if name.startswith("add_embedding."):
        return "embedding of the whole text (ours), its last layer zero"
    if ".attentions." in name and not is_new_in_video(name):
        return "attention of a block that had none (ours), its last projection zero"
    if ".temporal_attention." in name:
        return "temporal attention (3.2), its last projection zero"
    return "temporal convolution (3.2), the identity"


def initialize_from(network: nn.Module, source: Mapping[str, Tensor]) -> InitReport:
    """Copy the source's tensors into `network` in place and report what happened.

    Raises UserError, and changes nothing, when a name or a shape does not fit: the two networks are then not of one family.
    """
    own = network.state_dict()
    left_out = {name for name in source if _is_new_attention(name, own)}
    source = {name: tensor for name, tensor in source.items() if name not in left_out}
    unknown = sorted(source.keys() - own.keys())
    added = {name for name in own if _is_new_attention(name, source) or _is_new_embedding(name, source)}
    missing = sorted(name for name in own.keys() - source.keys() - added if not is_new_in_video(name))
    if unknown or missing:
        raise UserError(
            f"the weights do not fit {type(network).__name__}: "
            f"{len(unknown)} unknown tensors {unknown[:3]}, {len(missing)} missing tensors {missing[:3]}"
        )
    other = sorted(name for name, tensor in source.items() if tensor.shape != own[name].shape)
    widened = [name for name in other if name == "conv_in.weight" and _only_wider_input(own[name], source[name])]
    for name in other:
        if name not in widened:
            expected = tuple(own[name].shape)
            raise UserError(f"the weights do not fit: {name} is {tuple(source[name].shape)}, expected {expected}")
    copied = sorted(source.keys() - set(widened))
    with torch.no_grad():
        for name in copied:
            own[name].copy_(source[name])
        for name in widened:
            own[name].zero_()
            own[name][:, : source[name].shape[1]] = source[name]
        for name in added:
            if ".proj_out." in name or name.startswith("add_embedding.norm2."):
                own[name].zero_()
    new = sorted(own.keys() - source.keys())
    return InitReport(tuple(copied), tuple(widened), tuple(new), tuple(sorted(left_out)))


def _is_new_attention(name: str, others: Mapping[str, Tensor]) -> bool:
    """Whether a tensor belongs to the attention of a block that has none in the network of `others`."""
    block, found, _ = name.partition(".attentions.")
    return bool(found) and not any(other.startswith(f"{block}.attentions.") for other in others)


def _is_new_embedding(name: str, source: Mapping[str, Tensor]) -> bool:
    """Whether a tensor belongs to the embedding of a whole text, which the source does not have."""
    return name.startswith("add_embedding.") and "add_embedding.proj.weight" not in source


def _only_wider_input(target: Tensor, source: Tensor) -> bool:
    same = target.shape[0] == source.shape[0] and target.shape[2:] == source.shape[2:]
    return same and target.shape[1] > source.shape[1]


def decoder_tensors(autoencoder: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The decoding half of an AutoencoderKL's state: what a VideoDecoder starts from."""
    return {name: tensor for name, tensor in autoencoder.items() if name.startswith(("decoder.", "post_quant_conv."))}


@torch.no_grad()
def initialize_as_resampler(autoencoder: AutoencoderKL) -> None:
    """Make a new AutoencoderKL start as plain down- and upsampling, in place (ours, for training mini's from nothing).

    Residual branches start at zero. Eight channels of each layer carry (image, -image, 1, -1): with SiLU, s(x) - s(-x) = x, and
    the constants keep the size of x through the group norms. So three latents are the shrunk image from the first step
    on, and training spends its steps on detail. Needs 3 image channels; raises UserError below 8 channels anywhere.
    """
    if min(autoencoder.config.block_out_channels) < 8:
        raise UserError(
            f"network.block_out_channels must be at least 8 each, not {list(autoencoder.config.block_out_channels)}"
        )
    encoder, decoder = autoencoder.encoder, autoencoder.decoder
    for module in autoencoder.modules():
        if isinstance(module, ResnetBlock2D):
            nn.init.zeros_(module.conv2.weight)
            nn.init.zeros_(module.conv2.bias)
            if module.conv_shortcut is not None:
                _carry(module.conv_shortcut, 8)
        elif isinstance(module, Upsample2D):
            _carry(module.conv, 8)
        elif isinstance(module, Downsample2D):
            _carry(module.conv, 8)
            for channel in range(8):  # the mean of 2x2 pixels; the frame is padded at its end only
                module.conv.weight[channel, channel] = 0.0
                module.conv.weight[channel, channel, :2, :2] = 0.25
    for first in (encoder.conv_in, decoder.conv_in):
        _carry(first, 8, inputs=3)
        for channel in range(3):
            first.weight[3 + channel] = -first.weight[channel]
        first.weight[6:8] = 0.0
        first.bias[6:8] = torch.tensor([1.0, -1.0])
    for last in (encoder.conv_out, decoder.conv_out):
        _carry(last, 3)
        for channel in range(3):
            last.weight[channel, 3 + channel] = -last.weight[channel, channel]
    latents = autoencoder.config.latent_channels
    encoder.conv_out.weight[latents:] = 0.0
    encoder.conv_out.bias[latents:] = -6.0  # logarithm of the posterior's variance: almost no noise at the start
    for pointwise in (autoencoder.quant_conv, autoencoder.post_quant_conv):
        nn.init.dirac_(pointwise.weight)
        nn.init.zeros_(pointwise.bias)


def _carry(layer: nn.Conv2d, channels: int, inputs: int | None = None) -> None:
    """Let output channel i < `channels` be input channel i (where i < `inputs`, default all), and nothing else."""
    centre = layer.kernel_size[0] // 2
    layer.weight[:channels] = 0.0
    layer.bias[:channels] = 0.0  # type: ignore[index]
    for channel in range(min(channels, layer.in_channels if inputs is None else inputs)):
        layer.weight[channel, channel, centre, centre] = 1.0
