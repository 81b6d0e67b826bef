"""What the whole cascade would make of a perfect base network, by what the checker of `evaluate diorama` reads in it.

The true held-out clip, shrunk to the base's size, goes through what comes after the base: both super-resolution networks and
the video decoder. Above it what bounds that: the shrunk clip enlarged as it is, and the same after the autoencoder at the
base's size, which is all that a base network can say.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from measuring import Row, parser, report
from torch import Tensor

from videogen.data.clips import collate
from videogen.data.diorama import Diorama, Labels
from videogen.evaluation.diorama_checker import ATTRIBUTES, agreement, check
from videogen.pipeline import VideoGenPipeline, to_uint8
from videogen.stages.cascade import reference_latents, super_resolve
from videogen.stages.conditions import decode_frames, encode_frames, resize_frames
from videogen.stages.decoding import decode_video

FRAMES, SEED = 16, 4


def rates(videos: np.ndarray, labels: list[Labels], fps: float) -> Row:
    """Share of videos of which the checker reads each attribute rightly; speed only of what moves."""
    found = [agreement(check(video, fps), wanted) for video, wanted in zip(videos, labels, strict=True)]
    return {name: float(np.mean([each[name] for each in found if name in each])) for name in ATTRIBUTES}


def enlarged(frames: Tensor, side: int) -> Tensor:
    """Frames (F, 3, h, w) at side x side, bicubic."""
    return F.interpolate(frames, size=(side, side), mode="bicubic").clamp(-1, 1)


@torch.no_grad()
def versions(
    pipe: VideoGenPipeline, clip: Tensor, caption: str, fps: float, seed: int, steps: list[tuple[int, int]]
) -> dict[str, Tensor]:
    """One clip (F, 3, H, W) in [-1, 1] as each row of the table has it. steps: of the super-resolution networks."""
    side, small = clip.shape[-1], pipe.base.config.sample_size * pipe.vae_factor
    shrunk = resize_frames(clip[None], (small, small))
    low = encode_frames(pipe.vae, shrunk)
    text, _ = pipe.encode_prompt([caption], [""])
    references = reference_latents(pipe.vae, clip[:1], levels=3)
    made = {
        "true": clip,
        "all latents, video decoder": decode_video(pipe.video_decoder, encode_frames(pipe.vae, clip[None]))[0],
        f"{small} pixels, enlarged": enlarged(shrunk[0], side),
        f"{small} pixels, autoencoder, enlarged": enlarged(decode_frames(pipe.vae, low[0]), side),
    }
    networks = (pipe.super_resolution_1, pipe.super_resolution_2)
    for counts in steps:
        latents, generators, rate = low, [torch.Generator().manual_seed(seed)], torch.full((1,), fps)
        for network, reference, count in zip(networks, references[1:], counts, strict=True):
            latents = super_resolve(network, pipe.scheduler, text, reference, latents, rate, generators, num_steps=count)
        name = f"{small} pixels, super-resolution, {counts[0]} and {counts[1]} steps"
        made[name] = decode_video(pipe.video_decoder, latents)[0]
    return made


def main() -> None:
    arguments = parser(__doc__, repeats=1)
    arguments.add_argument("--model", default="mini", help="a pipeline folder, a hub id or mini (default)")
    arguments.add_argument("--count", type=int, default=16, help="held-out clips (default 16)")
    arguments.add_argument("--steps", type=int, nargs="*", help="of super-resolution (default: the model's)")
    options = arguments.parse_args()
    pipe = VideoGenPipeline.from_pretrained(options.model)
    own = pipe.own_steps["super_resolution_1"], pipe.own_steps["super_resolution_2"]
    fps, steps = pipe.config.base_fps, [(count, count) for count in options.steps or []] or [own]
    world = Diorama(pipe.size[0], FRAMES, (fps,), seed=SEED, split="held_out")
    labels = [world.labels(index) for index in range(options.count)]
    videos: dict[str, list[np.ndarray]] = {}
    for index, wanted in enumerate(labels):
        clip = collate([world.render(wanted, index)])
        for name, frames in versions(pipe, clip.frames[0], clip.captions[0], fps, index, steps).items():
            videos.setdefault(name, []).append(to_uint8(frames))
    report([{"clips": name} | rates(np.stack(each), labels, fps) for name, each in videos.items()], options)


if __name__ == "__main__":
    main()
