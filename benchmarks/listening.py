"""Does the base network hear which motion it is told? A few minutes, long before any video shows it.

From pure noise and a true first frame, what the network takes the clean latents to be in its first step: squared error to the
true ones, over the second half of the frames, with the caption that is true, with one that tells another motion, and
with none; beside the error of the first frame repeated. A network that hears has far less error with the true one. One that
looks at the reference only has the same. Networks of different autoencoders do not compare by this: decode for that.
Scenes are of the held-out world, but each shows every motion.
"""

from __future__ import annotations

import dataclasses

import torch
from measuring import Row, parser, report
from torch import Tensor

from videogen import diffusion
from videogen.data.clips import collate
from videogen.data.diorama import OPPOSITES, Diorama, caption
from videogen.pipeline import VideoGenPipeline
from videogen.stages.conditions import encode_frames

FRAMES = 16


@torch.no_grad()
def first_guess(pipe: VideoGenPipeline, latents: Tensor, fps: Tensor, captions: list[str]) -> Tensor:
    """What one step from pure noise takes latents (B, F, C, h, w) to be; fps: (B,)."""
    generators = [torch.Generator().manual_seed(seed) for seed in range(len(captions))]
    timesteps = torch.full((len(captions),), pipe.scheduler.config.num_train_timesteps - 1)
    noise = diffusion.video_noise(tuple(latents.shape), generators, pipe.base.config.shared_noise, latents)
    noisy = diffusion.add_noise(pipe.scheduler, torch.zeros_like(latents), noise, timesteps)
    text = pipe.encode_prompt(captions, [""] * len(captions))[0]
    predicted = pipe.base(noisy, timesteps, fps=fps, text=text, reference=latents[:, 0])
    return diffusion.predict_clean(pipe.scheduler, noisy, predicted, timesteps)


def main() -> None:
    arguments = parser(__doc__, repeats=1)
    arguments.add_argument("--model", default="mini", help="a pipeline folder, a hub id or mini (default)")
    arguments.add_argument("--count", type=int, default=8, help="scenes, each with every motion (default 8)")
    options = arguments.parse_args()
    pipe = VideoGenPipeline.from_pretrained(options.model)
    side = pipe.base.config.sample_size * pipe.vae_factor
    world = Diorama(side, FRAMES, (pipe.config.base_fps,), seed=5, split="held_out")
    scenes = [dataclasses.replace(world.labels(at), speed="", weather=None, camera=None) for at in range(options.count)]
    rows: list[Row] = []
    for motion, other in OPPOSITES.items():
        told, wrong = ([dataclasses.replace(scene, motion=name) for scene in scenes] for name in (motion, other))
        clips = collate([world.render(labels, at) for at, labels in enumerate(told)])
        latents = encode_frames(pipe.vae, clips.frames)
        row: Row = {"what it does": motion}
        for name, captions in (
            ("true caption", clips.captions),
            ("another", [caption(labels) for labels in wrong]),
            ("none", [""] * len(told)),
        ):
            found = first_guess(pipe, latents, clips.fps, captions)
            row[name] = float((found - latents)[:, FRAMES // 2 :].square().mean())
        row["first frame repeated"] = float((latents[:, :1] - latents)[:, FRAMES // 2 :].square().mean())
        rows.append(row | {"another is": other})
    report(rows, options)


if __name__ == "__main__":
    main()
