"""Reconstruction objectives: mini's image autoencoder, and the video decoder of section 3.4, with the same losses."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor, nn
from torch.func import functional_call

from videogen import diffusion
from videogen.config import AutoencoderOptions, ReconstructionOptions, VideoDecoderOptions
from videogen.data.clips import ClipBatch
from videogen.data.degradation import degrade
from videogen.models.initialization import decoder_tensors, initialize_as_resampler, initialize_from
from videogen.models.lpips import load_lpips
from videogen.models.pretrained import load_component
from videogen.models.video_decoder import VideoDecoder
from videogen.stages.conditions import encode_frames
from videogen.training.objectives.base import Objective, chance, make


class PatchDiscriminator(nn.Sequential):
    """PatchGAN (Isola et al. 2017): images (N, 3, H, W) -> logits (N, 1, H/8, W/8), one for each overlapping patch."""

    def __init__(self, width: int = 32) -> None:
        layers: list[nn.Module] = [nn.Conv2d(3, width, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        for level in range(2):
            a, b = width << level, width << (level + 1)
            layers += [nn.Conv2d(a, b, 4, stride=2, padding=1), nn.GroupNorm(8, b), nn.LeakyReLU(0.2)]
        super().__init__(*layers, nn.Conv2d(width << 2, 1, 3, padding=1))


def edges(images: Tensor) -> tuple[Tensor, Tensor]:
    """Differences of horizontal and of vertical neighbours of (N, C, H, W)."""
    return images[..., :, 1:] - images[..., :, :-1], images[..., 1:, :] - images[..., :-1, :]


class ReconstructionObjective(Objective):
    """L1 + edges + LPIPS + patch GAN (hinge) between made and true images; the discriminator learns from the same scalar."""

    def __init__(self, options: ReconstructionOptions) -> None:
        self.losses = options
        self.perceptual = None if options.lpips is None else load_lpips(options.lpips)
        self.companion = PatchDiscriminator() if options.adversarial_weight > 0 else None

    def reconstruction(self, made: Tensor, true: Tensor, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss between images (N, 3, H, W) in [-1, 1]."""
        absolute = F.l1_loss(made, true)
        edge = sum(F.l1_loss(a, b) for a, b in zip(edges(made), edges(true), strict=True))
        loss = absolute + self.losses.edge_weight * edge
        mse = F.mse_loss(made.detach().clamp(-1, 1), true)
        scalars = {"l1": absolute.detach(), "psnr": 10 * torch.log10(4 / mse)}
        if self.perceptual is not None:
            perceptual = self.perceptual(made, true).mean()
            loss = loss + self.losses.lpips_weight * perceptual
            scalars["lpips"] = perceptual.detach()
        if self.companion is not None:
            fool, teach = self._adversarial(made, true)
            weight = self.losses.adversarial_weight if step >= self.losses.adversarial_start else 0.0
            loss = loss + weight * fool + teach
            scalars |= {"fool": fool.detach(), "teach": teach.detach()}
        return loss, scalars

    def _adversarial(self, made: Tensor, true: Tensor) -> tuple[Tensor, Tensor]:
        """(what the generator minimises, what the discriminator minimises): each sends gradients to its own side only."""
        discriminator = self.companion
        assert discriminator is not None
        still = {name: parameter.detach() for name, parameter in discriminator.named_parameters()}
        fool = -functional_call(discriminator, still, (made,)).mean()
        teach = F.relu(1 - discriminator(true)).mean() + F.relu(1 + discriminator(made.detach())).mean()
        return fool, teach / 2


