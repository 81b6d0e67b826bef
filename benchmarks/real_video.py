"""`videogen interpolate` and `enhance` against the truth on real videos: every second frame is dropped and made again.

PSNR in dB of the frames between: by blending two neighbours, by the whole tool, without its refiner, without the details that
it carries over from the given frames (the plain chain of section 3.3); and of all frames through the video decoder.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from measuring import Row, parser, report
from PIL import Image

from videogen.evaluation.fidelity import psnr
from videogen.pipeline import to_uint8
from videogen.restoration.restorer import Output, Restorer
from videogen.restoration.source import Frame
from videogen.stages import temporal_super_resolution as tsr
from videogen.stages.conditions import encode_frames
from videogen.stages.decoding import decode_video
from videogen.video import read_video


def frames_of(pixels: Iterable[np.ndarray]) -> list[Frame]:
    return [Frame(each, index, index, 1) for index, each in enumerate(pixels)]


def between(outputs: Iterable[Output]) -> np.ndarray:
    """The made ones of frames that take turns with the given; what follows the last is held, not made."""
    return np.stack([each.pixels for each in outputs])[1:-1:2]


@torch.no_grad()
def plain_chain(restorer: Restorer, pixels: np.ndarray, fps: float) -> np.ndarray:
    """Encode, temporal super-resolution, decode, and nothing else."""
    assert restorer.latent_flow is not None
    frames = torch.from_numpy(pixels).permute(0, 3, 1, 2)[None].float() / 127.5 - 1
    latents = tsr.temporal_super_resolution(
        encode_frames(restorer.vae, frames),
        2,
        fps=torch.tensor([fps]),
        middle=partial(tsr.middle_frames, restorer.latent_flow),
        refiner=restorer.refiner,
        scheduler=restorer.scheduler,
        generators=[torch.Generator().manual_seed(0)],
        num_steps=restorer.num_steps,
    )
    return to_uint8(decode_video(restorer.video_decoder, latents)[0, 1::2])


def compare(path: Path, restorer: Restorer, count: int, size: tuple[int, int]) -> Row:
    video = read_video(path)
    start = (len(video.frames) - count) // 2
    shown = video.frames[start : start + count]
    small = [np.asarray(Image.fromarray(each).resize(size, Image.Resampling.BOX)) for each in shown]
    given, truth = small[::2], np.stack(small[1::2])
    blended = [((a.astype(np.float32) + b) / 2).round().astype(np.uint8) for a, b in itertools.pairwise(given)]
    unrefined = dataclasses.replace(restorer, refiner=None)
    options = {"fps": video.fps / 2, "max_gap": 2}
    enhanced = [each.pixels for each in restorer.enhance(frames_of(small))]
    return {
        "video": path.stem,
        "blending": psnr(np.stack(blended), truth),
        "default": psnr(between(restorer.interpolate(frames_of(given), 2, **options)), truth),
        "--no-refiner": psnr(between(unrefined.interpolate(frames_of(given), 2, **options)), truth),
        "no details": psnr(plain_chain(restorer, np.stack(given), video.fps / 2), truth),
        "enhance": psnr(np.stack(enhanced), np.stack(small)),
    }


def main() -> None:
    arguments = parser(__doc__, repeats=1)
    add = arguments.add_argument
    add("videos", nargs="+", type=Path, metavar="VIDEO")
    add("--model", default="mini", help="a pipeline folder, a hub id or mini (default)")
    add("--num-frames", type=int, default=9, help="of each video, from its middle; an odd number (default 9)")
    add("--size", type=int, nargs=2, default=(320, 180), metavar=("WIDTH", "HEIGHT"), help="shrunk to (default 320 180)")
    options = arguments.parse_args()
    restorer = Restorer.from_pretrained(options.model)
    report([compare(path, restorer, options.num_frames, tuple(options.size)) for path in options.videos], options)


if __name__ == "__main__":
    main()
