"""A gallery of any pipeline by one command: the same prompts and the first seeds every time, nothing picked.

`prompts`: a row a prompt; `references` and `motions`: the first scenes of `evaluate control` (Figure 3); `interpolation` and
`decoder`: the first held-out clips of Figures 6 and 7.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from videogen.evaluation import ablations
from videogen.evaluation.control import control
from videogen.evaluation.pictures import Rows, side_by_side, spread, write_picture
from videogen.evaluation.production import REFERENCES, VIDEOS, Production, Team, generate_missing, load_pipeline
from videogen.evaluation.videos import Sampling, VideoFolderSamples
from videogen.video import read_image

PROMPTS = (
    "a red ball moves right over a meadow",
    "a blue star rises over the sea at sunset",
    "a green box grows in a city at night",
    "a yellow heart shrinks in the desert",
    "a purple ring circles over a snowfield",
    "an orange triangle falls in front of the mountains",
)
SCENES = CLIPS = 2


def gallery(production: Production, output: Path, team: Team, say: Callable[[str], None]) -> list[Path]:
    """Generate and measure what is missing below output/made, and draw output/*.jpg, on one process. Raises UserError."""
    made = output / "made"
    control(production, SCENES, None, made / "control", team, say)
    pipe = load_pipeline(production.model, production.dtype, team.ranks.device)
    for name, ablation, frames in (("interpolation", ablations.interpolation, 31), ("decoder", ablations.decoder, 16)):
        choice = ablations.ClipChoice("diorama", frames, pipe.size[0], CLIPS)
        ablation(pipe, choice, made / name, ablations.Distances(), say)
    pictures = {
        "references": made / "control" / "references.png",
        "motions": made / "control" / "motions.png",
        "interpolation": made / "interpolation" / "frames.png",
        "decoder": made / "decoder" / "frames.png",
    }
    drawn = [output / "prompts.jpg"]
    write_picture(_strips(production, made / "prompts", team, say), drawn[0])
    for name, picture in pictures.items():
        drawn.append(output / f"{name}.jpg")
        write_picture(read_image(picture), drawn[-1])
    return drawn


def _strips(production: Production, place: Path, team: Team, say: Callable[[str], None]) -> Image.Image:
    """Of each prompt the reference, then frames."""
    names = generate_missing(production, production.jobs(PROMPTS), place, team, say)
    videos = VideoFolderSamples(place / VIDEOS, Sampling(None, size=None), names=names)
    groups: list[tuple[str, Rows]] = []
    for sample in videos.samples():
        reference = np.asarray(read_image(place / REFERENCES / f"{sample.index:06d}.png"))
        title = f"{PROMPTS[sample.index]} (seed {production.seed + sample.index})"
        groups.append((title, {"": [reference, *spread(sample.frames, 8)]}))
    return side_by_side(groups, width=96)
