"""Denoising objectives: text-to-image (3.1), the cascade's three networks (3.2), the refiner of new frames (3.3)."""

from __future__ import annotations

import typing
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor, nn

from videogen import diffusion
from videogen.config import Guidance, RefinerOptions, TextToImageOptions, UserError, VideoDiffusionOptions
from videogen.data.clips import ClipBatch, ReadyBatch
from videogen.models.ifrnet import IFRNet
from videogen.models.initialization import initialize_from, is_new_in_video
from videogen.models.pretrained import frozen, load_component, load_network, load_scheduler, load_text, network_class
from videogen.models.unet import VideoUNet
from videogen.stages import temporal_super_resolution as tsr
from videogen.stages.cascade import super_resolution_condition, super_resolve
from videogen.stages.conditions import decode_frames, encode_frames, encode_text, resize_frames
from videogen.training.objectives.base import Objective, chance, make

PREVIEW_STEPS = 20
PREVIEW_GUIDANCE = Guidance(3.0, rescale=0.7)


def denoising_loss(
    scheduler: Any,
    predict: diffusion.Predict,
    clean: Tensor,
    generators: list[torch.Generator],
    shared_noise: float = 0.0,
    high_noise: float = 1.0,
    strength: float = 1.0,
    known_error: float | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Mean squared error of the network's output at a random timestep and noise for each sample (DDPM, equation 14).

    known_error: where the output counts from what is known with this error (`diffusion.counted_from`), the error of x_0 as a
    share of that of the best linear guess instead, which is about as large at all levels of noise (ours): else the least noise
    counts most, where there is least to learn.
    """
    timesteps = diffusion.random_timesteps(scheduler, generators, clean.device, high_noise, strength)
    noise = diffusion.video_noise(tuple(clean.shape), generators, shared_noise, clean)
    noisy = diffusion.add_noise(scheduler, clean, noise, timesteps)
    output = predict(noisy, timesteps).float()
    if known_error is None:
        loss = F.mse_loss(output, diffusion.training_target(scheduler, clean, noise, timesteps).float())
    else:
        signal, sigma = diffusion.signal_and_noise(scheduler, timesteps, output)
        expected = known_error * sigma**2 / (sigma**2 + known_error * signal**2)
        off = diffusion.predict_clean(scheduler, noisy, output, timesteps) - clean
        loss = (off.float().square() / expected).mean()
    return loss, {"denoising": loss.detach()}


class TextConditioned(Objective):
    """Shared by the networks that read a prompt: the frozen autoencoder, CLIP text encoder and noise schedule."""

    def __init__(self, image_model: str, text_dropout: float) -> None:
        self.tokenizer, self.text_encoder = load_text(image_model)
        self.autoencoder = load_component(AutoencoderKL, image_model, "vae")
        self.scheduler = load_scheduler(image_model)
        self.text_dropout = text_dropout

    def text(self, captions: list[str], generators: list[torch.Generator]) -> Tensor:
        """Token states (B, L, D); a share `text_dropout` of captions is emptied, for guidance."""
        dropped = chance(generators, self.text_dropout, torch.device("cpu")).tolist()
        prompts = ["" if empty else caption for empty, caption in zip(dropped, captions, strict=True)]
        return encode_text(self.tokenizer, self.text_encoder, prompts)


class TextToImageObjective(TextConditioned):
    """Stable Diffusion's own objective on single frames (section 3.1; only mini trains it)."""

    def __init__(self, options: TextToImageOptions) -> None:
        super().__init__(options.image_model, options.text_dropout)
        self.options = options

    def build(self, network: Mapping[str, Any]) -> nn.Module:
        built = make(UNet2DConditionModel, network)
        if self.options.initial is not None:
            initialize_from(built, load_network(UNet2DConditionModel, self.options.initial).state_dict())
        return built

    def loss(
        self, network: nn.Module, clips: ClipBatch, generators: list[torch.Generator], step: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        text = self.text(clips.captions, generators)
        latents = encode_frames(self.autoencoder, clips.frames[:, 0])
        return denoising_loss(
            self.scheduler,
            lambda x, t: network(x, t, text).sample,
            latents,
            generators,
            high_noise=self.options.high_noise,
        )

    @torch.no_grad()
    def preview(self, network: nn.Module, clips: ClipBatch, generators: list[torch.Generator]) -> Tensor:
        text = encode_text(self.tokenizer, self.text_encoder, [""] * len(clips) + clips.captions)
        latents = encode_frames(self.autoencoder, clips.frames[:, 0])
        noise = diffusion.randn(tuple(latents.shape), generators, latents)

        def predict(noisy: Tensor, timestep: Tensor, rows: slice) -> Tensor:
            return network(noisy, timestep, text[rows]).sample

        guided = diffusion.guided(predict, PREVIEW_GUIDANCE, self.scheduler.config.num_train_timesteps)
        return decode_frames(self.autoencoder, diffusion.sample(guided, noise, self.scheduler, PREVIEW_STEPS)[:, None])


class VideoDiffusionObjective(TextConditioned):
    """One network of the cascade (section 3.2): reference = the clip's first frame; the later two also see low resolution."""

    def __init__(self, options: VideoDiffusionOptions) -> None:
        super().__init__(options.image_model, options.text_dropout)
        self.options = options
        self.below = None if options.below is None else frozen(load_network(VideoUNet, options.below))

    def build(self, network: Mapping[str, Any]) -> nn.Module:
        built = make(VideoUNet, network)
        self.network = built.config
        condition_channels, channels = built.config.condition_channels, built.config.in_channels
        if condition_channels not in (0, channels, 2 * channels):
            raise UserError(
                f"network.condition_channels is {condition_channels}: the base network sees no condition (0), super-"
                f"resolution the low resolution ({channels}) or also what the reference adds to it ({2 * channels})"
            )
        self.super_resolution, self.shared_noise = condition_channels > 0, built.config.shared_noise
        self.known_error = built.config.condition_error
        if self.options.relative_error and self.known_error is None:
            raise UserError("options.relative_error counts from network.condition_error: set it, or leave the option out")
        if self.below is not None and not (self.super_resolution and self.below.config.condition_channels):
            raise UserError("options.below is for super-resolution, and names the super-resolution network one level below")
        if self.options.initial is None:
            start = load_component(UNet2DConditionModel, self.options.image_model, "unet")
        else:
            start = load_network(network_class(self.options.initial), self.options.initial)
        self.new = frozenset(initialize_from(built, start.state_dict()).new)
        if built.config.condition_error is not None and start.config.get("condition_error") is None:
            built.count_from_condition()
        return built

    def learning_rate_factor(self, name: str) -> float:
        return self.options.temporal_factor if is_new_in_video(name) or name in self.new else 1.0

    def latents(
        self, clips: ClipBatch, dropped: Tensor, generators: list[torch.Generator]
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """(clean latents, low-resolution latents or None), both (B, F, C, h, w), and between them the reference (B, C, h, w),
        zeros where it is dropped (B,) bool."""
        height, width = (side // self.options.downscale for side in clips.frames.shape[-2:])
        shown = ~dropped[:, None, None, None]
        clean = encode_frames(self.autoencoder, resize_frames(clips.frames, (height, width)))
        low = None
        if self.super_resolution:
            half, quarter = (resize_frames(clips.frames, (height // by, width // by)) for by in (2, 4))
            low = encode_frames(self.autoencoder, half)
            if self.below is not None:
                lowest = encode_frames(self.autoencoder, quarter)
                text = encode_text(self.tokenizer, self.text_encoder, clips.captions)
                low = super_resolve(
                    self.below, self.scheduler, text, low[:, 0] * shown, lowest, clips.fps, generators, num_steps=1
                )
        return clean, clean[:, 0] * shown, low

    def condition(self, latents: Tensor, low: Tensor | None, reference: Tensor) -> Tensor | None:
        """What super-resolution sees with every frame, (B, F, condition_channels, h, w); latents: only their shape counts."""
        return None if low is None else super_resolution_condition(self.network, low, reference, latents.shape[-2:])

    def predict(self, network: nn.Module, reference: Tensor, condition: Tensor | None, **conditions: Any) -> diffusion.Predict:
        """The network under its conditions, as sampling calls it."""

        def predict(noisy: Tensor, timestep: Tensor) -> Tensor:
            return network(noisy, timestep, reference=reference, condition=condition, **conditions)

        if condition is None:
            return predict
        known = condition[:, :, -self.network["in_channels"] :]
        return diffusion.counted_from(predict, self.scheduler, known, self.network["condition_error"])

    @torch.no_grad()
    def ready(self, clips: ClipBatch, generators: list[torch.Generator]) -> ReadyBatch:
        dropped = chance(generators, self.options.reference_dropout, clips.frames.device)
        latents, reference, low = self.latents(clips, dropped, generators)
        if low is not None:
            level = torch.stack([torch.rand((), generator=generator) for generator in generators]).to(latents)
            noise = diffusion.randn(tuple(low.shape), generators, low)
            low = low + self.options.condition_noise * level[:, None, None, None, None] * noise
        parts = {"latents": latents, "reference": reference, "fps": clips.fps}
        condition = self.condition(latents, low, reference)
        return ReadyBatch(parts if condition is None else {**parts, "condition": condition}, clips.captions)

    def ready_loss(
        self, network: nn.Module, ready: ReadyBatch, generators: list[torch.Generator], step: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        latents, reference, condition = ready.parts["latents"], ready.parts["reference"], ready.parts.get("condition")
        side = self.options.crop
        if side is not None:
            where = anywhere if self.options.crop_anywhere else changing_places
            corners = where(latents, side, generators)
            latents, reference = crop(latents, corners, side), crop(reference, corners, side)
            condition = None if condition is None else crop(condition, corners, side)
        text = self.text(ready.captions, generators)
        predict = self.predict(network, reference, condition, fps=ready.parts["fps"], text=text)
        return denoising_loss(
            self.scheduler,
            predict,
            latents,
            generators,
            self.shared_noise,
            self.options.high_noise,
            known_error=self.known_error if self.options.relative_error else None,
        )

    def loss(
        self, network: nn.Module, clips: ClipBatch, generators: list[torch.Generator], step: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        return self.ready_loss(network, self.ready(clips, generators), generators, step)

    @torch.no_grad()
    def preview(self, network: nn.Module, clips: ClipBatch, generators: list[torch.Generator]) -> Tensor:
        text = encode_text(self.tokenizer, self.text_encoder, clips.captions)
        dropped = torch.zeros(len(clips), dtype=torch.bool, device=text.device)
        latents, reference, low = self.latents(clips, dropped, generators)
        noise = diffusion.video_noise(tuple(latents.shape), generators, self.shared_noise, latents)
        predict = self.predict(network, reference, self.condition(latents, low, reference), fps=clips.fps, text=text)
        return decode_frames(self.autoencoder, diffusion.sample(predict, noise, self.scheduler, PREVIEW_STEPS))


def anywhere(latents: Tensor, side: int, generators: list[torch.Generator]) -> list[tuple[int, int]]:
    """(top, left) of a square of latents (B, F, C, h, w) in each clip. Raises UserError where they are smaller."""
    height, width = _check_side(latents, side)
    corners = []
    for generator in generators:
        top, left = (int(torch.randint(length - side + 1, (), generator=generator)) for length in (height, width))
        corners.append((top, left))
    return corners


def changing_places(latents: Tensor, side: int, generators: list[torch.Generator]) -> list[tuple[int, int]]:
    """`anywhere`, but about a place drawn by how much it changes (ours).

    In whole frames most of a loss is about what is easy; what moves is small, and takes as long to learn (docs/log.md).
    """
    height, width = _check_side(latents, side)
    change = (latents - latents[:, :1]).square().mean(dim=(1, 2)).flatten(1).square() + 1e-6
    corners = []
    for weights, generator in zip(change.cpu(), generators, strict=True):
        row, column = divmod(int(torch.multinomial(weights, 1, generator=generator)), width)
        corners.append((min(max(row - side // 2, 0), height - side), min(max(column - side // 2, 0), width - side)))
    return corners


def _check_side(latents: Tensor, side: int) -> tuple[int, int]:
    height, width = latents.shape[-2:]
    if not 1 <= side <= min(height, width):
        raise UserError(f"options.crop is {side} but the latents are {width}x{height}: it must be 1 to {min(height, width)}")
    return height, width


def crop(latents: Tensor, corners: list[tuple[int, int]], side: int) -> Tensor:
    """The square of each clip's latents (B, ..., h, w) that begins at its corner: (B, ..., side, side)."""
    return torch.stack(
        [each[..., top : top + side, left : left + side] for each, (top, left) in zip(latents, corners, strict=True)]
    )


class RefinerObjective(Objective):
    """Refine the warped middle frames (section 3.3): unlabelled clips of 2K + 1 frames, every second one is to be found."""

    def __init__(self, options: RefinerOptions) -> None:
        self.autoencoder = load_component(AutoencoderKL, options.image_model, "vae")
        self.scheduler = load_scheduler(options.image_model)
        self.latent_flow = frozen(load_network(IFRNet, options.latent_flow))

    def build(self, network: Mapping[str, Any]) -> nn.Module:
        built = make(VideoUNet, network)
        self.condition_error = built.config.condition_error
        return built

    def frames(self, clips: ClipBatch) -> tuple[Tensor, Tensor, Tensor]:
        """(given latents (B, K+1, ...), true new latents (B, K, ...), warped new latents (B, K, ...))."""
        length = clips.frames.shape[1]
        if length < 3 or length % 2 == 0:
            raise UserError(f"the refiner learns from 3, 5, 7 ... frames, not {length}: set data.num_frames")
        latents = encode_frames(self.autoencoder, clips.frames)
        given = latents[:, 0::2]
        with torch.no_grad():
            return given, latents[:, 1::2], tsr.middle_frames(self.latent_flow, given)

    def loss(
        self, network: nn.Module, clips: ClipBatch, generators: list[torch.Generator], step: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        given, new, coarse = self.frames(clips)
        condition = tsr.refiner_condition(coarse, given[:, :-1], given[:, 1:])
        loss, scalars = denoising_loss(
            self.scheduler,
            diffusion.counted_from(
                lambda x, t: network(x, t, fps=clips.fps, condition=condition), self.scheduler, coarse, self.condition_error
            ),
            new,
            generators,
            strength=tsr.STRENGTH,
        )
        return loss, {**scalars, "coarse": F.mse_loss(coarse, new)}

    @torch.no_grad()
    def preview(self, network: nn.Module, clips: ClipBatch, generators: list[torch.Generator]) -> Tensor:
        given = encode_frames(self.autoencoder, clips.frames[:, 0::2])
        latents = tsr.upsample_time(
            given,
            middle=lambda frames: tsr.middle_frames(self.latent_flow, frames),
            refiner=typing.cast(VideoUNet, network),
            scheduler=self.scheduler,
            fps=clips.fps,
            generators=generators,
        )
        return decode_frames(self.autoencoder, latents)
