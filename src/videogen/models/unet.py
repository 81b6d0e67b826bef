"""VideoUNet (section 3.2): Stable Diffusion's UNet made pseudo-3-D, with every condition injected inside the network.

One class serves the three networks of the cascade and the refiner of section 3.3. Injecting here means that training and
sampling cannot drift apart: the reference is concatenated with the first frame and zeros with all others (and, where the
network asks for it, with every frame once more), the condition (low-resolution latents, or the neighbours of a new frame)
with every frame, text and fps enter as embeddings.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.embeddings import TextTimeEmbedding, TimestepEmbedding, Timesteps
from diffusers.models.modeling_utils import ModelMixin
from diffusers.utils.accelerate_utils import apply_forward_hook
from torch import Tensor, nn

from videogen.models.adapters import NetworkAdapters
from videogen.models.pseudo3d import Downsample, KeysValues, PseudoConv3d, ResnetBlock, Transformer, Upsample


@dataclass(frozen=True)
class TextCondition:
    """What a network makes of a text, once for all frames and steps: see `VideoUNet.read_text`."""

    keys_values: list[KeysValues]  # of every cross-attention
    embedding: Tensor | None  # (B, D), of the whole text

    def rows(self, rows: slice) -> TextCondition:
        """The texts `rows` of the batch."""
        chosen = [(keys[rows], values[rows]) for keys, values in self.keys_values]
        return TextCondition(chosen, None if self.embedding is None else self.embedding[rows])


Text = Tensor | TextCondition | None
"""Token states (B, L, D), or what `VideoUNet.read_text` made of them."""


BLOCK_TYPES = {"DownBlock2D", "CrossAttnDownBlock2D", "UpBlock2D", "CrossAttnUpBlock2D"}


class DownBlock(nn.Module):
    """Residual blocks, each followed by a transformer where `heads` is given, then a downsampling."""

    def __init__(self, channels: list[int], embedding: int, heads: int | None, down: bool, **common: Any) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(
            ResnetBlock(a, b, embedding, common["groups"], 1e-5) for a, b in itertools.pairwise(channels)
        )
        self.attentions = nn.ModuleList(Transformer(c, heads, **common) for c in channels[1:]) if heads else None
        self.downsamplers = nn.ModuleList([Downsample(channels[-1])]) if down else None

    def forward(self, x: Tensor, embedding: Tensor, num_frames: int, text: list[KeysValues]) -> tuple[Tensor, list[Tensor]]:
        skips = []
        for index, resnet in enumerate(self.resnets):
            x = resnet(x, num_frames, embedding)
            if self.attentions is not None:
                x = self.attentions[index](x, num_frames, text)
            skips.append(x)
        if self.downsamplers is not None:
            x = self.downsamplers[0](x, num_frames)
            skips.append(x)
        return x, skips


class MidBlock(nn.Module):
    """Residual block, transformer, residual block."""

    def __init__(self, channels: int, embedding: int, heads: int, **common: Any) -> None:
        super().__init__()
        self.attentions = nn.ModuleList([Transformer(channels, heads, **common)])
        self.resnets = nn.ModuleList(ResnetBlock(channels, channels, embedding, common["groups"], 1e-5) for _ in range(2))

    def forward(self, x: Tensor, embedding: Tensor, num_frames: int, text: list[KeysValues]) -> Tensor:
        x = self.resnets[0](x, num_frames, embedding)
        x = self.attentions[0](x, num_frames, text)
        return self.resnets[1](x, num_frames, embedding)


class UpBlock(nn.Module):
    """Residual blocks on the concatenated skips, transformers where `heads` is given, then an upsampling."""

    def __init__(self, inputs: list[int], channels: int, embedding: int, heads: int | None, up: bool, **common: Any) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(ResnetBlock(c, channels, embedding, common["groups"], 1e-5) for c in inputs)
        self.attentions = nn.ModuleList(Transformer(channels, heads, **common) for _ in inputs) if heads else None
        self.upsamplers = nn.ModuleList([Upsample(channels)]) if up else None

    def forward(self, x: Tensor, skips: list[Tensor], embedding: Tensor, num_frames: int, text: list[KeysValues]) -> Tensor:
        for index, resnet in enumerate(self.resnets):
            x = resnet(torch.cat([x, skips.pop()], dim=1), num_frames, embedding)
            if self.attentions is not None:
                x = self.attentions[index](x, num_frames, text)
        if self.upsamplers is not None:
            x = self.upsamplers[0](x, num_frames, skips[-1].shape[-2:])
        return x


class VideoUNet(ModelMixin, ConfigMixin, NetworkAdapters):
    """Pseudo-3-D denoising network (section 3.2).

    The configuration uses the names of `diffusers.UNet2DConditionModel`, including its quirk: `attention_head_dim` is the
    *number* of heads of spatial and cross-attention. New here: `reference` (whether a reference image conditions the network)
    and `condition_channels` (channels concatenated with every frame; 0 for the first network of the cascade),
    `reference_in_every_frame` (ours: it is concatenated with all frames as well, behind the rest; where a thing moves, a frame
    then has what it looks like at hand, and temporal layers need not carry it there first),
    `temporal_head_size` (channels of a head of temporal attention),
    `shared_noise` (the kind of noise it denoises, see `diffusion.video_noise`) and `condition_error` (how its output counts:
    from the best guess by `out_channels` of the condition, about which the clean latents have this variance, see
    `diffusion.counted_from`; the last layer then starts at zero; None: from nothing, as Stable Diffusion's) and
    `condition_blur` (how blurred the low resolution is that it is shown, see `stages.cascade.blurred`). Without
    `cross_attention_dim` the network reads no text; with `addition_embed_type` "text", as in diffusers, an attention pooling
    of the whole text (`addition_embed_type_num_heads` heads) joins the time embedding, beside cross-attention.
    """

    @register_to_config
    def __init__(
        self,
        sample_size: int = 16,
        in_channels: int = 4,
        out_channels: int = 4,
        reference: bool = True,
        condition_channels: int = 0,
        reference_in_every_frame: bool = False,
        down_block_types: tuple[str, ...] = (*["CrossAttnDownBlock2D"] * 3, "DownBlock2D"),
        up_block_types: tuple[str, ...] = ("UpBlock2D", *["CrossAttnUpBlock2D"] * 3),
        block_out_channels: tuple[int, ...] = (320, 640, 1280, 1280),
        layers_per_block: int = 2,
        attention_head_dim: int | tuple[int, ...] = 8,
        cross_attention_dim: int | None = None,
        addition_embed_type: str | None = None,
        addition_embed_type_num_heads: int = 64,
        use_linear_projection: bool = False,
        norm_num_groups: int = 32,
        temporal_head_size: int = 64,
        shared_noise: float = 0.0,
        condition_error: float | None = None,
        condition_blur: int = 0,
    ) -> None:
        super().__init__()
        widths, levels = list(block_out_channels), len(block_out_channels)
        if len(down_block_types) != levels or len(up_block_types) != levels:
            raise ValueError("down_block_types, up_block_types and block_out_channels must have the same length")
        unknown = sorted({*down_block_types, *up_block_types} - BLOCK_TYPES)
        if unknown:
            raise ValueError(f"{unknown[0]!r} is not a block of this network: it has {', '.join(sorted(BLOCK_TYPES))}")
        if not 0 <= shared_noise <= 1:
            raise ValueError(f"shared_noise must lie in 0..1, not {shared_noise}")
        if condition_error is not None and not (0 < condition_error < float("inf") and condition_channels >= out_channels):
            raise ValueError(
                f"condition_error must be above 0 and finite, of a network with a condition, not {condition_error}"
            )
        if isinstance(condition_blur, bool) or not isinstance(condition_blur, int) or not 0 <= condition_blur <= 16:
            raise ValueError(f"condition_blur must be a whole number from 0 to 16, not {condition_blur!r}")
        for name, value in (("reference", reference), ("reference_in_every_frame", reference_in_every_frame)):
            if not isinstance(value, bool):
                raise ValueError(f"{name} must be true or false, not {value!r}")
        if reference_in_every_frame and not reference:
            raise ValueError("reference_in_every_frame needs a network with a reference")
        heads = [attention_head_dim] * levels if isinstance(attention_head_dim, int) else list(attention_head_dim)
        common = {"text_channels": cross_attention_dim, "groups": norm_num_groups, "linear": use_linear_projection}
        common["temporal_head_size"] = temporal_head_size
        embedding = 4 * widths[0]

        total = in_channels * (1 + reference + reference_in_every_frame) + condition_channels
        self.conv_in = PseudoConv3d(total, widths[0], 3, padding=1)
        self._make_embeddings(widths[0], embedding, cross_attention_dim, addition_embed_type, addition_embed_type_num_heads)

        skips = [widths[0]]
        self.down_blocks = nn.ModuleList()
        for level, (kind, width) in enumerate(zip(down_block_types, widths, strict=True)):
            channels = [skips[-1], *[width] * layers_per_block]
            down = level < levels - 1
            attended = heads[level] if kind == "CrossAttnDownBlock2D" else None
            self.down_blocks.append(DownBlock(channels, embedding, attended, down, **common))
            skips += channels[1:] + [width] * down
        self.mid_block = MidBlock(widths[-1], embedding, heads[-1], **common)
        self.up_blocks = nn.ModuleList()
        previous = widths[-1]
        for level, (kind, width) in enumerate(zip(up_block_types, reversed(widths), strict=True)):
            inputs = []
            for _ in range(layers_per_block + 1):
                inputs.append(previous + skips.pop())
                previous = width
            attended = heads[levels - 1 - level] if kind == "CrossAttnUpBlock2D" else None
            self.up_blocks.append(UpBlock(inputs, width, embedding, attended, level < levels - 1, **common))
        self.conv_norm_out = nn.GroupNorm(norm_num_groups, widths[0], eps=1e-5)
        self.conv_out = PseudoConv3d(widths[0], out_channels, 3, padding=1)
        if condition_error is not None:
            self.count_from_condition()
        for index, layer in enumerate(self._transformers()):
            layer.text_index = index

    def _make_embeddings(self, width: int, embedding: int, text: int | None, kind: str | None, heads: int) -> None:
        """Of timestep, frame rate (3.2) and, where `kind` is "text", the whole text."""
        self.time_proj = Timesteps(width, flip_sin_to_cos=True, downscale_freq_shift=0)
        self.time_embedding = TimestepEmbedding(width, embedding)
        self.fps_embedding = TimestepEmbedding(width, embedding)
        nn.init.zeros_(self.fps_embedding.linear_2.weight)
        nn.init.zeros_(self.fps_embedding.linear_2.bias)
        self.add_embedding = None
        if kind is not None:
            if kind != "text" or text is None:
                raise ValueError(f'addition_embed_type must be "text" beside a cross_attention_dim, or None, not {kind!r}')
            self.add_embedding = TextTimeEmbedding(text, embedding, heads)

    def count_from_condition(self) -> None:
        """Let the last layer begin at zero, where it has learnt to count from nothing or nothing yet."""
        nn.init.zeros_(self.conv_out.weight)
        nn.init.zeros_(self.conv_out.bias)  # type: ignore[arg-type]

    def _transformers(self) -> list[Transformer]:
        return [layer for layer in self.modules() if isinstance(layer, Transformer)]

    @apply_forward_hook  # an offloaded network is fetched for this too
    def read_text(self, text: Tensor) -> TextCondition:
        """Token states (B, L, D) -> keys and values of every cross-attention, and the embedding of the whole."""
        keys_values = [layer.keys_values(text) for layer in self._transformers()]
        return TextCondition(keys_values, None if self.add_embedding is None else self.add_embedding(text))

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor,
        *,
        fps: Tensor,
        text: Text = None,
        reference: Tensor | None = None,
        condition: Tensor | None = None,
    ) -> Tensor:
        """Predict noise, velocity or clean latents (the training's prediction type).

        sample: noisy latents (B, F, C, h, w). timestep: (B,). fps: frames a second (B,). text: see `Text`.
        reference: latents (B, C, h, w) of the reference image at this network's size; None means no reference (zeros).
        condition: (B, F, condition_channels, h', w'), bilinearly resized to (h, w). Returns (B, F, C, h, w). Raises ValueError
        on a text, reference or condition that this network does not take, or without one that it needs.
        """
        if (text is None) != (self.config.cross_attention_dim is None):
            raise ValueError("a network with cross_attention_dim needs text, one without takes none")
        num_frames = sample.shape[1]
        x = self._with_conditions(sample, reference, condition).flatten(0, 1)
        x = x.contiguous(memory_format=torch.channels_last)
        read = self.read_text(text) if isinstance(text, Tensor) else text or TextCondition([], None)
        keys_values, embedding = read.keys_values, self._embedding(timestep, fps, sample.dtype)
        if read.embedding is not None:
            embedding = embedding + read.embedding
        embedding = embedding.repeat_interleave(num_frames, dim=0)

        x = self.conv_in(x, num_frames)
        skips = [x]
        for down in self.down_blocks:
            x, new = down(x, embedding, num_frames, keys_values)
            skips += new
        x = self.mid_block(x, embedding, num_frames, keys_values)
        for up in self.up_blocks:
            x = up(x, skips, embedding, num_frames, keys_values)
        x = self.conv_out(F.silu(self.conv_norm_out(x)), num_frames)
        return x.unflatten(0, (-1, num_frames))

    def _with_conditions(self, sample: Tensor, reference: Tensor | None, condition: Tensor | None) -> Tensor:
        """Concatenate on channels: noisy latents | reference with frame 0, zeros with the others | condition | reference."""
        parts, channels = [sample], 0 if condition is None else condition.shape[2]
        if channels != self.config.condition_channels:
            raise ValueError(f"this network takes a condition of {self.config.condition_channels} channels, not {channels}")
        if reference is not None and not self.config.reference:
            raise ValueError("this network takes no reference")
        if self.config.reference:
            first = torch.zeros_like(sample)
            if reference is not None:
                first[:, 0] = reference
            parts.append(first)
        if condition is not None:
            parts.append(resize_condition(condition, sample.shape[-2:]))
        if self.config.reference_in_every_frame:
            every = torch.zeros_like(sample[:, 0]) if reference is None else reference
            parts.append(every[:, None].expand_as(sample))
        return torch.cat(parts, dim=2)

    def _embedding(self, timestep: Tensor, fps: Tensor, dtype: torch.dtype) -> Tensor:
        time = self.time_embedding(self.time_proj(timestep).to(dtype))
        return time + self.fps_embedding(self.time_proj(fps).to(dtype))


def resize_condition(condition: Tensor, size: tuple[int, ...]) -> Tensor:
    """Latents (B, F, C, h', w') of another level as a network sees them: (B, F, C, *size), bilinear."""
    if condition.shape[-2:] == size:
        return condition
    return F.interpolate(condition.flatten(0, 1), size, mode="bilinear").unflatten(0, condition.shape[:2])
