"""The latent flow network's objective (section 3.3): find the middle latents, taught by pixel-space flow."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor, nn

from videogen.config import LatentFlowOptions, UserError
from videogen.data.clips import ClipBatch
from videogen.models.ifrnet import IFRNet, latent_flow_loss, shrink_flow
from videogen.models.initialization import initialize_from
from videogen.models.pretrained import frozen, load_component, load_network
from videogen.stages.conditions import decode_frames, encode_frames
from videogen.training.objectives.base import Objective, make


class LatentFlowObjective(Objective):
    """Clips of three frames. The flow that teaches is a pixel IFRNet's or the data's own, resized and scaled to latents."""

    def __init__(self, options: LatentFlowOptions) -> None:
        self.autoencoder = load_component(AutoencoderKL, options.image_model, "vae")
        self.teacher = None if options.teacher is None else frozen(load_network(IFRNet, options.teacher))
        self.initial = options.initial

    def build(self, network: Mapping[str, Any]) -> nn.Module:
        built = make(IFRNet, network)
        if self.initial is not None:
            initialize_from(built, load_network(IFRNet, self.initial).state_dict())
        return built

    def target_flow(self, clips: ClipBatch, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Flow from the middle frame to the first and to the last, in latent pixels, each (B, 2, h, w)."""
        if self.teacher is not None:
            with torch.no_grad():
                found = self.teacher((clips.frames[:, 0] + 1) / 2, (clips.frames[:, 2] + 1) / 2)
            flows = (found.flow_to_first, found.flow_to_second)
        elif clips.flow is not None:
            flows = (clips.flow[:, 1, 0], clips.flow[:, 1, 1])
        else:
            raise UserError("these clips carry no flow: set options.teacher to a pixel IFRNet, or data.flow with Diorama")
        return shrink_flow(flows[0], size), shrink_flow(flows[1], size)

    def loss(
        self, network: nn.Module, clips: ClipBatch, generators: list[torch.Generator], step: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        if clips.frames.shape[1] != 3:
            raise UserError(f"the latent flow network learns from 3 frames, not {clips.frames.shape[1]}: set data.num_frames")
        latents = encode_frames(self.autoencoder, clips.frames)
        target = self.target_flow(clips, (latents.shape[-2], latents.shape[-1]))
        found = network(latents[:, 0], latents[:, 2])
        loss = latent_flow_loss(found, latents[:, 1], *target)
        error = (found.flow_to_first - target[0]).square().sum(1).sqrt().mean()
        middle = F.mse_loss(found.warped, latents[:, 1])
        blend = F.mse_loss((latents[:, 0] + latents[:, 2]) / 2, latents[:, 1])
        return loss, {"end_point_error": error.detach(), "middle": middle.detach(), "blend": blend}

    @torch.no_grad()
    def preview(self, network: nn.Module, clips: ClipBatch, generators: list[torch.Generator]) -> Tensor:
        latents = encode_frames(self.autoencoder, clips.frames)
        middle = network(latents[:, 0], latents[:, 2]).warped
        frames = torch.stack([latents[:, 0], middle, latents[:, 2]], dim=1)
        return decode_frames(self.autoencoder, frames)
