"""What the base network alone makes of true first frames, by what mini's video classifier reads in it.

Held-out scenes without weather and camera, as many of each motion; the reference is the true clip's first frame, and neither
super-resolution nor text-to-image has a part in it. The classifier, unlike the checker of `evaluate diorama`, gives something
for half a motion. Above: the true clips, and the same through the autoencoder at the base's size, which is as well as a base
network can do. The classifier is a run of the recipe `mini/video_classifier`.
"""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path

import torch
from measuring import Row, parser, report
from torch import Tensor

from videogen.config import Guidance
from videogen.data.clips import Clip, collate
from videogen.data.diorama import ATTRIBUTES, MOTIONS, Diorama
from videogen.models.pretrained import load_network
from videogen.models.video_classifier import VideoClassifier
from videogen.pipeline import VideoGenPipeline
from videogen.stages.cascade import generate_base
from videogen.stages.conditions import decode_frames, encode_frames, resize_frames

SIDE, FRAMES, BATCH = 64, 16, 10  # of the classifier's clips; clips sampled at once
READ = ("colour", "shape", "motion", "speed", "place", "time")


def scenes(count: int, fps: float) -> list[Clip]:
    """`count` held-out clips of each motion."""
    world = Diorama(SIDE, FRAMES, (fps,), seed=77, split="held_out")
    found: dict[str, list[Clip]] = {motion: [] for motion in MOTIONS}
    indices = itertools.count()
    while any(len(clips) < count for clips in found.values()):
        labels = world.labels(index := next(indices))
        if len(found[labels.motion]) < count:
            found[labels.motion].append(world.render(dataclasses.replace(labels, weather=None, camera=None), index))
    return [clip for clips in found.values() for clip in clips]


@torch.no_grad()
def read(judge: VideoClassifier, frames: Tensor, labels: Tensor) -> Row:
    """Share of clips (N, F, 3, H, W) in [-1, 1] of which the classifier reads an attribute rightly."""
    clips = resize_frames(frames, (SIDE, SIDE)).split(BATCH)
    scores = [judge.classify(judge(clip)) for clip in clips]
    rows = {name: torch.cat([score[name].argmax(1) for score in scores]) for name in READ}
    return {name: float((rows[name] == labels[:, list(ATTRIBUTES).index(name)]).float().mean()) for name in READ}


def main() -> None:
    arguments = parser(__doc__, repeats=1)
    arguments.add_argument("--model", default="mini", help="a pipeline folder, a hub id or mini (default)")
    arguments.add_argument("--judge", type=Path, default=Path("runs/mini/video_classifier"), help="run of the classifier")
    arguments.add_argument("--count", type=int, default=6, help="clips of each motion (default 6)")
    arguments.add_argument("--guidance-scale", type=float, nargs="+", default=[2.0], metavar="X")
    arguments.add_argument("--eta", type=float, nargs="+", default=[0.0, 0.9], metavar="X")
    arguments.add_argument("--steps", type=int, help="of the base (default: the model's)")
    options = arguments.parse_args()
    pipe = VideoGenPipeline.from_pretrained(options.model)
    judge = load_network(VideoClassifier, options.judge / "network").eval()
    clips = collate(scenes(options.count, pipe.config.base_fps))
    assert clips.labels is not None
    side = pipe.base.config.sample_size * pipe.vae_factor
    latents = torch.cat([encode_frames(pipe.vae, resize_frames(part, (side, side))) for part in clips.frames.split(BATCH)])

    rows = [{"clips": "true"} | read(judge, clips.frames, clips.labels)]
    rows.append({"clips": f"true, {side} pixels"} | read(judge, decode_frames(pipe.vae, latents).clamp(-1, 1), clips.labels))
    texts = pipe.encode_prompt(clips.captions, [""] * len(clips))
    for scale, eta in itertools.product(options.guidance_scale, options.eta):
        made = []
        for start in range(0, len(clips), BATCH):
            part = slice(start, start + BATCH)
            seeds = range(len(clips))[part]
            sample = generate_base(
                pipe.base,
                pipe.scheduler,
                torch.cat([texts[1][part], texts[0][part]]),
                latents[part, 0],
                tuple(latents[part].shape),
                clips.fps[part],
                [torch.Generator().manual_seed(seed) for seed in seeds],
                num_steps=options.steps or pipe.own_steps["base"],
                guidance=Guidance(scale, pipe.config.guidance_rescale),
                eta=eta,
            )
            made.append(decode_frames(pipe.vae, sample).clamp(-1, 1))
        rows.append({"clips": f"base, guidance {scale:g}, eta {eta:g}"} | read(judge, torch.cat(made), clips.labels))
    report(rows, options)


if __name__ == "__main__":
    main()