class AutoencoderObjective(ReconstructionObjective):
    """Mini's AutoencoderKL on frames, with a small KL term (Rombach et al. 2022).

    With `equivariance`, latents that are shifted by part of a latent, or shrunk, must decode to the image shifted or shrunk
    (EQ-VAE, Kouzelis et al. 2025), as the cascade's enlarging and the flow's warping of latents suppose (docs/log.md).
    """

    def __init__(self, options: AutoencoderOptions) -> None:
        super().__init__(options)
        self.kl_weight, self.equivariance = options.kl_weight, options.equivariance

    def build(self, network: Mapping[str, Any]) -> nn.Module:
        built = make(AutoencoderKL, network)
        initialize_as_resampler(built)
        return built

    def loss(
        self, network: nn.Module, clips: ClipBatch, generators: list[torch.Generator], step: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        images = clips.frames.flatten(0, 1)
        posterior = network.encode(images).latent_dist  # type: ignore[operator]
        noise = diffusion.randn((*clips.frames.shape[:2], *posterior.mean.shape[1:]), generators, images).flatten(0, 1)
        latents = posterior.mean + posterior.std * noise
        made = network.decode(latents).sample  # type: ignore[operator]
        loss, scalars = self.reconstruction(made, images, step)
        divergence = posterior.kl().mean()
        loss, scalars["kl"] = loss + self.kl_weight * divergence, divergence.detach()
        if self.equivariance > 0:
            changed, true = shrunk(latents, images) if step % 2 else shifted(latents, images, generators)
            made = network.decode(changed).sample  # type: ignore[operator]
            reconstruction, seen = self.reconstruction(made, true, step)
            loss, scalars["changed"] = loss + self.equivariance * reconstruction, seen["l1"]
        return loss, scalars

    @torch.no_grad()
    def preview(self, network: nn.Module, clips: ClipBatch, generators: list[torch.Generator]) -> Tensor:
        images = clips.frames[:, 0]
        made = network.decode(network.encode(images).latent_dist.mode()).sample  # type: ignore[operator]
        return torch.stack([images, made], dim=1)

    @torch.no_grad()
    def finish(self, network: nn.Module, clips: ClipBatch) -> None:
        """Set `scaling_factor` so that latents have unit variance (Rombach et al. 2022, section G)."""
        spread = network.encode(clips.frames.flatten(0, 1)).latent_dist.mode().std()  # type: ignore[operator]
        network.register_to_config(scaling_factor=round(1 / spread.item(), 5))  # type: ignore[operator]


def shrunk(latents: Tensor, images: Tensor) -> tuple[Tensor, Tensor]:
    """Latents (N, C, h, w) and images (N, 3, H, W), both at half the size, by means of 2x2."""
    return F.avg_pool2d(latents, 2), F.avg_pool2d(images, 2)


def shifted(latents: Tensor, images: Tensor, generators: list[torch.Generator]) -> tuple[Tensor, Tensor]:
    """Both cut at the same place, a part of a latent from the edge; the latents (N, C, h, w) are interpolated linearly.

    The place is drawn for each clip, in whole pixels; its frames follow each other in `latents` and `images` (N, 3, H, W).
    Returns (N, C, h-1, w-1) and (N, 3, H-f, W-f), f pixels a latent.
    """
    count, (rows, columns) = len(latents) // len(generators), latents.shape[-2:]
    factor = images.shape[-1] // columns
    height, width = (rows - 1) * factor, (columns - 1) * factor
    cut, seen = [], []
    for z, x, generator in zip(latents.split(count), images.split(count), generators, strict=True):
        down, right = torch.randint(factor, (2,), generator=generator).tolist()
        z = torch.lerp(z[..., :-1, :], z[..., 1:, :], down / factor)
        cut.append(torch.lerp(z[..., :-1], z[..., 1:], right / factor))
        seen.append(x[..., down : down + height, right : right + width])
    return torch.cat(cut), torch.cat(seen)


class VideoDecoderObjective(ReconstructionObjective):
    """Encoder latents of degraded clips -> the clean clips (section 3.4), started from the frozen image decoder.

    What changes from frame to frame counts too (ours, `flicker_weight`): L1 of the differences of neighbours in time.
    """

    def __init__(self, options: VideoDecoderOptions) -> None:
        super().__init__(options)
        self.options = options
        self.autoencoder = load_component(AutoencoderKL, options.image_model, "vae")

    def build(self, network: Mapping[str, Any]) -> nn.Module:
        config = self.autoencoder.config
        shared = ("latent_channels", "block_out_channels", "layers_per_block", "norm_num_groups", "mid_block_add_attention")
        given = {name: config[name] for name in (*shared, "scaling_factor")}
        built = make(VideoDecoder, {**given, **network})
        initialize_from(built, decoder_tensors(self.autoencoder.state_dict()))
        return built

    def latents(self, clips: ClipBatch, generators: list[torch.Generator]) -> Tensor:
        """Latents of the clips, degraded but for a share `clean` of them."""
        clean = chance(generators, self.options.clean, torch.device("cpu")).tolist()
        strengths = [0.0 if keep else self.options.degradation for keep in clean]
        frames = zip(clips.frames, generators, strengths, strict=True)
        degraded = torch.stack([degrade(clip, generator, strength) for clip, generator, strength in frames])
        return encode_frames(self.autoencoder, degraded)

    def loss(
        self, network: nn.Module, clips: ClipBatch, generators: list[torch.Generator], step: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        made = network(self.latents(clips, generators))
        loss, scalars = self.reconstruction(made.flatten(0, 1), clips.frames.flatten(0, 1), step)
        changes = made.diff(dim=1) - clips.frames.diff(dim=1)
        flicker = changes.abs().sum() / max(1, changes.numel())  # a single frame has none
        return loss + self.options.flicker_weight * flicker, {**scalars, "flicker": flicker.detach()}

    @torch.no_grad()
    def preview(self, network: nn.Module, clips: ClipBatch, generators: list[torch.Generator]) -> Tensor:
        return network(self.latents(clips, generators))
