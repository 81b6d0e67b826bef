"""Temporal super-resolution (3.3) and the video decoder (3.4) on a stream of real frames, of any size and length.

One code path: frames -> latents -> passes of temporal super-resolution (none: enhance) -> video decoder -> frames. Frames are
taken in blocks of a shot that see a few frames more on each side, and noise belongs to a frame's place in the video. So what is
in memory is bounded, and where blocks begin hardly shows.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor

from videogen.config import UserError
from videogen.data.cuts import CutDetector
from videogen.data.loader import derive_seed
from videogen.models.ifrnet import IFRNet, Interpolation, backward_warp, enlarge_flow
from videogen.models.pretrained import COMPONENTS, load_components, pipeline_folder
from videogen.models.unet import VideoUNet
from videogen.models.video_decoder import VideoDecoder
from videogen.pipeline import DEFAULT_STEPS
from videogen.restoration.source import Frame
from videogen.stages import temporal_super_resolution as tsr
from videogen.stages.conditions import encode_frames
from videogen.stages.decoding import OVERLAP, decoded_windows
from videogen.stages.tiling import tiled

MAX_FACTOR = 8
TILE = 512  # pixels


@dataclass(frozen=True)
class Output:
    """A frame of the result. pixels: RGB (H, W, 3) of the source's type; pts, duration: in the source's time base / factor."""

    pixels: np.ndarray
    pts: int
    duration: int


@dataclass(frozen=True)
class Restorer:
    """The networks that real video passes, and how they are applied.

    latent_flow, refiner, scheduler: of temporal super-resolution; without a refiner the warped latents stay as they are. seed:
    of the refiner's noise. tile: pixels along a side above which space is cut into tiles. window: frames of a block.
    """

    vae: AutoencoderKL
    video_decoder: VideoDecoder
    latent_flow: IFRNet | None = None
    refiner: VideoUNet | None = None
    scheduler: Any = None
    num_steps: int = DEFAULT_STEPS["refiner"]
    seed: int = 0
    tile: int = TILE
    window: int = 16

    @classmethod
    def from_pretrained(
        cls, model: str | Path, *, interpolates: bool = True, dtype: torch.dtype = torch.float32, **options: Any
    ) -> Restorer:
        """The parts of a pipeline folder, a hub id or "mini" that are needed. options: `seed`, `tile`, ... Raises UserError."""
        folder = pipeline_folder(str(model))
        index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
        names = {"vae", "video_decoder"} | ({"latent_flow", "refiner", "scheduler"} if interpolates else set())
        loaded = load_components(folder, index, dtype, given=dict.fromkeys(COMPONENTS.keys() - names))
        if interpolates and loaded["latent_flow"] is None:
            raise UserError(f"{folder} has no latent_flow: train it and assemble again")
        return cls(**{name: loaded[name] for name in names}, **options)

    def to(self, device: torch.device | str) -> Restorer:
        """The same, with its networks moved."""
        for network in (self.vae, self.video_decoder, self.latent_flow, self.refiner):
            if network is not None:
                network.to(device)
        return self

    @property
    def unit(self) -> int:
        """Pixels a latent, along each side."""
        return 2 ** (len(self.vae.config.block_out_channels) - 1)

    def enhance(self, frames: Iterable[Frame]) -> Iterator[Output]:
        """Every frame through encoder and video decoder (section 3.4)."""
        return self._run(frames, 1, 1.0, 0)

    def interpolate(self, frames: Iterable[Frame], factor: int, *, fps: float, max_gap: int) -> Iterator[Output]:
        """factor (2, 4 or 8) frames for each: itself, and new ones evenly on the way to the next (section 3.3).

        Nothing is put between frames across a scene cut, across more than `max_gap` ticks, or after the last frame: there the
        frame is repeated, so the rate stays what it should be. fps: about that of `frames`. Given frames come out bit for bit;
        new ones get back, along the flow, what the autoencoder lost of their neighbours.
        """
        if tsr.num_passes(factor) not in (1, 2, 3):
            raise UserError(f"the factor must be 2, 4 or 8, not {factor}")
        return self._run(frames, factor, fps, max_gap)

    def _run(self, frames: Iterable[Frame], factor: int, fps: float, max_gap: int) -> Iterator[Output]:
        shots = _shots(frames, max_gap) if factor > 1 else _shots(frames, None)
        for _, shot in itertools.groupby(shots, key=lambda pair: pair[0]):
            for block in self._blocks((frame for _, frame in shot), factor):
                yield from self._restore(block, factor, fps)

    def _blocks(self, shot: Iterator[Frame], factor: int) -> Iterator[Block]:
        """Frames of one shot in blocks of `window`, each with its neighbours on both sides."""
        context = max(2, -(-OVERLAP // factor))
        held: list[Encoded] = []
        begin, ended = 0, False  # index in `held` of the first frame to put out
        while not ended:
            while len(held) < begin + self.window + 1 + context and not ended:
                frame = next(shot, None)
                ended = frame is None
                if frame is not None:
                    held.append(Encoded(frame, self._encode(frame.pixels)))
            while begin < len(held) and (ended or len(held) >= begin + self.window + 1 + context):
                end = min(begin + self.window, len(held))
                yield Block(held[: end + 1 + context], begin, end)
                cut = max(0, end - context)
                held, begin = held[cut:], end - cut

    @torch.no_grad()
    def _restore(self, block: Block, factor: int, fps: float) -> Iterator[Output]:
        latents = torch.stack([each.latents for each in block.frames])[None]
        details = Details(factor)
        grid = self._upsample(latents, block, factor, fps, details)
        stop = min(block.end * factor + 1, grid.shape[1]) if factor > 1 else block.end
        windows = decoded_windows(
            self.video_decoder, grid, frames=range(block.begin * factor, stop), tile=self.tile // self.unit
        )
        first = block.frames[0].frame.pixels
        decoded = (frame[:, : first.shape[0], : first.shape[1]] for window in windows for frame in window[0])
        if factor == 1:
            for each, picture in zip(block.frames[block.begin : block.end], decoded, strict=True):
                yield Output(to_pixels(picture, first), each.frame.pts, each.frame.duration)
            return
        yield from self._with_details(block, decoded, details, factor)

    def _with_details(self, block: Block, decoded: Iterator[Tensor], details: Details, factor: int) -> Iterator[Output]:
        """New frames get back what the autoencoder lost; given frames are what they were."""
        start = next(decoded)
        for place in range(block.begin, block.end):
            frame = block.frames[place].frame
            new: list[np.ndarray] = [frame.pixels] * (factor - 1)  # held where nothing follows
            if place + 1 < len(block.frames):
                between = list(itertools.islice(decoded, factor - 1))
                end = next(decoded)
                lost = [
                    self._to_tensor(each.frame.pixels)[0] - picture
                    for each, picture in zip(block.frames[place : place + 2], (start, end), strict=True)
                ]
                found = details.between(place * factor, (place + 1) * factor, lost[0], lost[1], self.unit)
                new = [to_pixels(a + b, frame.pixels) for a, b in zip(between, found, strict=True)]
                start = end
            for index, pixels in enumerate([frame.pixels, *new]):
                times = [factor * frame.pts + frame.duration * each for each in (index, index + 1)]
                yield Output(pixels, times[0], times[1] - times[0])

    def _upsample(self, latents: Tensor, block: Block, factor: int, fps: float, details: Details) -> Tensor:
        """(1, N, C, h, w) -> (1, factor * (N - 1) + 1, C, h, w), by passes that double; flows are noted in `details`."""
        first = block.frames[0].frame.index * MAX_FACTOR
        for step in range(1, tsr.num_passes(factor) + 1):
            apart = MAX_FACTOR >> step  # in places of the finest grid, so that a frame keeps its noise at any factor
            places = range(first + apart, first + apart + 2 * apart * (latents.shape[1] - 1), 2 * apart)
            latents = tsr.upsample_time(
                latents,
                middle=lambda given, step=step: self._middle(given, factor >> step, details),  # type: ignore[misc]
                refiner=self.refiner,
                call=self._refine,
                scheduler=self.scheduler,
                fps=torch.tensor([fps * 2**step], device=latents.device),
                generators=[torch.Generator().manual_seed(derive_seed("steps", self.seed, first, step))],
                num_steps=self.num_steps,
                window=self.window + 4,
                noise=self._noise(places, latents),
            )
        return latents

    def _noise(self, places: Iterable[int], like: Tensor) -> Tensor:
        seeds = [derive_seed("noise", self.seed, place) for place in places]
        noise = [torch.randn(like.shape[2:], generator=torch.Generator().manual_seed(seed)) for seed in seeds]
        return torch.stack(noise)[None].to(like) if noise else like[:, :0]

    def _middle(self, latents: Tensor, apart: int, details: Details) -> Tensor:
        """`tsr.middle_frames` pair by pair; what was found is noted by the place of the new frame in the block's grid."""
        assert self.latent_flow is not None
        found = []
        for index in range(latents.shape[1] - 1):
            between: Interpolation = self.latent_flow(latents[:, index], latents[:, index + 1])
            details.note((2 * index + 1) * apart, between)
            found.append(between.warped)
        return torch.stack(found, dim=1) if found else latents[:, :0]

    def _refine(self, noisy: Tensor, timestep: Tensor, *, fps: Tensor, condition: Tensor) -> Tensor:
        """The refiner in tiles."""
        assert self.refiner is not None
        refiner, channels = self.refiner, noisy.shape[2]

        def refine(part: Tensor) -> Tensor:
            return refiner(part[:, :, :channels], timestep, fps=fps, condition=part[:, :, channels:])

        both = torch.cat([noisy, condition], dim=2)
        tile = self.tile // self.unit
        return tiled(refiner, refine, both, tile=tile, overlap=tile // 4)

    def _encode(self, pixels: np.ndarray) -> Tensor:
        """(H, W, 3) -> latents (C, h, w), of the frame padded at its edge to whole latents."""
        frame = self._to_tensor(pixels)
        height, width = frame.shape[-2:]
        padded = F.pad(frame, (0, -width % self.unit, 0, -height % self.unit), mode="replicate")

        def encode(part: Tensor) -> Tensor:
            return encode_frames(self.vae, part)

        return tiled(self.vae.encoder, encode, padded, tile=self.tile, overlap=self.tile // 8, unit=self.unit)[0]

    def _to_tensor(self, pixels: np.ndarray) -> Tensor:
        """(H, W, 3), uint8 or uint16 -> (1, 3, H, W) in [-1, 1]."""
        unit = torch.from_numpy(pixels.astype(np.float32)).to(self.vae.device, self.vae.dtype) / np.iinfo(pixels.dtype).max
        return (2 * unit - 1).movedim(-1, 0)[None]


@dataclass(frozen=True)
class Encoded:
    """A frame and its latents (C, h, w)."""

    frame: Frame
    latents: Tensor


@dataclass(frozen=True)
class Block:
    """Neighbouring frames of a shot; those from `begin` to `end` are put out, the others only seen."""

    frames: list[Encoded]
    begin: int
    end: int


@dataclass
class Details:
    """What the autoencoder loses of frames, moved along the latents' flow to the new frames (ours).

    Without it, given frames as they were and decoded ones would take turns in sharpness, which flickers; and decoding the given
    ones too would blur all of them. A new frame loses about what its neighbours lose.
    """

    factor: int
    flows: dict[int, Interpolation] = field(default_factory=dict)

    def note(self, place: int, found: Interpolation) -> None:
        """How the frame at `place` of the grid came about."""
        self.flows[place] = found

    def between(self, first: int, second: int, lost_first: Tensor, lost_second: Tensor, unit: int) -> list[Tensor]:
        """Details (3, H, W) of all new frames between two places of the grid, in order."""
        if second - first == 1:
            return []
        place = (first + second) // 2
        found, (height, width) = self.flows[place], lost_first.shape[-2:]
        flows = [enlarge_flow(flow, unit)[..., :height, :width] for flow in (found.flow_to_first, found.flow_to_second)]
        mask = F.interpolate(found.mask, scale_factor=unit, mode="bilinear")[..., :height, :width]
        moved = [backward_warp(lost[None], flow) for lost, flow in zip((lost_first, lost_second), flows, strict=True)]
        middle = (mask * moved[0] + (1 - mask) * moved[1])[0]
        before = self.between(first, place, lost_first, middle, unit)
        return [*before, middle, *self.between(place, second, middle, lost_second, unit)]


def to_pixels(picture: Tensor, like: np.ndarray) -> np.ndarray:
    """(3, H, W) in [-1, 1] -> (H, W, 3) of the type of `like`. Raises UserError on what is not finite."""
    unit = picture.float().add(1).div(2)
    if not unit.isfinite().all():
        raise UserError("the networks returned numbers that are not finite; try --dtype float32")
    return (unit.clamp(0, 1) * np.iinfo(like.dtype).max).round().movedim(0, -1).cpu().numpy().astype(like.dtype)


def _shots(frames: Iterable[Frame], max_gap: int | None) -> Iterator[tuple[int, Frame]]:
    """(number of its shot, frame). max_gap: ticks to the frame before, above which a new one begins; None: however long."""
    detector, shot = CutDetector(), 0
    before: Frame | None = None
    for frame in frames:
        pixels = frame.pixels if frame.pixels.dtype == np.uint8 else (frame.pixels >> 8).astype(np.uint8)
        late = before is not None and max_gap is not None and frame.pts - before.pts > max_gap
        shot += bool(detector(pixels)) or late
        before = frame
        yield shot, frame
